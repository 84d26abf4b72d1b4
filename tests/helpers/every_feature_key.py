"""Entries of every_key.py for the keys of the feature schema, by kind of feature and by what forms its ids."""

from __future__ import annotations

from tests.helpers.every_key import ENTRIES, Case, changes, refused

F = "feature_schema.features.f"


def set_key(kind: str, choice: str, base: str, cases: dict[str, Case | str]) -> None:
    """Enter the keys of a kind: a text is a value that changes the weights of a run with the feature `base`."""
    for key, case in cases.items():
        entered = changes(f"{F}.{key}={case}", base=f"{F}={{{base}}}") if isinstance(case, str) else case
        ENTRIES[f"feature_schema.features.{kind}.{key}[{choice}]"] = entered


def no(base: str, key: str, value: str, words: str) -> Case:
    """`key` has no meaning in the feature `base`."""
    return refused(f"{F}={{{base}}}", f"{F}.{key}={value}", words=f"features.f; {key}; {words}")


# How ids are formed: the feature, another value of the key that says so, and a value of the other keys.
WAYS = {
    "vocabulary": ("column: city, vocabulary: FOLDER/words.txt", "FOLDER/more.txt", "c2"),
    "buckets": ("column: city, buckets: 5", "7", "c2"),
    "range": ("column: small, range: 10", "12", "2"),
    "managed": ("column: city, managed: 5", "2000", "c2"),
}
LISTS = {
    "vocabulary": ("column: words, separator: '|', vocabulary: FOLDER/words.txt", "FOLDER/more.txt", "c2"),
    "buckets": ("column: words, separator: '|', buckets: 5", "7", "c2"),
    "range": ("column: tags, range: 10", "12", "2"),
    "managed": ("column: words, separator: '|', managed: 5", "2000", "c2"),
}
COLUMNS = {"city": "town", "small": "user", "words": "phrases", "tags": "marks"}
for kind, ways in (("id", WAYS), ("id_list", LISTS)):
    for way, (rest, other, default) in ways.items():
        feature = f"kind: {kind}, dim: 4, {rest}"
        is_hashed = way in ("buckets", "managed")
        cases: dict[str, Case | str] = {
            "column": COLUMNS[rest.split(",")[0].removeprefix("column: ")],
            "group": "user",
            "dim": "8",
            "table": "other",
            "seed": "1" if is_hashed else no(feature, "seed", "1", "belongs to buckets and managed; remove it"),
            "on_bad": no(feature, "on_bad", "drop", f"no meaning with {way}; remove it") if is_hashed else "drop",
            "values": refused(f"{F}={{{feature}}}", f"{F}.values=integers", words="values")
            if is_hashed
            else no(feature, "values", "integers", "belongs to buckets and managed; remove it"),
            "default": default,
            way: other,
        }
        for rival in [name for name in WAYS if name != way]:
            value = "FOLDER/words.txt" if rival == "vocabulary" else "9"
            cases[rival] = no(feature, rival, value, f"exactly one of; {way}")
        if way == "range":  # it fails unless told otherwise
            cases["on_bad"] = "reserve"
        if kind == "id_list":
            cases |= {"pooling": "mean", "weights": "shares", "truncate": "1"}
            cases["keep"] = changes(f"{F}.keep=first", base=f"{F}={{{feature}, truncate: 1}}")
            cases["separator"] = (
                changes(f"{F}.separator=','", base=f"{F}={{{feature}}}")
                if "separator" in rest
                else refused(f"{F}={{{feature}}}", f"{F}.separator='|'", words="tags; separator; list")
            )
        set_key(kind, way, feature, cases)

DENSE, TABLE = (
    "kind: number, column: price, default: 0",
    "kind: number, column: price, default: 0, boundaries: [1, 9], dim: 4",
)
set_key(
    "number",
    "dense",
    DENSE,
    {
        "column": "cost",
        "group": "user",
        "transform": "log1p",
        "standardise": "[1, 2]",
        "default": "5",
        "boundaries": no(DENSE, "boundaries", "[1, 9]", "dim; go together"),
        "quantiles": no(DENSE, "quantiles", "3", "dim; go together"),
        "dim": no(DENSE, "dim", "4", "boundaries; go together"),
    },
)
set_key(
    "number",
    "table",
    TABLE,
    {
        "column": "cost",
        "group": "user",
        "boundaries": "[1, 20]",
        "quantiles": changes(f"{F}.boundaries=null", f"{F}.quantiles=5", base=f"{F}={{{TABLE}}}"),
        "dim": "8",
        "default": "30",
        "transform": no(TABLE, "transform", "log1p", "no meaning with boundaries; remove"),
        "standardise": no(TABLE, "standardise", "[1, 2]", "no meaning with boundaries; remove"),
    },
)
for part, other in (("hour", "weekday"), ("weekday", "hour")):
    clock = f"kind: time, part: {part}, column: moment, dim: 4"
    set_key(
        "time",
        part,
        clock,
        {
            "column": "later",
            "group": "user",
            "part": other,
            "dim": "8",
            "timezone": "Asia/Tokyo",
            "unit": changes(f"{F}.unit=ms", base=f"{F}={{{clock.replace('moment', 'clock')}, unit: s}}"),
            "reference": no(clock, "reference", "later", f"part: age; part: {part}; remove"),
            "reference_time": no(clock, "reference_time", "2024-06-01", f"part: age; part: {part}; remove"),
            "boundaries": no(clock, "boundaries", "[1h]", f"part: age; part: {part}; remove"),
            "quantiles": no(clock, "quantiles", "3", f"part: age; part: {part}; remove"),
        },
    )
AGE = "kind: time, part: age, column: moment, dim: 4, reference_time: 2024-06-01, boundaries: [7d, 20d]"
set_key(
    "time",
    "age",
    AGE,
    {
        "column": "later",
        "group": "user",
        "part": changes(f"{F}={{kind: time, part: hour, column: moment, dim: 4}}", base=f"{F}={{{AGE}}}"),
        "dim": "8",
        "unit": changes(f"{F}.unit=ms", base=f"{F}={{{AGE.replace('moment', 'clock')}, unit: s}}"),
        "timezone": no(AGE, "timezone", "Asia/Tokyo", "belongs to hour and weekday; remove it"),
        "reference": changes(f"{F}.reference_time=null", f"{F}.reference=later", base=f"{F}={{{AGE}}}"),
        "reference_time": "2024-05-20",
        "boundaries": "[7d, 30d]",
        "quantiles": changes(f"{F}.boundaries=null", f"{F}.quantiles=5", base=f"{F}={{{AGE}}}"),
    },
)
CROSS = "kind: cross, of: [user, city], buckets: 7, dim: 4"
CITY = "feature_schema.features.city={kind: id, buckets: 5, dim: 4}"
for key, value in {"of": "[city, user]", "buckets": "9", "dim": "8", "seed": "1", "group": "user"}.items():
    ENTRIES[f"feature_schema.features.cross.{key}"] = changes(f"{F}.{key}={value}", base=(CITY, f"{F}={{{CROSS}}}"))
ENTRIES |= {
    "feature_schema.labels.*.column": changes("feature_schema.labels.click.column=like"),
    "feature_schema.labels.*.weight": changes("feature_schema.labels.click.weight=0.5", part="log"),
    "feature_schema.weight": changes("feature_schema.weight=importance"),
}
