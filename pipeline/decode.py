"""Row groups -> Arrow columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.errors import data_error
from pipeline.files import ParquetFile

COLUMNWISE_ROWS = 32_768
Read = Callable[[str], list[pa.Array]]


class Decoder:
    """Decodes columns; those with strings for ids come as dictionaries, unless their values hardly repeat.

    Args:
        columns: all that will be asked for.
        ids: those of them that hold ids.
    """

    def __init__(self, columns: Sequence[str], ids: set[str]) -> None:
        self._columns = list(columns)
        self._ids = ids
        self._dictionaries: set[str] | None = None  # columns of strings, the same in all files, as far as they repeat

    def open(self, file: ParquetFile, row_group: int, rows: int, stack: ExitStack) -> Read:
        """A function to call once for each column, until `stack` closes.

        A large row group of a local file is decoded column by column, so that what is done with one finds it in the
        cache, and the next one its memory. One by one they would cost a small row group too much time, and a network
        as many requests: there all are decoded at once.
        """
        with _decoding(file, row_group):
            if file.filesystem is None and rows >= COLUMNWISE_ROWS:
                return partial(self._column, file, row_group, stack.enter_context(self._reader(file)))
            with self._reader(file) as reader:
                table = reader.read_row_group(row_group, columns=self._columns, use_threads=False)
        return {name: self._chunks(name, table[name]) for name in self._columns}.pop

    def stream(self, file: ParquetFile, row_group: int, rows: int) -> Iterator[pa.RecordBatch]:
        """A row group in pieces of at most `rows` rows."""
        with _decoding(file, row_group), self._reader(file) as reader:
            yield from reader.iter_batches(rows, row_groups=[row_group], columns=self._columns, use_threads=False)

    def _column(self, file: ParquetFile, row_group: int, reader: pq.ParquetFile, name: str) -> list[pa.Array]:
        with _decoding(file, row_group):
            table = reader.read_row_group(row_group, columns=[name], use_threads=False)
        return self._chunks(name, table[name])

    def _chunks(self, name: str, column: pa.ChunkedArray) -> list[pa.Array]:
        if self._dictionaries and name in self._dictionaries:
            for chunk in column.chunks:
                values = chunk if types.is_dictionary(chunk.type) else getattr(chunk, "values", chunk)
                if types.is_dictionary(values.type) and len(values.dictionary) > len(values) / 2:
                    # A dictionary of values that hardly repeat would only cost time.
                    self._dictionaries = self._dictionaries - {name}
        return column.chunks

    def _reader(self, file: ParquetFile) -> pq.ParquetFile:
        if self._dictionaries is None:
            self._dictionaries = {name for name in self._ids if "string" in str(file.schema.field(name).type)}
        return file.open(file.string_leaves(sorted(self._dictionaries)))


@contextmanager
def _decoding(file: ParquetFile, row_group: int) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        found = f"nothing readable ({' '.join(str(error).split())})"
        do = "Write the file again, or leave it out."
        raise data_error(file.path, row_group=row_group, found=found, expected="the row group", do=do) from None
