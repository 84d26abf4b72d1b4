"""What is wrong with the data, from the JSON of `rankmixer data profile`: the worst first, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Json = dict[str, Any]

FILES_SHOWN = 5
UNSCALED = 10.0  # a dense input whose mean or deviation is beyond this should be standardised
SHARED = 0.05  # of the lookups of a table may share a bucket
COUNTED = 10_000  # so many ids a vocabulary takes with ease
EMPTY = 0.5  # a column of more nulls is hardly there
MOVED = 0.1  # a change of the share of nulls that is told
MANY = 200  # from so many lookups on a column that hardly repeats a value is told
# What is told first: what shares a row of its table, what ends training, what is mended, what teaches little, the rest.
COLLIDES, REFUSED, MENDED, EMPTY_OR_CONSTANT, SKEWED, DRIFTED, DEPARTS = range(7)


class Finding(NamedTuple):
    """One thing to look at.

    Args:
        kind: COLLIDES, ...: kinds are told in this order.
        share: of lookups or rows that it concerns; within a kind the largest comes first.
        name: of the table, feature or label.
        sentence: what was found, and what to do.
    """

    kind: int
    share: float
    name: str
    sentence: str


def findings(found: Json) -> list[str]:
    """What a person should look at, a sentence each, the worst first."""
    profile = found["profile"]
    told = [
        *(finding for name, table in profile["tables"].items() for finding in _collisions(name, table)),
        *(finding for name, ids in profile["ids"].items() for finding in _ids(name, ids, profile["rows"])),
        *(finding for name, number in profile["numbers"].items() for finding in _number(name, number)),
        *_refused(profile),
        *(finding for name, label in profile["labels"].items() for finding in _departing(name, label)),
        *(_drift(found) if found["drift"] is not None else ()),
    ]
    ordered = sorted(told, key=lambda finding: (finding.kind, -finding.share))
    return [f"{finding.name}: {finding.sentence}" for finding in ordered]


def trouble(ids: Json, table: Json | None, drift: Json | None, rows: int) -> float:
    """The largest share of a feature's lookups that collide, or are unknown, null or unseen; 1 for a constant."""
    shares = [_unknown(ids), _nulls(ids, rows), float(_is_constant(ids))]
    if table is not None:
        shares.append(shared(table))
    if drift is not None:
        shares.append(drift["unseen"] or 0.0)
    return max(shares)


def shared(table: Json) -> float:
    """The share of a table's lookups whose bucket another id has too; the expected one where it was not measured."""
    collisions = table["collisions"]
    if collisions is None:
        return 0.0
    measured = collisions["lookups"]
    return float(collisions["expected"] if measured is None else measured)


def _unknown(ids: Json) -> float:
    return ids["bad"]["count"] / max(ids["lookups"] + ids["bad"]["count"], 1)


def _nulls(ids: Json, rows: int) -> float:
    return ids["nulls"] / max(rows if ids["lengths"] is None else ids["lookups"] + ids["nulls"], 1)


def _is_constant(ids: Json) -> bool:
    return ids["distinct"] == 1 and not ids["nulls"] and not ids["bad"]["count"]


def _collisions(name: str, table: Json) -> Iterator[Finding]:
    share, suggested = shared(table), table["suggested"]
    if share <= SHARED:
        return
    what = f"{share:.1%} of lookups are of ids that share one of {table['rows']:,} buckets with another"
    if table["distinct"] <= COUNTED:
        do = (
            f"give {', '.join(table['features'])} a `vocabulary`: {table['distinct']:,} ids, each with a row of its own"
        )
    elif suggested["buckets"] > table["rows"]:
        do = f"with `buckets: {suggested['buckets']}` {suggested['expected']:.0%} of ids would"
    else:
        do = "more buckets help little; a vocabulary, or a managed table, gives frequent ids rows of their own"
    yield Finding(COLLIDES, share, name, f"{what}; {do}")


def _ids(name: str, ids: Json, rows: int) -> Iterator[Finding]:
    bad, heaviest, lookups = ids["bad"], ids["heaviest"][:1], ids["lookups"]
    if bad["count"]:
        ends = bad["policy"] == "fail"
        result = "training stops there" if ends else "they go to the reserved row"
        result = result if bad["policy"] in ("fail", "reserve") else "their rows are dropped"
        what = f"{bad['count']:,} ids have no place, the first in {_place(bad)}; {result}"
        yield Finding(REFUSED if ends else MENDED, _unknown(ids), name, what)
    if _nulls(ids, rows) > EMPTY:
        what = f"{_nulls(ids, rows):.0%} are null, which teaches nothing; fill the column, or leave the feature out"
        yield Finding(EMPTY_OR_CONSTANT, _nulls(ids, rows), name, what)
    if _is_constant(ids):
        yield Finding(EMPTY_OR_CONSTANT, 1.0, name, "has one value in every row, which teaches nothing; leave it out")
    elif lookups >= MANY and ids["distinct"] >= 0.95 * lookups:
        what = (
            f"{ids['distinct']:,} ids in {lookups:,} lookups hardly repeat, so nothing is learnt of them; leave it out"
        )
        yield Finding(EMPTY_OR_CONSTANT, ids["distinct"] / lookups, name, f"{what} or use what they have in common")
    elif heaviest and heaviest[0]["share"] > 0.5 and ids["distinct"] > 2:
        value, share = heaviest[0]["value"], heaviest[0]["share"]
        what = f"{value!r} takes {share:.0%} of lookups; if it means missing, make it null"
        yield Finding(SKEWED, share, name, what)


def _number(name: str, number: Json) -> Iterator[Finding]:
    mean, std = ((number["input"] or {}).get(key) or 0.0 for key in ("mean", "std"))
    if std > 0 and max(abs(mean), std) > UNSCALED:
        sizes = f"mean {mean:.4g} and standard deviation {std:.4g}"
        yield Finding(SKEWED, 0.0, name, f"the model gets numbers of {sizes}; `standardise` makes them 0 and 1")
    missing = number["nulls"] + number["nan"] + number["infinite"]
    if number["min"] is not None and number["min"] == number["max"] and not missing:
        what = f"is {number['min']:g} in every row, which teaches nothing; leave it out"
        yield Finding(EMPTY_OR_CONSTANT, 1.0, name, what)


def _refused(profile: Json) -> Iterator[Finding]:
    for kind in ("numbers", "labels"):
        for name, column in profile[kind].items():
            if count := column["refused"]["count"]:
                what = f"{count:,} values that training refuses, the first in {_place(column['refused'])}"
                yield Finding(REFUSED, count / max(profile["rows"], 1), name, what)


def _departing(name: str, label: Json) -> Iterator[Finding]:
    departing = sorted((file for file in label["files"] if file["departs"]), key=lambda file: -abs(file["z"]))
    for file in departing[:FILES_SHOWN]:
        rates = f"{file['rate']:.2%}, over all files {label['rate']:.2%}"
        what = f"{file['file']} has {rates} ({file['z']:+.0f} standard deviations)"
        yield Finding(DEPARTS, 0.0, name, what)
    if len(departing) > FILES_SHOWN:
        yield Finding(DEPARTS, 0.0, name, f"and {len(departing) - FILES_SHOWN:,} more files depart")


def _drift(found: Json) -> Iterator[Finding]:
    here, there, changes = found["profile"], found["against"], found["drift"]
    for name, change in changes["ids"].items():
        unseen = change["unseen"] or 0.0
        if change["drifted"]:
            what = f"has drifted: {unseen:.1%} of the other files' lookups are of ids that are not in these"
            yield Finding(DRIFTED, unseen, name, f"{what}; train on newer files, or expect less of it")
        nulls = [_nulls(side["ids"][name], side["rows"]) for side in (here, there)]
        if abs(nulls[1] - nulls[0]) > MOVED:
            what = f"{nulls[0]:.0%} are null here and {nulls[1]:.0%} in the other files; see to what writes it"
            yield Finding(DRIFTED, abs(nulls[1] - nulls[0]), name, what)
    for kind in ("numbers", "labels"):
        for name, change in changes[kind].items():
            if change["drifted"]:
                what = "has drifted; see the table above, and to what writes the column"
                yield Finding(DRIFTED, change.get("js_distance") or 0.0, name, what)


def _place(wrong: Json) -> str:
    first = wrong["first"]
    return f"{first['file']}, row group {first['row_group']}, row {first['row']}"
