"""The tables that `rankmixer data profile` prints, for 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from rankmixer.launch.commands.profile_findings import Json, shared, trouble


def tables(found: Json) -> Iterator[Table]:
    """The tables that have rows, made from the JSON alone: collisions first, and what has most trouble on top."""
    profile = found["profile"]
    made = [
        _tables(dict(sorted(profile["tables"].items(), key=lambda item: -shared(item[1])))),
        _ids(_most_trouble_first(found)),
        _lists(profile["ids"]),
        _numbers(profile["numbers"]),
        _labels(profile["labels"]),
    ]
    if found["drift"] is not None:
        made.append(_drift(found["drift"]))
    yield from (table for table in made if table.row_count)


def _most_trouble_first(found: Json) -> Json:
    profile, drift = found["profile"], found["drift"]
    table_of = {feature: table for table in profile["tables"].values() for feature in table["features"]}

    def least(item: tuple[str, Json]) -> float:
        name, ids = item
        change = drift["ids"].get(name) if drift is not None else None
        return -trouble(ids, table_of.get(name), change, profile["rows"])

    return dict(sorted(profile["ids"].items(), key=least))


def _table(title: str, name: str, *columns: str) -> Table:
    """A table for 80 columns: only names are broken."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(name, overflow="fold", min_width=8)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _ids(features: dict[str, Json]) -> Table:
    table = _table(
        "Ids: how many, and how the lookups are spread over them",
        "feature",
        *("lookups", "null", "bad", "ids", "top 1", "top 100", "90% in", "99% in"),
    )
    for name, ids in features.items():
        about = "~" if ids["distinct_error"] else ""
        table.add_row(
            Text(name),
            _count(ids["lookups"]),
            _count(ids["nulls"]),
            _count(ids["bad"]["count"]),
            about + _count(ids["distinct"]),
            _share(ids["top"]["1"]),
            _share(ids["top"]["100"]),
            about + _count(ids["coverage"]["90"]),
            about + _count(ids["coverage"]["99"]),
        )
    return table


def _lists(features: dict[str, Json]) -> Table:
    table = _table("Lists: ids a row", "feature", "mean", "median", "90%", "99%", "longest", "rows with ids")
    for name, ids in features.items():
        if (lengths := ids["lengths"]) is not None:
            counts = (_count(lengths[key]) for key in ("50", "90", "99", "max"))
            table.add_row(Text(name), _number(lengths["mean"]), *counts, _count(ids["rows_with_ids"]))
    return table


def _tables(tables: dict[str, Json]) -> Table:
    table = _table(
        "Tables: what shares its bucket with another id, and what is suggested",
        "table",
        *("rows", "dim", "ids", "ids share", "lookups", "suggested", "ids share", "dim"),
    )
    for name, one in tables.items():
        collisions, suggested = one["collisions"], one["suggested"]
        table.add_row(
            Text(name),
            _count(one["rows"]),
            str(one["dim"]),
            ("~" if one["distinct_error"] else "") + _count(one["distinct"]),
            _share(collisions and collisions["ids"]),
            _share(collisions and collisions["lookups"]),
            _count(collisions and suggested["buckets"]),
            _share(collisions and suggested["expected"]),
            str(suggested["dim"]),
        )
    return table


def _numbers(numbers: dict[str, Json]) -> Table:
    table = _table(
        "Numbers: missing is null, NaN or infinite",
        "number",
        "missing",
        "min",
        "1%",
        "median",
        "99%",
        "max",
        "mean",
        "std",
    )
    for name, number in numbers.items():
        quantiles = number["quantiles"]
        values = (number["min"], quantiles["1"], quantiles["50"], quantiles["99"], number["max"])
        table.add_row(
            Text(name),
            _count(number["nulls"] + number["nan"] + number["infinite"]),
            *(_number(value) for value in (*values, number["mean"], number["std"])),
        )
    return table


def _labels(labels: dict[str, Json]) -> Table:
    table = _table("Labels", "label", "rate", "lowest file", "highest file", "files", "of them depart", "bad")
    for name, label in labels.items():
        rates = [file["rate"] for file in label["files"]]
        table.add_row(
            Text(name),
            _share(label["rate"]),
            _share(min(rates, default=None)),
            _share(max(rates, default=None)),
            _count(len(rates)),
            _count(sum(file["departs"] for file in label["files"])),
            _count(label["refused"]["count"]),
        )
    return table


def _drift(changes: Json) -> Table:
    table = _table(
        "Drift to the other files", "column", "distance", "by chance", "unseen lookups", "shift of mean", "drifted"
    )
    for kind in ("ids", "numbers"):
        for name, change in changes[kind].items():
            shift = change.get("mean_shift")
            table.add_row(
                Text(name),
                _number(change["js_distance"]),
                _number(change["js_by_chance"]),
                _share(change.get("unseen")),
                "-" if shift is None else f"{round(shift, 2) + 0.0:+.2f} std",
                "yes" if change["drifted"] else "",
            )
    for name, change in changes["labels"].items():
        rates = f"{_share(change['rate'])} to {_share(change['against'])}"
        table.add_row(Text(name), "-", "-", "-", rates, "yes" if change["drifted"] else "")
    return table


def _count(count: int | None) -> str:
    """A count in few characters.

    >>> _count(99_999), _count(123_456), _count(1_234_567), _count(56_000_000_000)
    ('99,999', '123 k', '1.23 M', '56.0 G')
    """
    if count is None:
        return "-"
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= max(size, 100_000):
            return f"{count / size:.{0 if count >= 100 * size else 1 if count >= 10 * size else 2}f} {unit}"
    return f"{count:,}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    """Three digits at least.

    >>> _number(0.06159), _number(1179.6), _number(-1.7e9), _number(2e-10)
    ('0.0616', '1,180', '-1.7e9', '2e-10')
    """
    if value is None:
        return "-"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 100_000 else f"{value:.3g}"
    return text.replace("e+0", "e").replace("e+", "e")
