"""Ways to damage a Parquet file: its bytes anywhere, its pages, its footer, or its columns by writing it again."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

Random = np.random.Generator
Span = tuple[int, int]  # bytes from start to stop


def flip(data: bytearray, spans: list[Span], random: Random) -> None:
    """Change one to eight bytes inside the spans."""
    for _ in range(random.integers(1, 9)):
        start, stop = spans[random.integers(len(spans))]
        at = int(random.integers(start, stop))
        data[at] ^= 1 << random.integers(8) if random.random() < 0.5 else int(random.integers(1, 256))


def interesting(data: bytearray, spans: list[Span], random: Random) -> None:
    """Write numbers that programs stumble over inside the spans: ends of ranges, small steps, long varints."""
    start, stop = spans[random.integers(len(spans))]
    at = int(random.integers(start, stop))
    values = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
    step = bytes([(data[at] + int(random.integers(-2, 3))) % 256])
    value = step if random.random() < 0.4 else values[random.integers(len(values))]
    data[at : at + len(value)] = value[: max(1, stop - at)]


def cut(data: bytearray, _: list[Span], random: Random) -> None:
    """Truncate the file."""
    del data[int(random.integers(len(data))) :]


def splice(data: bytearray, spans: list[Span], random: Random) -> None:
    """Copy a stretch of the file over another place in the spans, as a file system that mixes blocks does."""
    start, stop = spans[random.integers(len(spans))]
    to = int(random.integers(start, stop))
    length = int(random.integers(1, 1 + min(64, stop - to)))
    source = int(random.integers(len(data) - length))
    data[to : to + length] = data[source : source + length]


def zero(data: bytearray, spans: list[Span], random: Random) -> None:
    """Zero a stretch, as a hole in a sparse file."""
    start, stop = spans[random.integers(len(spans))]
    at = int(random.integers(start, stop))
    length = min(int(random.integers(1, 512)), stop - at)
    data[at : at + length] = bytes(length)


def shift(data: bytearray, spans: list[Span], random: Random) -> None:
    """Insert or remove a few bytes, so that everything after them lies elsewhere."""
    start, stop = spans[random.integers(len(spans))]
    at = int(random.integers(start, stop))
    if random.random() < 0.5:
        data[at:at] = random.bytes(int(random.integers(1, 9)))
    else:
        del data[at : at + int(random.integers(1, 9))]


def length(data: bytearray, _: list[Span], random: Random) -> None:
    """Change the length of the footer that the file's last eight bytes state."""
    stated = int.from_bytes(data[-8:-4], "little")
    other = (0, 1, stated - 1, stated + 1, stated * 2, len(data), 2**31 - 1, 2**32 - 1, int(random.integers(2**32)))
    data[-8:-4] = other[random.integers(len(other))].to_bytes(4, "little")


BYTES: dict[str, Callable[[bytearray, list[Span], Random], None]] = {
    "flipped": flip,
    "numbers": interesting,
    "spliced": splice,
    "zeroed": zero,
}
WHOLE = {"cut": cut, "shifted": shift, "footer length": length}


def page_bodies(data: bytes, chunks: list[Span]) -> list[Span]:
    """Where the bytes lie that a page's checksum covers: all of a page but its header."""
    bodies = []
    for at, stop in chunks:
        while at < stop:
            header, at = _struct(data, at)
            bodies.append((at, at + header[3]))
            at += header[3]
    return [body for body in bodies if body[0] < body[1]]


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol: its fields by number, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        kind, at = data[at], at + 1
        if not kind:
            return fields, at
        if kind >> 4:
            number += kind >> 4
        else:
            raw, at = _varint(data, at)
            number = (raw >> 1) ^ -(raw & 1)
        fields[number], at = _value(data, at, kind & 15)


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        raw, at = _varint(data, at)
        return (raw >> 1) ^ -(raw & 1), at
    if kind == 7:
        return data[at : at + 8], at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return data[at : at + size], at + size
    assert kind == 12, f"page headers hold no type {kind}"
    return _struct(data, at)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


Rewrite = Callable[[pa.Table, str, Random], pa.Table]


def _some(column: pa.ChunkedArray, random: Random, value: Any) -> list[Any]:
    """The column with one to three values replaced."""
    values = column.to_pylist()
    for row in random.integers(0, len(values), random.integers(1, 4)):
        values[row] = value
    return values


def _with(rows: pa.Table, name: str, array: Any) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, array)


def dropped(rows: pa.Table, name: str, _: Random) -> pa.Table:
    return rows.drop_columns([name])


def renamed(rows: pa.Table, name: str, _: Random) -> pa.Table:
    return rows.rename_columns([f"{column}_" if column == name else column for column in rows.column_names])


def doubled(rows: pa.Table, name: str, _: Random) -> pa.Table:
    return rows.append_column(name, rows[name])


def nested(rows: pa.Table, name: str, random: Random) -> pa.Table:
    """Each value as a list of one, or a struct."""
    values = rows[name].to_pylist()
    inner = rows.schema.field(name).type
    if random.random() < 0.5:
        return _with(rows, name, pa.array([{"value": value} for value in values], pa.struct([("value", inner)])))
    return _with(rows, name, pa.array([[value] for value in values], pa.list_(inner)))


TYPES = (
    *(pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_()),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.date32(), pa.timestamp("us")),
    *(pa.decimal128(20, 3), pa.decimal256(40, 9), pa.dictionary(pa.int32(), pa.string()), pa.null()),
    *(pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.string()), pa.large_list(pa.large_string())),
    *(pa.list_(pa.float64()), pa.list_(pa.list_(pa.int64())), pa.list_(pa.decimal128(12, 4))),
)


def typed(rows: pa.Table, name: str, random: Random) -> pa.Table:
    """The column in another type, as far as Arrow converts it; all null where it does not."""
    to = TYPES[random.integers(len(TYPES))]
    try:
        return _with(rows, name, rows[name].cast(to, safe=False))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _with(rows, name, pa.nulls(len(rows), to))


def nulls(rows: pa.Table, name: str, random: Random) -> pa.Table:
    return _with(rows, name, pa.array(_some(rows[name], random, None), rows.schema.field(name).type))


ODD: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 127, -(2**31), 2**31, 2**63 - 1, 2**64 - 1, float("nan"), float("inf"), -float("inf"), -0.0, 1e-320),
    *(1e39, 1.0000001, "", "|", "||", "\0", "x" * 70, "Zürich", [], [None], [-1], [2**40], [""], [None, 3], ["|"]),
    *(True, decimal.Decimal("0.5"), [0.5, float("nan")], [float("inf")]),
)


def odd(rows: pa.Table, name: str, random: Random) -> pa.Table:
    """A few values replaced by one that is unusual or impossible, of the column's type if that can hold it."""
    value = ODD[random.integers(len(ODD))]
    values = _some(rows[name], random, value)
    for type_ in (rows.schema.field(name).type, None):
        try:
            return _with(rows, name, pa.array(values, type_))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError):
            continue
    return _with(rows, name, pa.array([str(value)] * len(rows)))


def not_utf8(rows: pa.Table, name: str, random: Random) -> pa.Table:
    """Strings that are not UTF-8, alone or in lists."""
    bad = b"\xff\xfe" if random.random() < 0.5 else b"Z\xfcrich"
    values = [bad if random.random() < 0.1 else b"fine" for _ in range(len(rows))]
    data = pa.array(values, pa.binary())
    text = pa.StringArray.from_buffers(len(data), *data.buffers()[1:], data.buffers()[0])
    if pa.types.is_list(rows.schema.field(name).type):
        text = pa.ListArray.from_arrays(pa.array(range(len(rows) + 1), pa.int32()), text)
    return _with(rows, name, text)


def empty(rows: pa.Table, _: str, __: Random) -> pa.Table:
    return rows.slice(0, 0)


COLUMNS: dict[str, Rewrite] = {
    "dropped": dropped,
    "renamed": renamed,
    "doubled": doubled,
    "nested": nested,
    "typed": typed,
    "nulls": nulls,
    "odd": odd,
    "not UTF-8": not_utf8,
    "empty": empty,
}
