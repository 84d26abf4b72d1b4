"""What text in a column of numbers, times or lists means: patterns, and text made plain for Arrow to read."""

from __future__ import annotations

import json
import re
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

# Words that mean "no value" in a column of numbers, times or lists, in small letters.
MISSING = (
    *(
        "na",
        "n/a",
        "#n/a",
        "#na",
        "n.a.",
        "<na>",
        "nan",
        "-nan",
        "nat",
        "null",
        "(null)",
        "<null>",
        "#null!",
        "none",
        "nil",
    ),
    *("\\n", "-", "--", "\u2013", "\u2014", "?", ".", "unknown", "missing", "undefined", "#value!", "#div/0!", "#ref!"),
    *("not available", "not applicable", "(none)", "(not set)"),
)
# In any column: what Hive and MySQL write for null and for nothing else.
NULL = "\\N"
_DIGITS = r"(0|[1-9][0-9]{0,14})"
INTEGER = r"^[+-]?(0|[1-9][0-9]{0,18})(\.0*)?$"
NUMBER = rf"^[+-]?({_DIGITS}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{{1,3}})?$"
GROUPED = r"^[+-]?[1-9][0-9]{0,2}(,[0-9]{3}){1,4}(\.[0-9]*)?$"
INFINITE = r"(?i)^[+-]?(inf|infinity|∞)$"
AFFIX = r"^([+-]?)[$€£¥₹] ?([0-9.])|([0-9.]) ?[%$€£¥₹]$"
# A number with an exponent and neither point nor sign is a code, unless others in the column have one.
CODE = r"^[0-9]+[eE][0-9]+$"
# Signs before many digits, as of telephone numbers.
SIGNED_CODE = r"^\+[0-9]{7,}$"
# Of that magnitude nothing is measured: the largest double and its like stand for "unknown".
UNKNOWN = 1e30
TIME = (
    r"^(?P<year>[0-9]{4})[-/](?P<month>[0-9]{2})[-/](?P<day>[0-9]{2})"
    r"(?:[T ](?P<time>[0-9]{2}:[0-9]{2})(?P<second>:[0-9]{2})?(?:[.,](?P<fraction>[0-9]{1,9}))?"
    r" ?(?P<zone>Z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?)?)?$"
)
ZONED = r"^[0-9/-]{10}[T ].*(Z|UTC|GMT|[+-][0-9]{2}(:?[0-9]{2})?)$"
DATE = r"^[0-9]{4}[-/][0-9]{2}[-/][0-9]{2}$"
FINE = r"[.,][0-9]{7,9}"
# Dates that stand for "never" or "unknown": zero, where the calendars of databases and of Excel begin, the last day.
NEVER = r"^(000[01]-[0-9]{2}-[0-9]{2}|1601-01-01|1753-01-01|1899-12-3[01]|1900-01-01|9999-[0-9]{2}-[0-9]{2})([T ].*)?$"
EPOCH_NEVER = (-1, 0, 2**31 - 1, 2**63 - 1, -(2**63))
LIST = r"(?s)^(\[.*\]|\(.*\)|\{.*\})$"
_ELEMENT = re.compile(
    r"""\s*(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|"""
    r"""(?P<bare>[^\s,"'\[\](){}:][^,"'\[\](){}:]*?))\s*(?:,|$)""",
    re.DOTALL,
)
_SPACED = re.compile(r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[+-]?[0-9.][0-9.eE+-]*))(?=\s|$)""")
# What a row would hold, and not the name of a column.
DATA_WORD = re.compile(
    r"[+-]?[0-9]+([.,][0-9]+)*([eE][+-]?[0-9]+)?%?|[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}([T ].*)?|"
    r"true|false|yes|no|null|nan|na|n/a|none|\\N|\?|-|\[.*\]|\{.*\}",
    re.IGNORECASE,
)


def matches(values: pa.Array, pattern: str) -> pa.Array:
    """Which values match; pa.bool_()."""
    return pc.match_substring_regex(values, pattern)


def any_matches(values: pa.Array, pattern: str) -> bool:
    """Whether a value matches."""
    return bool(pc.any(matches(values, pattern), min_count=0).as_py())


def is_missing(values: pa.Array) -> pa.Array:
    """Which values are words for "no value", in a column where others are numbers, times or lists."""
    return pc.is_in(pc.utf8_lower(values), pa.array(MISSING))


def plain_numbers(values: pa.Array, decimal: str = ".") -> pa.Array:
    """Numbers as Arrow reads them: no unit, no plus, no groups of thousands, a point.

    >>> plain_numbers(pa.array(["$3.20", "+1.5", "1,200.50", "x"])).to_pylist()
    ['3.20', '1.5', '1200.50', 'x']
    >>> plain_numbers(pa.array(["1.200,50", "7 %", "12,5"]), ",").to_pylist()
    ['1200.50', '7', '12.5']
    """
    if not any_matches(values, r"[^0-9.eE-]"):
        return values
    values = pc.replace_substring_regex(values, AFFIX, r"\1\2\3")
    if decimal == ",":
        # A point or a blank groups thousands, and a comma is the point.
        grouped = matches(values, r"^[+-]?[0-9]{1,3}([. \x{a0}\x{202f}'][0-9]{3})*(,[0-9]*)?$")
        swapped = pc.replace_substring(pc.replace_substring_regex(values, r"[. \x{a0}\x{202f}']", ""), ",", ".")
        values = pc.if_else(
            pc.or_(grouped, matches(values, r"^[+-]?[0-9]*,[0-9]*([eE][+-]?[0-9]+)?$")), swapped, values
        )
    values = pc.if_else(matches(values, GROUPED), pc.replace_substring(values, ",", ""), values)
    return pc.replace_substring_regex(values, r"^\+", "")


def units(values: pa.Array) -> pa.Array:
    """The sign of a currency, or %, beside each number; "" where a value has none."""
    found = pc.extract_regex(values, r"^[+-]?(?P<before>[$€£¥₹]?)[^$€£¥₹%]*(?P<after>[%$€£¥₹]?)$")
    return pc.binary_join_element_wise(found.field("before"), found.field("after"), "").fill_null("")


def plain_times(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Times in ISO 8601, with nine decimals of a second; and the zone of each, "" for none. Others are null.

    >>> times, zones = plain_times(pa.array(["2024/06/01 13:59 UTC", "2024-06-01", "yesterday"]))
    >>> times.to_pylist(), zones.to_pylist()
    (['2024-06-01T13:59:00.000000000', '2024-06-01T00:00:00.000000000', None], ['Z', '', None])
    """
    found = pc.extract_regex(values, TIME)
    part = {field.name: pc.struct_field(found, field.name) for field in found.type}
    times = pc.binary_join_element_wise(
        pc.binary_join_element_wise(part["year"], part["month"], part["day"], "-"),
        "T",
        pc.if_else(pc.equal(part["time"], ""), "00:00", part["time"]),
        pc.if_else(pc.equal(part["second"], ""), ":00", part["second"]),
        ".",
        pc.utf8_rpad(part["fraction"], 9, "0"),
        "",
    )
    zones = pc.replace_substring_regex(part["zone"], "^(UTC|GMT)$", "Z")
    return times, pc.replace_substring_regex(zones, "^([+-][0-9]{2})$", r"\1:00")


def read_times(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """Times as timestamps or dates; null where a value is no time that there is, or has a zone and should not."""
    times, zones = plain_times(values)
    is_zoned = pa.types.is_timestamp(type_) and type_.tz is not None
    text = pc.binary_join_element_wise(times, zones, "")
    text = pc.if_else(pc.equal(pc.equal(zones, ""), not is_zoned), text, None)
    if pa.types.is_date(type_):
        text = pc.if_else(matches(values, DATE), text, None)
    fine = pa.timestamp("ns", "UTC" if is_zoned else None)
    try:
        read = pc.cast(text, fine)
    except pa.ArrowInvalid:  # such as the 31st of June, or the year 3000
        read = pa.array([_cast_or_null(value, fine) for value in text.to_pylist()], fine)
    within = pc.and_(pc.greater_equal(pc.year(read), 1900), pc.less(pc.year(read), 2200))
    return pc.cast(pc.if_else(within, read, None), type_, safe=False)


def _cast_or_null(value: str | None, type_: pa.DataType) -> int | None:
    try:
        return pc.cast(pa.scalar(value), type_).value
    except pa.ArrowInvalid:
        return None


def read_times_as(values: pa.Array, form: str) -> pa.Array:
    """Times in a form of strptime, as timestamps in microseconds; null where a value has another form."""

    def read(value: str | None) -> datetime | None:
        try:
            time = None if value is None else datetime.strptime(value, form)
        except ValueError:
            return None
        return time if time is not None and 1900 <= time.year < 2200 else None

    coded = values.dictionary_encode()
    return pa.array(map(read, coded.dictionary.to_pylist()), pa.timestamp("us")).take(coded.indices)


def split_list(text: str) -> list[str] | None:
    """The elements of a list in brackets, as Python, NumPy, JSON, PostgreSQL and Java print it; None if it is none.

    Separated by commas; or, where all are numbers or in quotes, by blanks.

    >>> split_list("['a, b', 'c']"), split_list("[1 2\\n 3]"), split_list("(1,)"), split_list("{}")
    (['a, b', 'c'], ['1', '2', '3'], ['1'], [])
    >>> split_list('{"a": 1}'), split_list("[0 1 ... 8 9]"), split_list("[new york, rome]")
    (None, None, ['new york', 'rome'])
    """
    body = text[1:-1].strip()
    if not body:
        return []
    if "..." in body or "…" in body:  # NumPy's and pandas's way to cut short
        return None
    return _elements(_SPACED, body) or _elements(_ELEMENT, body)


def _elements(pattern: re.Pattern[str], body: str) -> list[str] | None:
    found, at = [], 0
    while at < len(body):
        match = pattern.match(body, at)
        if match is None:
            return None
        at = match.end()
        if match["double"] is not None:
            try:
                found.append(str(json.loads(f'"{match["double"]}"', strict=False)))
            except json.JSONDecodeError:
                found.append(match["double"])
        elif match["single"] is not None:
            found.append(re.sub(r"\\(['\\])", r"\1", match["single"]))
        elif match["bare"].lower() in MISSING:
            return None
        else:
            found.append(match["bare"])
    return found
