"""Parquet of any origin as training data: split, columns cast, with a proposed schema (`rankmixer data parquet`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.column_facts import is_list, is_text
from pipeline.decode import Decoder
from pipeline.files import ParquetFiles
from pipeline.import_table import BATCH_ROWS, import_table, propose_only
from pipeline.labels import Found, text_of

MANY_VALUES = 1000  # of a column that may be a label; with more it is none
EXACT = 1 << 53  # whole doubles up to it are what they say
HIVE = re.compile(r"/([^/=]+)=[^/]*(?=/)")


class ParquetSource:
    """Parquet files as one table, in the types that training reads.

    Dictionaries are decoded; decimals and doubles that are whole in every row, as warehouses and pandas write integers
    with nulls, become integers; decimals without a fraction that are too long for that, and bytes that are UTF-8,
    become text; other decimals doubles. Structs, maps, lists of anything but integers or text, times of day, durations
    and other bytes are left out, by name. A column that a file lacks is empty there.

    Args:
        paths: paths, globs, directories or URLs.
        as_they_lie: the files are to be trained on as they are: a column that would have to be cast is left out.

    Raises:
        ValueError: no such files, or columns of types that have nothing in common.
        DataError: a file that cannot be read.
    """

    command = "data parquet"

    def __init__(self, paths: Sequence[str], *, as_they_lie: bool = False) -> None:
        self._parquet = ParquetFiles.open(list(paths))
        self.files = list(paths)
        self.name = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        if not self._parquet.num_rows:
            raise ValueError(f"{self.name}: no file has a row; expected at least one row")
        self._raw = self._unified()
        self.left_out: dict[str, str] = {}
        fields = []
        for field in self._raw:
            target, reason = readable(field.type)
            if reason is not None:
                self.left_out[field.name] = reason
            elif as_they_lie and _is_cast(field.type):
                self.left_out[field.name] = f"{field.type}, which training does not read; without --no-split it is cast"
            elif as_they_lie and self._lacking(field.name):
                self.left_out[field.name] = (
                    f"not in {self._lacking(field.name)[0]}; without --no-split it is empty there"
                )
            else:
                fields.append(pa.field(field.name, target))
        self.schema = pa.schema(fields)
        if not as_they_lie:
            self._settle()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows of some columns, in pieces of BATCH_ROWS rows."""
        target = pa.schema([self.schema.field(name) for name in columns])
        for raw in self._pieces(columns):
            yield pa.RecordBatch.from_arrays(
                [as_readable(array, field.type) for array, field in zip(raw.columns, target, strict=True)],
                schema=target,
            )

    def found(self, columns: Sequence[str]) -> dict[str, Found]:
        """What columns hold that may be labels; a column is read no farther than where it has MANY_VALUES values."""
        values: dict[str, set[str]] = {name: set() for name in columns}
        nulls = dict.fromkeys(columns, 0)

        def look(name: str, array: pa.Array) -> bool:
            array = as_readable(array, self.schema.field(name).type)
            if pa.types.is_floating(array.type):
                array = _without_nan(array)
            nulls[name] += array.null_count
            values[name].update(map(text_of, array.unique().drop_null().to_pylist()))
            return len(values[name]) <= MANY_VALUES

        more = set(columns) - self._scan(columns, look)
        return {name: Found(frozenset(values[name]), nulls[name], name in more) for name in columns}

    def _unified(self) -> pa.Schema:
        """One schema for all files; what they have in different widths is as wide as the widest."""
        schemas = list({id(file.schema): _plain(file.schema) for file in self._parquet.files}.values())
        for file in self._parquet.files:
            for name in file.schema.names:
                if file.schema.names.count(name) > 1:
                    raise ValueError(f"{file.path}: two columns are named {name!r}; rename one")
        try:
            return pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException:
            raise ValueError(self._apart()) from None

    def _apart(self) -> str:
        first: dict[str, tuple[str, pa.Field]] = {}
        for file in self._parquet.files:
            for field in _plain(file.schema):
                path, other = first.setdefault(field.name, (file.path, field))
                try:
                    pa.unify_schemas([pa.schema([field]), pa.schema([other])], promote_options="permissive")
                except pa.ArrowException:
                    return (
                        f"{file.path}: column {field.name!r} is {field.type}, in {path} it is {other.type}; write all "
                        "files with one type"
                    )
        return f"{self.name}: the files' columns have types that do not go together"

    def _settle(self) -> None:
        """Decide by the values of doubles, decimals and bytes what they are."""
        casts: dict[str, Callable[[pa.Array], bool]] = {}
        for field in self.schema:
            raw = _value_type(self._raw.field(field.name).type)
            if pa.types.is_decimal(raw):
                casts[field.name] = _fits_int64
            elif pa.types.is_float64(raw) or pa.types.is_float32(raw):
                casts[field.name] = _is_whole
            elif is_bytes(raw):
                casts[field.name] = _is_utf8
        fits = self._scan(list(casts), lambda name, array: casts[name](array))
        fields = []
        for field in self.schema:
            if field.name in fits and casts[field.name] is not _is_utf8:
                field = pa.field(field.name, pa.int64())
            elif field.name in casts and casts[field.name] is _fits_int64:
                if _value_type(self._raw.field(field.name).type).scale <= 0:
                    field = pa.field(field.name, pa.string())  # a double would lose digits of ids
            elif field.name in casts and field.name not in fits and casts[field.name] is _is_utf8:
                self.left_out[field.name] = "bytes that are no text in UTF-8; write ids as text or integers"
                continue
            fields.append(field)
        self.schema = pa.schema(fields)

    def _scan(self, columns: Sequence[str], goes_on: Callable[[str, pa.Array], bool]) -> set[str]:
        """Show columns piece by piece, each until it has been seen enough of; those that were not."""
        left = list(columns)
        for group in self._parquet.row_groups:
            if not left:
                break
            for piece in self._pieces(left, [group]):
                left = [name for name in left if goes_on(name, piece[name])]
        return set(left)

    def _pieces(self, columns: Sequence[str], groups: Any = None) -> Iterator[pa.RecordBatch]:
        """Columns as they are in the files, null where a file lacks one."""
        for group in self._parquet.row_groups if groups is None else groups:
            file = self._parquet.files[group.file]
            there = [name for name in columns if name in file.schema.names]
            decoder = Decoder(there or file.schema.names[:1], set(), self._parquet.watch)
            for piece in decoder.stream(file, group.index, BATCH_ROWS):
                arrays = [
                    piece[name] if name in there else pa.nulls(len(piece), _value_type(self._raw.field(name).type))
                    for name in columns
                ]
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def _lacking(self, name: str) -> list[str]:
        return [file.path for file in self._parquet.files if name not in file.schema.names]

    @property
    def hints(self) -> list[str]:
        """What else the files say that is not read."""
        keys = {key for file in self._parquet.files for key in HIVE.findall(file.path)} - set(self._raw.names)
        said = [f"{key}=... in the paths is no column of the files, and is not read" for key in sorted(keys)]
        for name in self.schema.names:
            if lacking := self._lacking(name):
                said.append(f"{name} is not in {lacking[0]}" + f" and {len(lacking) - 1} more" * (len(lacking) > 1))
        return said


def import_parquet(
    paths: Sequence[str],
    out: str,
    *,
    labels: Sequence[str] = (),
    positive: Sequence[str] = (),
    time: str | None = None,
    split: bool = True,
) -> None:
    """Write all columns of Parquet files as training, validation and test files with proposals: import_table.py.

    Read in pieces: memory does not grow with the files. Without a `split` no row is copied: the configuration names the
    files as they lie.

    Raises:
        ValueError: as ParquetSource and import_table; or what needs rows to be written, without a split.
    """
    if not split and (positive or time is not None):
        raise ValueError("--no-split writes no rows: leave out --positive and --time, or --no-split")
    source = ParquetSource(paths, as_they_lie=not split)
    if split:
        import_table(source, out, labels=labels, positive=positive, time=time)
    else:
        propose_only(source, out, labels=labels)


def readable(type_: pa.DataType) -> tuple[pa.DataType, str | None]:
    """The type that training reads in place of another; or why there is none.

    >>> readable(pa.dictionary(pa.int32(), pa.large_string()))
    (DataType(large_string), None)
    >>> readable(pa.struct({"a": pa.int8()}))[1]
    'a struct; write its fields as columns of their own'
    """
    type_ = _value_type(type_)
    if pa.types.is_null(type_):
        return type_, "empty in every row"
    if pa.types.is_struct(type_) or pa.types.is_map(type_):
        kind = "map" if pa.types.is_map(type_) else "struct"
        return type_, f"a {kind}; write its fields as columns of their own"
    if is_list(type_):
        element = _value_type(type_.value_type)
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
        array = _without_nan(array)
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


def _plain(schema: pa.Schema) -> pa.Schema:
    """Without what one file of a table may have and another not: dictionaries, metadata, columns that are not null."""
    return pa.schema([pa.field(field.name, _value_type(field.type)) for field in schema])


def _value_type(type_: pa.DataType) -> pa.DataType:
    """What is in a dictionary or an extension type."""
    while pa.types.is_dictionary(type_) or isinstance(type_, pa.BaseExtensionType):
        type_ = type_.value_type if pa.types.is_dictionary(type_) else type_.storage_type
    return type_


def _is_cast(type_: pa.DataType) -> bool:
    """Whether the reader of features does not take it as it is."""
    return is_bytes(type_) or isinstance(type_, pa.BaseExtensionType) or pa.types.is_float16(type_)


def _without_nan(array: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)


def _is_whole(array: pa.Array) -> bool:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary
    x = array.cast(pa.float64()).drop_null().to_numpy()
    x = x[~np.isnan(x)]
    return bool(np.all((np.abs(x) <= EXACT) & (x == np.trunc(x))))


def _fits_int64(array: pa.Array) -> bool:
    try:
        as_readable(array, pa.int64())
    except pa.ArrowInvalid:
        return False
    return True


def _is_utf8(array: pa.Array) -> bool:
    try:
        as_readable(array, pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True
