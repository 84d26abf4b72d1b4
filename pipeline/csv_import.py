"""A CSV file as Parquet, with a proposal for its feature schema."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from pipeline.atomic import new_directory
from pipeline.column_profile import LABELS, ColumnProfile, check_names

BLOCK_BYTES = 4 << 20
ROW_GROUP_ROWS = 131_072

HEADER = """\
# Proposed by `rankmixer data csv` from {file} ({rows} rows). Check every line:
# - delete what is not known before the label is, such as a rating or the time of the purchase
# - `group:` puts features of one thing (user, item, context) together
# - ids not seen here are an error with `range`; with `buckets` every value has a place
"""


def import_csv(file: str, out: str, *, delimiter: str = ",") -> None:
    """Write `out`/data/part-00000.parquet with all columns of `file`, and `out`/schema.yaml for the user to edit.

    The first line names the columns; an empty value is null; blanks around a value are dropped; a file ending in .gz
    is decompressed. The file is read twice, in blocks: memory does not grow with it.

    Raises:
        ValueError: no such file, no rows, a row with another number of values than the header (the message says which),
            an empty or repeated column name, text that is not UTF-8; or `out` exists.
    """
    profiles: list[ColumnProfile] = []
    for batch in _batches(file, delimiter):
        profiles = profiles or [ColumnProfile(name) for name in batch.schema.names]
        for profile, chunk in zip(profiles, batch.columns, strict=True):
            profile.update(chunk)
    if not profiles:
        raise ValueError(f"{file} has a header but no rows")
    target = pa.schema([(profile.name, profile.type) for profile in profiles])
    with new_directory(out) as folder:
        (folder / "data").mkdir()
        with pq.ParquetWriter(folder / "data" / "part-00000.parquet", target, write_page_checksum=True) as writer:
            for batches in _grouped(_batches(file, delimiter)):
                table = pa.Table.from_batches(
                    pa.RecordBatch.from_arrays(
                        [profile.convert(chunk) for profile, chunk in zip(profiles, batch.columns, strict=True)],
                        schema=target,
                    )
                    for batch in batches
                )
                writer.write_table(table, row_group_size=len(table))
        (folder / "schema.yaml").write_text(_schema(file, profiles), encoding="utf-8")
    labels = [profile.name for profile in profiles if profile.is_label]
    print(
        f"{file}: {profiles[0].rows} rows, {len(profiles)} columns; now edit {Path(out, 'schema.yaml')}: "
        f"{'labels ' + ', '.join(labels) if labels else 'no label was recognised, name one'}"
    )


def _batches(file: str, delimiter: str) -> Iterator[pa.RecordBatch]:
    """Blocks of the file, every column as strings."""
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file")
    ragged: list[Any] = []
    try:
        with _open(file, delimiter, [], ragged) as reader:
            names = reader.schema.names
        check_names([name.strip() for name in names])
        with _open(file, delimiter, names, ragged) as reader:
            for batch in reader:
                columns = [pc.utf8_trim_whitespace(column) for column in batch.columns]
                columns = [pc.if_else(pc.equal(column, ""), None, column) for column in columns]
                if len(batch):
                    yield pa.RecordBatch.from_arrays(columns, names=[name.strip() for name in names])
    except pa.ArrowInvalid as error:
        if ragged:
            row = ragged[0]
            raise ValueError(
                f"{file}: row {row.number} (the header is row 1, blank lines do not count) has "
                f"{row.actual_columns} values, the header has {row.expected_columns}: {row.text[:80]!r}; "
                f"put values that hold {delimiter!r} in quotes"
            ) from None
        if "Empty CSV" in str(error):
            raise ValueError(f"{file} is empty; expected a line of column names, then rows") from None
        if "UTF8" in str(error):
            raise ValueError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from None
        raise ValueError(f"{file}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _open(file: str, delimiter: str, names: list[str], ragged: list[Any]) -> csv.CSVStreamingReader:
    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    return csv.open_csv(
        file,
        # Rows are numbered only without threads.
        csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse),
        csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True),
    )


def _grouped(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Batches together until they make a row group."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= ROW_GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group


def _schema(file: str, profiles: list[ColumnProfile]) -> str:
    lines = ["features:", *(profile.schema_line() for profile in profiles if not profile.is_label)]
    labels = [profile.schema_line() for profile in profiles if profile.is_label]
    if not labels:
        labels = [f"  # name here the column of 0 and 1 to predict; none is called {' or '.join(LABELS)}"]
    header = HEADER.format(file=Path(file).name, rows=profiles[0].rows)
    return "\n".join([*header.splitlines(), *lines, "labels:", *labels]) + "\n"
