"""Parquet files seen through a schema: every file is checked against it before a row is read."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
from pyarrow import types

from pipeline.decode import Decoder
from pipeline.errors import data_error
from pipeline.features import Cross, Id, IdList, Number, Time
from pipeline.files import ParquetFile, ParquetFiles
from pipeline.ids import IdEncoder
from pipeline.schema import Schema


class ParquetDataset:
    """Files and the schema they agree with.

    Args:
        files: opened files, or the paths, globs, directories or URLs to open.
        schema: the features, and the labels.
        keys: further columns to hand on as they are, such as a user id for grouped metrics.
        labels: False to predict: neither labels nor example weights are read.

    Raises:
        ValueError: no rows, or a key column that the files do not have.
        DataError: a column is missing or has the wrong type; only footers are read to find out.
    """

    def __init__(
        self,
        files: ParquetFiles | str | Sequence[str],
        schema: Schema,
        *,
        keys: Sequence[str] = (),
        labels: bool = True,
    ) -> None:
        self.files = files if isinstance(files, ParquetFiles) else ParquetFiles.open(files)
        self.schema = schema
        self.labels = labels
        uses = list(_uses(schema, labels))
        self.uses = Counter([use.column for use in uses] + list(keys))
        """How often each column is needed to make a block."""
        for file in self.files.files:
            _check(file, uses)
            _check_same(file, self.files.files[0], schema.columns(labels=False), keys)
        if not self.files.num_rows:
            paths = ", ".join(file.path for file in self.files.files[:3])
            raise ValueError(f"{paths}: found {len(self.files.files)} files without a row; expected at least one row")
        self.keys_schema = pa.schema([self.files.schema.field(name) for name in keys])
        self.encoders = {
            name: self._encoder(name, feature)
            for name, feature in schema.features.items()
            if isinstance(feature, Id | IdList)
        }
        self.decoder = Decoder(list(self.uses), {schema.features[name].reads[0] for name in self.encoders})

    def _encoder(self, name: str, feature: Id | IdList) -> IdEncoder:
        strings = _is_string(_element(self.files.schema.field(feature.column).type))
        try:
            return IdEncoder(feature, strings)
        except ValueError as error:
            raise ValueError(f"feature {name!r}: {error}") from None


class _Use(NamedTuple):
    """What a column is for, and what it must be for that."""

    column: str
    purpose: str
    accepts: Callable[[pa.DataType], bool]
    expected: str
    do: str


def _uses(schema: Schema, labels: bool) -> Iterator[_Use]:
    for name, feature in schema.features.items():
        if isinstance(feature, Number):
            yield _Use(feature.column, f"feature {name!r}", _is_number, "numbers", "For ids or strings use `kind: id`.")
        elif isinstance(feature, Time):
            yield from _time_uses(name, feature)
        elif isinstance(feature, Cross):
            pass  # made of features, not of columns
        elif isinstance(feature, Id):
            if feature.range is not None:
                do = "Use `buckets` or `vocabulary` for strings, and `kind: id_list` for lists."
                yield _Use(feature.column, f"feature {name!r}", _is_integer, "integers, because of `range`", do)
            else:
                do = "Use `kind: id_list` for lists, and `kind: number` with `boundaries` for numbers."
                yield _Use(feature.column, f"feature {name!r}", _is_id, "integers or strings", do)
        else:
            yield _list_use(name, feature)
            if feature.weights is not None:
                do = "Write one number for each id, or remove `weights`."
                yield _Use(feature.weights, f"weights of feature {name!r}", _is_number_list, "lists of numbers", do)
    for name, label in schema.labels.items() if labels else ():
        yield _Use(label.column, f"label {name!r}", _is_number, "numbers from 0 to 1", "Convert the column.")
    if labels and schema.weight is not None:
        yield _Use(schema.weight, "example weights", _is_number, "numbers", "Convert the column, or remove `weight`.")


def _time_uses(name: str, feature: Time) -> Iterator[_Use]:
    for column in feature.reads:
        purpose = f"{'reference of ' if column == feature.reference else ''}feature {name!r}"
        if feature.unit is not None:
            yield _Use(
                column, purpose, types.is_integer, "integers, because of `unit`", "Remove `unit` for timestamps."
            )
        else:
            do = "Give the `unit` (s, ms, us or ns) of integers since 1970; convert text."
            yield _Use(column, purpose, _is_time, "timestamps or dates", do)


def _list_use(name: str, feature: IdList) -> _Use:
    if feature.separator is not None:
        do = "Remove `separator` for a list column, and use `kind: id` for one id a row."
        return _Use(feature.column, f"feature {name!r}", _is_string, "strings, because of `separator`", do)
    do = "Use `kind: id` for one id a row, and give a `separator` for strings that hold lists."
    if feature.range is not None:
        return _Use(feature.column, f"feature {name!r}", _is_integer_list, "lists of integers, because of `range`", do)
    return _Use(feature.column, f"feature {name!r}", _is_id_list, "lists of integers or strings", do)


def _check(file: ParquetFile, uses: Sequence[_Use]) -> None:
    for use in uses:
        count = file.schema.names.count(use.column)
        if count != 1:
            near = difflib.get_close_matches(use.column, file.schema.names, n=1)
            do = f"Did you mean {near[0]!r}? " if near and not count else ""
            raise data_error(
                file.path,
                column=use.column,
                found=f"{count} columns of that name" if count else "no such column",
                expected=f"one, for {use.purpose}",
                do=f"{do}The file has: {', '.join(file.schema.names)}.",
            )
        found = file.schema.field(use.column).type
        if not use.accepts(found):
            raise data_error(
                file.path,
                column=use.column,
                found=f"type {found}",
                expected=f"{use.expected}, for {use.purpose}",
                do=use.do,
            )


def _check_same(file: ParquetFile, first: ParquetFile, columns: Sequence[str], keys: Sequence[str]) -> None:
    """What one file has as integers another must not have as strings: their hashes differ. Keys are of one type."""
    for name in [*columns, *keys]:
        if file.schema.names.count(name) != 1:
            have = ", ".join(file.schema.names)
            raise data_error(
                file.path, column=name, found="no such column", expected="one", do=f"The file has: {have}."
            )
        found, expected = file.schema.field(name).type, first.schema.field(name).type
        if _is_string(_element(found)) != _is_string(_element(expected)) or (name in keys and found != expected):
            do = "Write all files with one type."
            raise data_error(
                file.path, column=name, found=f"type {found}", expected=f"{expected} as in {first.path}", do=do
            )


def _element(type_: pa.DataType) -> pa.DataType:
    """What a list holds, or a dictionary encodes."""
    while _is_list(type_) or types.is_dictionary(type_):
        type_ = type_.value_type
    return type_


def _is_list(type_: pa.DataType) -> bool:
    return types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)


def _value(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if types.is_dictionary(type_) else type_


def _is_integer(type_: pa.DataType) -> bool:
    return types.is_integer(_value(type_)) or types.is_boolean(type_)


def _is_string(type_: pa.DataType) -> bool:
    value = _value(type_)
    return types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)


def _is_id(type_: pa.DataType) -> bool:
    return _is_integer(type_) or _is_string(type_)


def _is_integer_list(type_: pa.DataType) -> bool:
    return _is_list(type_) and _is_integer(type_.value_type)


def _is_id_list(type_: pa.DataType) -> bool:
    return _is_list(type_) and _is_id(type_.value_type)


def _is_number(type_: pa.DataType) -> bool:
    return types.is_integer(type_) or types.is_floating(type_) or types.is_boolean(type_) or types.is_decimal(type_)


def _is_time(type_: pa.DataType) -> bool:
    return types.is_timestamp(type_) or types.is_date(type_)


def _is_number_list(type_: pa.DataType) -> bool:
    return _is_list(type_) and _is_number(type_.value_type)
