"""A CSV file in blocks of strings."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

BLOCK_BYTES = 4 << 20
DELIMITERS = (",", ";", "\t", "|")


def read_blocks(file: str, delimiter: str | None = None) -> Iterator[pa.RecordBatch]:
    """Blocks of the file, every column as strings.

    The first line names the columns; an empty value is null; blanks around a value are dropped; a file ending in .gz
    is decompressed. Without a `delimiter` it is the one of `DELIMITERS` that the first line has most of.

    Raises:
        ValueError: no such file, no rows, a row with another number of values than the header (the message says which),
            an empty or repeated column name, text that is not UTF-8.
    """
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file")
    delimiter = delimiter or delimiter_of(file)
    ragged: list[Any] = []
    rows = 0
    try:
        with _open(file, delimiter, [], ragged) as reader:
            names = reader.schema.names
        _check_names(file, [name.strip() for name in names])
        with _open(file, delimiter, names, ragged) as reader:
            for batch in reader:
                columns = [pc.utf8_trim_whitespace(column) for column in batch.columns]
                columns = [pc.if_else(pc.equal(column, ""), None, column) for column in columns]
                rows += len(batch)
                if len(batch):
                    yield pa.RecordBatch.from_arrays(columns, names=[name.strip() for name in names])
    except pa.ArrowInvalid as error:
        if ragged:
            row = ragged[0]
            raise ValueError(
                f"{file}: row {row.number} (the header is row 1, blank lines do not count) has "
                f"{row.actual_columns} values, the header has {row.expected_columns}: {row.text[:80]!r}; "
                f"put values that hold {delimiter!r} in quotes, or name another --delimiter"
            ) from None
        if "Empty CSV" in str(error):
            raise ValueError(f"{file} is empty; expected a line of column names, then rows") from None
        if "UTF8" in str(error):
            raise ValueError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from None
        raise ValueError(f"{file}: {error}") from None
    if not rows:
        raise ValueError(f"{file} has a header but no rows")


def delimiter_of(file: str) -> str:
    """The delimiter that the first line has most of, outside of quotes; a comma if it has none."""
    with pa.input_stream(file) as stream:
        line = stream.read(1 << 16).split(b"\n")[0].decode("utf-8", "replace")
    bare = re.sub(r'"[^"]*"', "", line)
    return max(DELIMITERS, key=bare.count)


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


def _check_names(file: str, names: Sequence[str]) -> None:
    """Refuse a header with an empty or repeated name."""
    for index, name in enumerate(names):
        if not name:
            raise ValueError(f"{file}: column {index + 1} has no name; name it in the first line, or delete it")
        if name in names[:index]:
            first = names.index(name) + 1
            raise ValueError(f"{file}: columns {first} and {index + 1} are both named {name!r}; rename or delete one")
