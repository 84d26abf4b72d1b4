"""Which columns can group rows for GAUC: those whose equal values are equal bit for bit, as integers or as strings."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import types

_AS_INTEGERS = (
    (types.is_boolean, pa.uint8()),
    (types.is_date32, pa.int32()),
    (types.is_time32, pa.int32()),
    (types.is_date64, pa.int64()),
    (types.is_time64, pa.int64()),
    (types.is_timestamp, pa.int64()),
    (types.is_duration, pa.int64()),
)
_AS_BYTES = (types.is_fixed_size_binary, types.is_binary, types.is_large_binary, types.is_binary_view)


def check_groupable(type_: pa.DataType, column: str) -> pa.DataType:
    """Check that the values of a column are equal or not, without a doubt; return the type that they are compared as.

    Raises:
        ValueError: it holds floating-point numbers, lists, structures, or nothing but null.

    >>> check_groupable(pa.dictionary(pa.int8(), pa.date32()), "day")
    DataType(int32)
    """
    if types.is_dictionary(type_):
        type_ = type_.value_type
    if types.is_integer(type_) or types.is_string(type_) or types.is_large_string(type_):
        return type_
    if types.is_decimal(type_):
        return pa.string()  # of one scale in all files, so that equal numbers are written alike
    if types.is_string_view(type_):
        return pa.large_string()
    if any(is_bytes(type_) for is_bytes in _AS_BYTES):
        return pa.large_binary()
    for is_it, integers in _AS_INTEGERS:
        if is_it(type_):
            return integers
    if types.is_floating(type_):
        do = "floating-point numbers are no ids: write the column as integers or strings"
    elif types.is_null(type_):
        do = "no row has a value: write the ids, or leave metrics.group out"
    else:
        do = "write one id a row"
    raise ValueError(
        f"metrics.group: column {column} is {type_}; expected integers, strings, bytes, booleans, decimals, dates or "
        f"times; {do}"
    )


def group_values(array: pa.Array, column: str) -> pa.Array:
    """A column as integers, strings or bytes, equal where its values are.

    Raises:
        ValueError: as `check_groupable`.

    >>> group_values(pa.array([True, None]), "is_new").to_pylist()
    [1, None]
    """
    type_ = check_groupable(array.type, column)
    if types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    return array.cast(type_)
