"""Strings of a CSV column as numbers, times, lists or text of one type; what cannot be read is never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.csv import column_text as text
from rankmixer.pipeline.propose.labels import truth

KEY = b"rankmixer.csv"  # of the metadata of a Parquet column that says how its text was read
_INT64 = pa.int64()


class UnreadableError(ValueError):
    """A value that its column's type does not have; `row` is its index."""

    def __init__(self, row: int, value: str) -> None:
        super().__init__(f"row {row}: {value!r}")
        self.row = row
        self.value = value


@dataclass(frozen=True)
class Reading:
    """How the text of a column becomes values of `type`.

    Args:
        missing: words for "no value" besides those that column_text.py knows.
        decimal: the decimal mark; None is a point.
        time_format: of strptime, for times that are not in ISO 8601.
        unit: the sign of a currency, or %, that numbers have; "" for none, None for any.
        is_epoch: integers that count the time since 1970, of which some stand for "never".

    >>> price = Reading(pa.float64())
    >>> price.read(pa.array(["1.5", "NA", None, "$2", "1e400"])).to_pylist()
    [1.5, None, None, 2.0, None]
    >>> Reading(pa.list_(pa.int64())).read(pa.array(["[1, 2]", "[]"])).to_pylist()
    [[1, 2], []]
    >>> price.read(pa.array(["1.5", "cheap"]))
    Traceback (most recent call last):
    rankmixer.pipeline.csv.column_reading.UnreadableError: row 1: 'cheap'
    """

    type: pa.DataType
    missing: tuple[str, ...] = ()
    decimal: str | None = None
    time_format: str | None = None
    unit: str | None = None
    is_epoch: bool = False

    def parse(self, values: pa.Array, words: pa.Array | None = None) -> tuple[pa.Array, pa.Array]:
        """Which values stand for "no value", and all of them in the type, null where they cannot be read.

        Args:
            values: (N,) strings, none null.
            words: (N,) which of them are words for it in numbers, times and lists, if that is known.
        """
        found = pc.is_in(values, pa.array([text.NULL, *self.missing]))
        if pa.types.is_string(self.type):
            return found, values
        found = pc.or_(found, text.is_missing(values) if words is None else words)
        converted = self.convert(values)
        if pa.types.is_floating(self.type):
            large = pc.greater_equal(pc.abs(converted), text.UNKNOWN).fill_null(False)
            found = pc.or_(found, pc.or_(text.matches(values, text.INFINITE), large))
        elif pa.types.is_temporal(self.type):
            found = pc.or_(found, text.matches(values, text.NEVER))
        elif self.is_epoch:
            found = pc.or_(found, pc.is_in(converted, pa.array(text.EPOCH_NEVER, _INT64)))
        return found, converted

    def convert(self, values: pa.Array) -> pa.Array:
        """Values in the type; null where a value cannot be read."""
        type_ = self.type
        if pa.types.is_string(type_):
            return values
        if type_ == pa.int8():
            return pa.array(map(truth, values.to_pylist()), type_)
        if pa.types.is_integer(type_):
            return self._integers(values)
        if pa.types.is_floating(type_):
            return self._floats(values)
        if pa.types.is_temporal(type_):
            times = text.read_times(values, type_)
            # A form with a time of day is none of dates.
            if self.time_format and not (pa.types.is_date(type_) and re.search("%[HIMSTXcfps]", self.time_format)):
                times = pc.coalesce(times, pc.cast(text.read_times_as(values, self.time_format), type_))
            return times
        return self._lists(values)

    def read(self, chunk: pa.Array) -> pa.Array:
        """A chunk of strings in the type; null is null.

        Raises:
            UnreadableError: a value that the type does not have.
        """
        coded = chunk.dictionary_encode()
        values = coded.dictionary
        missing, converted = self.parse(values)
        wrong = pc.and_(pc.invert(missing), pc.is_null(converted))
        if pc.any(wrong, min_count=0).as_py():
            row = int(np.flatnonzero(wrong.take(coded.indices).fill_null(False).to_numpy(zero_copy_only=False))[0])
            raise UnreadableError(row, chunk[row].as_py())
        if pc.any(missing, min_count=0).as_py():
            nothing = pa.scalar(None, self.type)
            converted = pc.if_else(missing, nothing, converted)
        return converted.take(coded.indices)

    def field(self, name: str) -> pa.Field:
        """The column of the Parquet file, with what `of` needs."""
        told = {key: value for key, value in asdict(self).items() if key != "type" and value not in (None, (), False)}
        return pa.field(name, self.type, metadata={KEY: json.dumps(told)})

    @classmethod
    def of(cls, field: pa.Field) -> Reading:
        """How the text of a column was read that stands in a Parquet file."""
        told: dict[str, Any] = json.loads((field.metadata or {}).get(KEY, b"{}"))
        return cls(field.type, **{**told, "missing": tuple(told.get("missing", ()))})

    def _plain(self, values: pa.Array) -> pa.Array:
        """Numbers as Arrow reads them; null where the unit is another."""
        plain = text.plain_numbers(values, self.decimal or ".")
        if self.unit is not None and text.any_matches(values, "[$€£¥₹%]" if self.unit == "" else "."):
            plain = pc.if_else(pc.equal(text.units(values), self.unit), plain, None)
        return plain

    def _integers(self, values: pa.Array) -> pa.Array:
        plain = self._plain(values)
        plain = pc.if_else(text.matches(plain, text.INTEGER), pc.replace_substring_regex(plain, r"\.0*$", ""), None)
        if self.decimal is None and text.any_matches(values, ","):  # 1,200 may be 1200 or 1.2
            plain = pc.if_else(text.matches(values, ","), None, plain)
        try:
            return pc.cast(plain, _INT64)
        except pa.ArrowInvalid:  # 19 digits that are too many
            found = [None if value is None else int(value) for value in plain.to_pylist()]
            return pa.array([n if n is not None and -(2**63) <= n < 2**63 else None for n in found], _INT64)

    def _floats(self, values: pa.Array) -> pa.Array:
        plain = self._plain(values)
        return pc.cast(pc.if_else(text.matches(plain, text.NUMBER), plain, None), pa.float64())

    def _lists(self, values: pa.Array) -> pa.Array:
        lists = [text.split_list(value) if is_list else None for value, is_list in self._bracketed(values)]
        element = self.type.value_type
        flat = pa.array([item for items in lists if items is not None for item in items], pa.string())
        if not pa.types.is_string(element):
            read = Reading(element).convert(flat)
            if read.null_count:
                return pa.nulls(len(values), self.type)
            flat = read
        offsets = np.cumsum([0, *(len(items or ()) for items in lists)], dtype=np.int32)
        mask = pa.array([items is None for items in lists], pa.bool_())
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, type=self.type, mask=mask)

    @staticmethod
    def _bracketed(values: pa.Array) -> Iterator[tuple[str, bool]]:
        return zip(values.to_pylist(), text.matches(values, text.LIST).to_pylist(), strict=True)
