"""Which columns a schema reads, for what, and the Arrow types that will do for it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
from pyarrow import types

from rankmixer.pipeline.base.errors import data_error
from rankmixer.pipeline.files.parquet_file import ParquetFile
from rankmixer.pipeline.schema.features import Cross, Id, IdList, Number, Time
from rankmixer.pipeline.schema.schema import Schema

_OTHER_KINDS = "`kind: id_list` for lists, `kind: time` for times"


class Use(NamedTuple):
    """What a column is for, and what it must be for that."""

    column: str
    purpose: str
    accepts: Callable[[pa.DataType], bool]
    expected: str
    do: str


def uses_of(schema: Schema, labels: bool) -> Iterator[Use]:
    for name, feature in schema.features.items():
        if isinstance(feature, Number):
            yield Use(feature.column, f"feature {name!r}", _is_number, "numbers", "For ids or strings use `kind: id`.")
        elif isinstance(feature, Time):
            yield from _time_uses(name, feature)
        elif isinstance(feature, Cross):
            pass  # made of features, not of columns
        elif isinstance(feature, Id):
            if feature.values is not None:
                yield Use(feature.column, f"feature {name!r}", *_hashed(feature.values, ""))
            elif feature.range is not None:
                do = f"Use `buckets` or `vocabulary` for strings, {_OTHER_KINDS}"
                yield Use(feature.column, f"feature {name!r}", _is_integer, "integers, because of `range`", do)
            else:
                do = f"Use {_OTHER_KINDS}, or write the column as integers or text."
                yield Use(feature.column, f"feature {name!r}", _is_id, "integers or strings", do)
        else:
            yield _list_use(name, feature)
            if feature.weights is not None:
                do = "Write one number for each id, or remove `weights`."
                yield Use(feature.weights, f"weights of feature {name!r}", _is_number_list, "lists of numbers", do)
    for name, label in schema.labels.items() if labels else ():
        yield Use(label.column, f"label {name!r}", _is_number, "numbers from 0 to 1", "Convert the column.")
    if labels and schema.weight is not None:
        yield Use(schema.weight, "example weights", _is_number, "numbers", "Convert the column, or remove `weight`.")


def _time_uses(name: str, feature: Time) -> Iterator[Use]:
    for column in feature.reads:
        purpose = f"{'reference of ' if column == feature.reference else ''}feature {name!r}"
        if feature.unit is not None:
            yield Use(column, purpose, _is_count, "integers, because of `unit`", "Remove `unit` for timestamps.")
        else:
            do = "Give the `unit` (s, ms, us or ns) of integers since 1970; convert text."
            yield Use(column, purpose, _is_time, "timestamps or dates", do)


def _list_use(name: str, feature: IdList) -> Use:
    if feature.separator is not None:
        do = "Remove `separator` for a list column, and use `kind: id` for one id a row."
        return Use(feature.column, f"feature {name!r}", is_string, "strings, because of `separator`", do)
    if feature.values is not None:
        return Use(feature.column, f"feature {name!r}", *_hashed(feature.values, "lists of "))
    do = "Use `kind: id` for one id a row, and give a `separator` for strings that hold lists."
    if feature.range is not None:
        return Use(feature.column, f"feature {name!r}", _is_integer_list, "lists of integers, because of `range`", do)
    return Use(feature.column, f"feature {name!r}", _is_id_list, "lists of integers or strings", do)


def _hashed(values: str, of: str) -> tuple[Callable[[pa.DataType], bool], str, str]:
    """For ids whose hashes have been trained: what is accepted, what is expected, what to do."""
    is_value = is_string if values == "strings" else _is_integer
    accepts = (lambda type_: _is_list(type_) and is_value(type_.value_type)) if of else is_value
    do = "Write the column as when the model was trained: the hash of 7 is another than that of '7'."
    return accepts, f"{of}{values}, as `values` says", do


def check(file: ParquetFile, uses: Sequence[Use]) -> None:
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


def element(type_: pa.DataType) -> pa.DataType:
    """What a list holds, or a dictionary encodes."""
    while _is_list(type_) or types.is_dictionary(type_):
        type_ = type_.value_type
    return type_


def _is_list(type_: pa.DataType) -> bool:
    return types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)


_TEXT = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
# A column that is null in all rows of a file may have the type null there.
_NUMBERS = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)


def _value(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if types.is_dictionary(type_) else type_


def _is_integer(type_: pa.DataType) -> bool:
    """Whether it may hold integers: as floats and decimals too, as warehouses write those that can be null."""
    return types.is_integer(_value(type_)) or _is_number(type_)


def is_string(type_: pa.DataType) -> bool:
    """Whether it may hold text: as bytes too."""
    value = _value(type_)
    return types.is_null(value) or any(is_text(value) for is_text in _TEXT)


def _is_id(type_: pa.DataType) -> bool:
    return _is_integer(type_) or is_string(type_)


def _is_integer_list(type_: pa.DataType) -> bool:
    return _is_list(type_) and _is_integer(type_.value_type)


def _is_id_list(type_: pa.DataType) -> bool:
    return _is_list(type_) and _is_id(type_.value_type)


def _is_number(type_: pa.DataType) -> bool:
    return any(is_number(type_) for is_number in _NUMBERS)


def _is_time(type_: pa.DataType) -> bool:
    return types.is_timestamp(type_) or types.is_date(type_) or types.is_null(type_)


def _is_count(type_: pa.DataType) -> bool:
    return types.is_integer(type_) or types.is_null(type_)


def _is_number_list(type_: pa.DataType) -> bool:
    return _is_list(type_) and _is_number(type_.value_type)
