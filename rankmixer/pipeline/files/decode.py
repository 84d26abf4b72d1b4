"""Decode row groups of Parquet files to Arrow columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count, islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from rankmixer.pipeline.base.errors import DataError, damaged, data_error
from rankmixer.pipeline.files.files import ParquetFile
from rankmixer.pipeline.files.watch import Watch

COLUMNWISE_ROWS = 32_768
Read = Callable[[str], list[pa.Array]]
_LISTS = {pa.list_(pa.null()).id: pa.list_, pa.large_list(pa.null()).id: pa.large_list}


class Decoder:
    """Decodes columns; those with strings for ids come as dictionaries, unless their values hardly repeat.

    Args:
        columns: all that will be asked for.
        ids: those of them that hold ids.
        watch: is told of every read.

    Whatever is asked of it raises a DamagedError for a row group whose bytes make no sense, and a DataError for a file
    that cannot be read at all, has changed or is gone.
    """

    def __init__(self, columns: Sequence[str], ids: set[str], watch: Watch) -> None:
        self._columns = list(columns)
        self._ids = ids
        self._watch = watch
        self._dictionaries: set[str] | None = None  # columns of strings, the same in all files, as far as they repeat

    def open(self, file: ParquetFile, row_group: int, rows: int, stack: ExitStack) -> Read:
        """A function to call once for each column, until `stack` closes.

        A large row group of a local file is decoded column by column, so that what is done with one finds it in the
        cache, and the next one its memory. One by one they would cost a small row group too much time, and a network
        as many requests: there all are decoded at once.
        """
        if file.filesystem is None:
            stack.callback(file.check)  # was it still the same file at the end? Object stores replace only whole ones
        with self._decoding(file, row_group):
            if file.filesystem is None and rows >= COLUMNWISE_ROWS:
                return partial(self._column, file, row_group, rows, stack.enter_context(self._reader(file)))
            with self._reader(file) as reader:
                table = self._table(file, row_group, reader, self._columns)
            return {name: self._chunks(name, table[name], rows) for name in self._columns}.pop

    def stream(self, file: ParquetFile, row_group: int, rows: int) -> Iterator[pa.RecordBatch]:
        """A row group in pieces of at most `rows` rows."""
        left = file.row_groups[row_group]
        with ExitStack() as stack:

            def pieces(reader: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
                stack.enter_context(reader)
                return reader.iter_batches(rows, row_groups=[row_group], columns=self._columns, use_threads=False)

            with self._decoding(file, row_group):
                reading = pieces(self._reader(file))
            for number in count():
                with self._decoding(file, row_group):
                    try:
                        piece = next(reading, None)
                    except (OSError, NotImplementedError) as error:
                        if not _makes_no_dictionary(error):
                            raise
                        reading = islice(pieces(file.open()), number, None)
                        piece = next(reading, None)
                    left -= 0 if piece is None else len(piece)
                    if left < 0 or (piece is None and left):
                        raise ValueError("it has another number of rows than the footer says")
                if piece is None:
                    return
                names = piece.schema.names
                columns = [_text(piece[name]) if name in self._ids else piece[name] for name in names]
                yield pa.RecordBatch.from_arrays(columns, names)

    def _column(
        self, file: ParquetFile, row_group: int, rows: int, reader: pq.ParquetFile, name: str
    ) -> list[pa.Array]:
        with self._decoding(file, row_group):
            table = self._table(file, row_group, reader, [name])
            return self._chunks(name, table[name], rows)

    def _table(self, file: ParquetFile, row_group: int, reader: pq.ParquetFile, columns: list[str]) -> pa.Table:
        """Columns of a row group; without dictionaries where Arrow makes none, as of the encoding DELTA_BYTE_ARRAY."""
        try:
            return reader.read_row_group(row_group, columns=columns, use_threads=False)
        except (OSError, NotImplementedError) as error:
            if not _makes_no_dictionary(error):
                raise
            with file.open() as plain:
                return plain.read_row_group(row_group, columns=columns, use_threads=False)

    def _chunks(self, name: str, column: pa.ChunkedArray, rows: int) -> list[pa.Array]:
        if len(column) != rows:
            raise ValueError(f"column {name!r} has {len(column)} rows, the footer says {rows}")
        chunks = [_text(chunk) for chunk in column.chunks] if name in self._ids else column.chunks
        if self._dictionaries and name in self._dictionaries:
            for chunk in chunks:
                values = chunk if types.is_dictionary(chunk.type) else getattr(chunk, "values", chunk)
                if types.is_dictionary(values.type) and len(values.dictionary) > len(values) / 2:
                    # A dictionary of values that hardly repeat would only cost time.
                    self._dictionaries = self._dictionaries - {name}
        return chunks

    def _reader(self, file: ParquetFile) -> pq.ParquetFile:
        if self._dictionaries is None:
            self._dictionaries = {name for name in self._ids if "string" in str(file.schema.field(name).type)}
        return file.open(file.string_leaves(sorted(self._dictionaries)))

    @contextmanager
    def _decoding(self, file: ParquetFile, row_group: int) -> Iterator[None]:
        with self._watch.reading(file.path, row_group):
            try:
                yield
            except DataError:
                raise
            except Exception as error:
                file.check()  # a file that has changed explains it best
                raise _reason(file, row_group, error) from None


def _text(array: pa.Array) -> pa.Array:
    """Bytes as the text that they are if whoever wrote them left out the mark; whether it is UTF-8 is seen later."""
    type_ = array.type
    if types.is_dictionary(type_):
        words = _text(array.dictionary)
        return array if words is array.dictionary else pa.DictionaryArray.from_arrays(array.indices, words, safe=False)
    element, wrap = (type_.value_type, _LISTS.get(type_.id)) if type_.id in _LISTS else (type_, None)
    if not (types.is_binary(element) or types.is_large_binary(element)):
        return array
    text = pa.string() if types.is_binary(element) else pa.large_string()
    options = pc.CastOptions(target_type=wrap(text) if wrap else text, allow_invalid_utf8=True)
    return pc.cast(array, options=options)


def _makes_no_dictionary(error: Exception) -> bool:
    return "Not yet implemented" in str(error)


def _reason(file: ParquetFile, row_group: int, error: Exception) -> DataError:
    """Are the bytes damaged, or can they not be had? Only of damage it is certain that it will be met again."""
    try:
        if isinstance(error, MemoryError):
            raise error
        file.fetch()
    except Exception as why:
        found = f"no answer ({type(why).__name__}: {' '.join(str(why).split())})"
        do = "See to memory and file system, then start again."
        return data_error(file.path, row_group=row_group, found=found, expected="its bytes", do=do)
    return damaged(file.path, row_group, str(error))
