"""A CSV file as Parquet, with a proposal for its feature schema and configuration."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.atomic import new_directory
from pipeline.column_profile import ColumnProfile, as_type
from pipeline.csv_file import read_blocks
from pipeline.import_table import ParquetPart, import_table
from pipeline.labels import as_labels, positive_of
from pipeline.split import PARTS


class CsvSource:
    """A CSV as typed batches; its types are those that all rows fit, found in a first pass.

    Raises:
        ValueError: the file cannot be read (csv_file.py).
    """

    command = "data csv"
    files: Sequence[str] = ()
    hints: Sequence[str] = ()

    def __init__(self, file: str, delimiter: str | None = None) -> None:
        self.name = file
        self.left_out: dict[str, str] = {}
        self._delimiter = delimiter
        self._profiles: dict[str, ColumnProfile] = {}
        for block in read_blocks(file, delimiter):
            self._profiles = self._profiles or {name: ColumnProfile(name) for name in block.schema.names}
            for profile, chunk in zip(self._profiles.values(), block.columns, strict=True):
                profile.update(chunk)
        self.schema = pa.schema([(profile.name, profile.type) for profile in self._profiles.values()])

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows of some columns."""
        target = pa.schema([self.schema.field(name) for name in columns])
        number = 2
        for block in read_blocks(self.name, self._delimiter):
            yield _typed(self.name, block.select(target.names), target, number)
            number += len(block)


def import_csv(
    file: str,
    out: str,
    *,
    labels: Sequence[str] = (),
    positive: Sequence[str] = (),
    time: str | None = None,
    delimiter: str | None = None,
) -> None:
    """Write all columns of `file` as Parquet, and proposals: import_table.py says what.

    The file is read twice, with `time` three times, in blocks: memory does not grow with it. csv_file.py says what
    a CSV may look like.

    Args:
        delimiter: default: the one that the first line has most of.

    Raises:
        ValueError: the file cannot be read (csv_file.py); and as import_table.
    """
    import_table(lambda _: CsvSource(file, delimiter), out, labels=labels, positive=positive, time=time)


def import_like(file: str, out: str, like: str, *, delimiter: str | None = None) -> None:
    """Write `file` as `out`/part-00000.parquet, its columns in the types of an earlier import.

    Columns that the earlier file did not have are kept as text.

    Args:
        like: what `out` was then.

    Raises:
        ValueError: the file cannot be read (csv_file.py); a value that the column's type does not have; `like` is no
            import; or `out` exists.
    """
    earlier = Path(like, PARTS[0], "part-00000.parquet")
    if not earlier.is_file():
        raise ValueError(f"{like} is no import of a CSV: {earlier} is missing; give the --out of an earlier one")
    fields = {field.name: field for field in pq.read_schema(earlier)}
    with new_directory(out) as folder:
        part, number = None, 2
        for block in read_blocks(file, delimiter):
            target = pa.schema([fields.get(name, pa.field(name, pa.string())) for name in block.schema.names])
            part = part or ParquetPart(folder, target)
            part.add(_typed(file, block, target, number))
            number += len(block)
        assert part is not None
        part.close()
    missing = ", ".join(fields.keys() - set(target.names))
    without = f"; without {missing}, which {like} has" if missing else ""
    print(f"{file}: {part.rows:,} rows, {len(target)} columns{without}")


def _typed(file: str, block: pa.RecordBatch, target: pa.Schema, first: int) -> pa.RecordBatch:
    """Strings as what their columns hold; `first` is the number of the first row, the header being 1."""
    arrays = []
    for field, chunk in zip(target, block.columns, strict=True):
        try:
            arrays.append(_as_field(chunk, field))
        except pa.ArrowInvalid:
            row = next(row for row in range(len(chunk)) if not _has(chunk.slice(row, 1), field))
            raise ValueError(
                f"{file}: row {first + row} (the header is row 1, blank lines do not count), column {field.name!r}: "
                f"found {chunk[row].as_py()!r}; expected {_expected(field.type)}, as in the earlier file; mend the "
                "value, or leave it empty"
            ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=target)


def _expected(type_: pa.DataType) -> str:
    if pa.types.is_timestamp(type_):
        return "a time, such as 2024-06-01T13:59:00Z" if type_.tz else "a time, such as 2024-06-01 13:59:00"
    named = {pa.int8(): "0 or 1", pa.int64(): "an integer", pa.float64(): "a number"}
    return named.get(type_, "a date, such as 2024-06-01")


def _as_field(chunk: pa.Array, field: pa.Field) -> pa.Array:
    return as_labels(chunk, positive_of(field)) if field.type == pa.int8() else as_type(chunk, field.type)


def _has(value: pa.Array, field: pa.Field) -> bool:
    try:
        _as_field(value, field)
    except pa.ArrowInvalid:
        return False
    return True
