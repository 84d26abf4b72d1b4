"""Later CSV files as Parquet, with the types and the readings of an earlier import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.pipeline.base.atomic import new_directory
from rankmixer.pipeline.csv.column_fit import shorten
from rankmixer.pipeline.csv.column_reading import Reading, UnreadableError
from rankmixer.pipeline.csv.dialect import CsvOptions
from rankmixer.pipeline.csv.file import Block, CsvFiles, differences
from rankmixer.pipeline.csv.source import table
from rankmixer.pipeline.propose.labels import as_labels, positive_of, read_as
from rankmixer.pipeline.propose.split import PARTS
from rankmixer.pipeline.sources.parquet_part import ParquetPart


def import_like(files: str | Sequence[str], out: str, like: str, *, options: CsvOptions | None = None) -> None:
    """Write CSV files as `out`/part-00000.parquet, each column read as the earlier import read it.

    Columns go by name, in whatever order. Those that the earlier files did not have are kept as text; what is missing,
    new or perhaps renamed is said.

    Args:
        files: paths, globs, directories or URLs; several are one table, and have the same header.
        like: what `out` was then.

    Raises:
        ValueError: the files cannot be read (csv_file.py); a value that the column's type does not have; no column
            that the earlier files had; `like` is no import; or `out` exists.
    """
    earlier = Path(like, PARTS[0], "part-00000.parquet")
    if not earlier.is_file():
        raise ValueError(f"{like} is no import of a CSV: {earlier} is missing; give the --out of an earlier one")
    fields = {field.name: field for field in pq.read_schema(earlier)}
    found = CsvFiles(files, options)
    if not fields.keys() & set(found.names):
        raise ValueError(
            f"{found.name} has none of the columns of {like}: it has {', '.join(found.names)[:80]}, and {like} "
            f"{', '.join(fields)[:80]}; is it without a header? Then name the columns with --names A,B,..."
        )
    target = pa.schema([fields.get(name, pa.field(name, pa.string())) for name in found.names])
    readings = [Reading.of(field) for field in target]
    missing = dict.fromkeys(found.names, 0)
    with new_directory(out) as folder:
        part = ParquetPart(folder, target)
        for block in found.blocks():
            batch = _typed(block, target, readings)
            for name, before, after in zip(found.names, block.batch.columns, batch.columns, strict=True):
                missing[name] += after.null_count - before.null_count
            part.add(batch)
        part.close()
    changed = differences(found.names, list(fields))
    print(f"{found.name}: {part.rows:,} rows, {len(target)} columns, in {out}" + (f"; {changed}" if changed else ""))
    print(*found.notes, sep="\n", end="\n" if found.notes else "")
    if any(missing.values()):
        print(*table([("column", "taken as empty"), *((n, f"{k:,}") for n, k in missing.items() if k)]), sep="\n")


def _typed(block: Block, target: pa.Schema, readings: Sequence[Reading]) -> pa.RecordBatch:
    """Strings as what their columns hold."""
    arrays = []
    for field, reading, chunk in zip(target, readings, block.batch.columns, strict=True):
        try:
            if positive := positive_of(field):  # a word for "no value" is none of the others either
                arrays.append(as_labels(replace(reading, type=read_as(field)).read(chunk), positive))
            else:
                arrays.append(reading.read(chunk))
        except UnreadableError as error:
            raise ValueError(
                f"{block.file}: line {block.lines[error.row]}, column {field.name!r}: found {shorten(error.value)}; "
                f"expected {_expected(field.type)}, as in the earlier file; mend the value, or leave it empty"
            ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=target)


def _expected(type_: pa.DataType) -> str:
    if pa.types.is_timestamp(type_):
        return "a time, such as 2024-06-01T13:59:00Z" if type_.tz else "a time, such as 2024-06-01 13:59:00"
    if pa.types.is_list(type_):
        return f"a list of {type_.value_type} in brackets"
    named = {pa.int8(): "0 or 1", pa.int64(): "an integer", pa.float64(): "a number"}
    return named.get(type_, "a date, such as 2024-06-01")
