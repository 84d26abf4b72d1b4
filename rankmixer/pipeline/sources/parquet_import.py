"""Parquet of any origin as training data: split, columns cast, with a proposed schema (`rankmixer data parquet`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.pipeline.base.atomic import new_directory
from rankmixer.pipeline.files.decode import Decoder
from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.propose.labels import as_labels, is_label, positive_of
from rankmixer.pipeline.propose.split import PARTS
from rankmixer.pipeline.sources.import_table import BATCH_ROWS, import_table, propose_only
from rankmixer.pipeline.sources.parquet_part import ParquetPart
from rankmixer.pipeline.sources.parquet_types import (
    as_readable,
    fits_int64,
    is_bytes,
    is_cast,
    is_utf8,
    is_whole,
    readable,
    value_type,
    without_dictionaries,
)

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
    asked: Sequence[str] = ()

    def __init__(self, paths: Sequence[str], *, as_they_lie: bool = False) -> None:
        self._parquet = ParquetFiles.open(list(paths))
        self.files = list(paths)
        self.name = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        if not self._parquet.num_rows:
            raise ValueError(f"{self.name}: no file has a row; expected at least one row")
        self.raw = self._unified()
        self.left_out: dict[str, str] = {}
        fields = []
        for field in self.raw:
            target, reason = readable(field.type)
            if reason is not None:
                self.left_out[field.name] = reason
            elif as_they_lie and is_cast(field.type):
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
        for raw in self.pieces(columns):
            yield pa.RecordBatch.from_arrays(
                [as_readable(array, field.type) for array, field in zip(raw.columns, target, strict=True)],
                schema=target,
            )

    def _unified(self) -> pa.Schema:
        """One schema for all files; what they have in different widths is as wide as the widest."""
        schemas = list({id(file.schema): without_dictionaries(file.schema) for file in self._parquet.files}.values())
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
            for field in without_dictionaries(file.schema):
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
            raw = value_type(self.raw.field(field.name).type)
            if pa.types.is_decimal(raw):
                casts[field.name] = fits_int64
            elif pa.types.is_float64(raw) or pa.types.is_float32(raw):
                casts[field.name] = is_whole
            elif is_bytes(raw):
                casts[field.name] = is_utf8
        fits = self._scan(list(casts), lambda name, array: casts[name](array))
        fields = []
        for field in self.schema:
            if field.name in fits and casts[field.name] is not is_utf8:
                field = pa.field(field.name, pa.int64())
            elif field.name in casts and casts[field.name] is fits_int64:
                if value_type(self.raw.field(field.name).type).scale <= 0:
                    field = pa.field(field.name, pa.string())  # a double would lose digits of ids
            elif field.name in casts and field.name not in fits and casts[field.name] is is_utf8:
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
            for piece in self.pieces(left, [group]):
                left = [name for name in left if goes_on(name, piece[name])]
        return set(left)

    def pieces(self, columns: Sequence[str], groups: Any = None) -> Iterator[pa.RecordBatch]:
        """Columns as they are in the files, null where a file lacks one."""
        for group in self._parquet.row_groups if groups is None else groups:
            file = self._parquet.files[group.file]
            there = [name for name in columns if name in file.schema.names]
            decoder = Decoder(there or file.schema.names[:1], set(), self._parquet.watch)
            for piece in decoder.stream(file, group.index, BATCH_ROWS):
                arrays = [
                    piece[name] if name in there else pa.nulls(len(piece), value_type(self.raw.field(name).type))
                    for name in columns
                ]
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def _lacking(self, name: str) -> list[str]:
        return [file.path for file in self._parquet.files if name not in file.schema.names]

    @property
    def hints(self) -> list[str]:
        """What else the files say that is not read."""
        keys = {key for file in self._parquet.files for key in HIVE.findall(file.path)} - set(self.raw.names)
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
    if split:
        import_table(lambda _: ParquetSource(paths), out, labels=labels, positive=positive, time=time)
    else:
        propose_only(ParquetSource(paths, as_they_lie=True), out, labels=labels)


def import_parquet_like(paths: Sequence[str], out: str, like: str) -> None:
    """Write files as `out`/part-00000.parquet, their columns in the types of an earlier import.

    Labels become 0 and 1 as they did then. Columns that the earlier files did not have are kept where training reads
    their type.

    Args:
        like: what `out` was then.

    Raises:
        ValueError: as ParquetSource; a value that the column's type has not; `like` is no import; `out` exists.
    """
    earlier = Path(like, PARTS[0], "part-00000.parquet")
    if not earlier.is_file():
        raise ValueError(f"{like} is no import: {earlier} is missing; give the --out of an earlier one")
    known = {field.name: field for field in pq.read_schema(earlier)}
    source = ParquetSource(paths)
    names = [name for name in source.raw.names if name in known or name in source.schema.names]
    target = pa.schema([known[name] if name in known else source.schema.field(name) for name in names])
    with new_directory(out) as folder:
        part = ParquetPart(folder, target)
        for raw in source.pieces(names):
            arrays = [
                _like(source.name, part.rows, array, field) for array, field in zip(raw.columns, target, strict=True)
            ]
            part.add(pa.RecordBatch.from_arrays(arrays, schema=target))
        part.close()
    missing = ", ".join(name for name in known if name not in names)
    without = f"; without {missing}, which {like} has" if missing else ""
    print(f"{source.name}: {part.rows:,} rows, {len(target)} columns{without}")
    for name, reason in source.left_out.items():
        if name not in known:
            print(f"left out {name}: {reason}")


def _like(source: str, first: int, array: pa.Array, field: pa.Field) -> pa.Array:
    def cast(some: pa.Array) -> pa.Array:
        return as_labels(some, positive_of(field)) if is_label(field) else as_readable(some, field.type)

    try:
        return cast(array)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        for row in range(len(array)):
            try:
                cast(array.slice(row, 1))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise ValueError(
                    f"{source}: row {first + row} of the files in their order, column {field.name!r}: found "
                    f"{array[row].as_py()!r}, of type {array.type}; expected {field.type} as in the earlier import; "
                    "mend the value, or make it null"
                ) from None
        raise
