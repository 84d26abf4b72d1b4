"""Which Arrow types training reads, what others become, and the casts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.propose.column_facts import is_list, is_text

EXACT = 1 << 53  # whole doubles up to it are what they say


def readable(type_: pa.DataType) -> tuple[pa.DataType, str | None]:
    """The type that training reads in place of another; or why there is none.

    >>> readable(pa.dictionary(pa.int32(), pa.large_string()))
    (DataType(large_string), None)
    >>> readable(pa.struct({"a": pa.int8()}))[1]
    'a struct; write its fields as columns of their own'
    """
    type_ = value_type(type_)
    if pa.types.is_null(type_):
        return type_, "empty in every row"
    if pa.types.is_struct(type_) or pa.types.is_map(type_):
        kind = "map" if pa.types.is_map(type_) else "struct"
        return type_, f"a {kind}; write its fields as columns of their own"
    if is_list(type_):
        element = value_type(type_.value_type)
        target, _ = readable(element)
        if pa.types.is_integer(target) or (is_text(target) and not is_bytes(element)):
            return (pa.large_list if pa.types.is_large_list(type_) else pa.list_)(target), None
        return type_, f"lists of {element}; lists hold integers or text"
    if pa.types.is_date(type_):
        return pa.date32(), None
    if pa.types.is_decimal(type_) or pa.types.is_float16(type_):
        return pa.float64() if pa.types.is_decimal(type_) else pa.float32(), None
    if is_bytes(type_) or pa.types.is_string_view(type_):
        is_large = pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_) or pa.types.is_string_view(type_)
        return pa.large_string() if is_large else pa.string(), None
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_) or is_text(type_):
        return type_, None
    if pa.types.is_timestamp(type_):
        return type_, None
    return type_, f"{type_}, of which no feature is made; write it as a number or text"


def as_readable(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """A column in the type that `readable`, or a look at its values, gave it.

    >>> as_readable(pa.array([1.0, None, float("nan")]), pa.int64()).to_pylist()
    [1, None, None]
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_list(array.type) and array.type != type_:
        return _as_lists(array, type_)
    if pa.types.is_floating(array.type) and pa.types.is_integer(type_):
        array = without_nan(array)
    if pa.types.is_fixed_size_binary(array.type):
        array = array.cast(pa.binary())
    return array if array.type == type_ else array.cast(type_)


def is_bytes(type_: pa.DataType) -> bool:
    is_any = pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_)
    return is_any or pa.types.is_binary_view(type_)


def _as_lists(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Lists of another kind, or of other elements."""
    values = as_readable(array.flatten(), type_.value_type)
    lengths_N = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    ends = np.concatenate([[0], np.cumsum(lengths_N)])
    offsets = pa.array(ends, pa.int64() if pa.types.is_large_list(type_) else pa.int32())
    kind = pa.LargeListArray if pa.types.is_large_list(type_) else pa.ListArray
    return kind.from_arrays(offsets, values, mask=array.is_null() if array.null_count else None)


def without_dictionaries(schema: pa.Schema) -> pa.Schema:
    """Without what one file of a table may have and another not: dictionaries, metadata, columns that are not null."""
    return pa.schema([pa.field(field.name, value_type(field.type)) for field in schema])


def value_type(type_: pa.DataType) -> pa.DataType:
    """What is in a dictionary or an extension type."""
    while pa.types.is_dictionary(type_) or isinstance(type_, pa.BaseExtensionType):
        type_ = type_.value_type if pa.types.is_dictionary(type_) else type_.storage_type
    return type_


def is_cast(type_: pa.DataType) -> bool:
    """Whether the reader of features does not take it as it is."""
    return is_bytes(type_) or isinstance(type_, pa.BaseExtensionType) or pa.types.is_float16(type_)


def without_nan(array: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)


def is_whole(array: pa.Array) -> bool:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary
    x = array.cast(pa.float64()).drop_null().to_numpy()
    x = x[~np.isnan(x)]
    return bool(np.all((np.abs(x) <= EXACT) & (x == np.trunc(x))))


def fits_int64(array: pa.Array) -> bool:
    try:
        as_readable(array, pa.int64())
    except pa.ArrowInvalid:
        return False
    return True


def is_utf8(array: pa.Array) -> bool:
    try:
        as_readable(array, pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True
