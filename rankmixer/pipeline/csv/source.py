"""A table in CSV files, read once: the type of each column, its rows in these types, and what was made of odd words."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from rankmixer.pipeline.csv.column_doubt import remark
from rankmixer.pipeline.csv.column_fit import shorten
from rankmixer.pipeline.csv.column_profile import ColumnProfile
from rankmixer.pipeline.csv.dialect import CsvOptions
from rankmixer.pipeline.csv.file import Block, CsvFiles


class CsvSource:
    """CSV files as typed rows; memory does not grow with them.

    They are read once, into a compressed file of strings in `folder`: types are known only after the last row.

    Args:
        files: paths, globs, directories or URLs.
        folder: for the temporary file; whoever made it removes it.

    Attributes:
        name: of the files, for messages.
        profiles: what each column holds.
        rows: of all files.

    Raises:
        ValueError: what `CsvFiles` refuses; or a first line that may be no header.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "log.csv").write_text("item,price\\n1,2.5\\n2,?\\n")
    ...     source = CsvSource(f"{folder}/log.csv", Path(folder))
    ...     [batch.to_pylist() for batch in source.batches()]
    ...     print(*source.report(), sep="\\n")
    [[{'item': 1, 'price': 2.5}, {'item': 2, 'price': None}]]
    column  type    empty  taken as empty
    item    int64   0      -
    price   double  0      '?' in 1
    """

    def __init__(self, files: str | Sequence[str], folder: Path, options: CsvOptions | None = None) -> None:
        table = CsvFiles(files, options)
        given = table.options
        self._table = table
        self.name = table.name
        self.profiles = {
            name: ColumnProfile(name, given.missing, given.decimal, given.time_format) for name in table.names
        }
        text = pa.schema([(name, pa.string()) for name in table.names])
        with tempfile.NamedTemporaryFile(dir=folder, prefix="rows-", suffix=".arrow", delete=False) as file:
            self._strings = file.name
        with pa.ipc.new_stream(self._strings, text, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            for block in table.blocks():
                for profile, chunk in zip(self.profiles.values(), block.batch.columns, strict=True):
                    profile.update(chunk, partial(_where, block, chunk))
                writer.write_batch(block.batch)
        self.rows = table.rows
        self._check_header()

    @property
    def schema(self) -> pa.Schema:
        """The types; each field says in its metadata how its text was read."""
        return pa.schema([profile.reading.field(name) for name, profile in self.profiles.items()])

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in their order, typed; of some columns or all. Can be called again."""
        names = list(self.profiles if columns is None else columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        readings = {name: self.profiles[name].reading for name in names}
        with pa.memory_map(self._strings) as file:
            for strings in pa.ipc.open_stream(file):
                typed = [reading.read(strings[name]) for name, reading in readings.items()]
                yield pa.RecordBatch.from_arrays(typed, schema=schema)

    def report(self) -> list[str]:
        """Lines for people: a table of column, type, empty rows and words taken as empty; and what is in doubt."""
        rows = [("column", "type", "empty", "taken as empty")]
        rows += [
            (name, type_name(profile.type), f"{profile.nulls - profile.text_missing.total():,}", _words(profile))
            for name, profile in self.profiles.items()
        ]
        remarks = [said for profile in self.profiles.values() if (said := remark(profile)) is not None]
        return [*table(rows), *self._table.notes, *remarks]

    def _check_header(self) -> None:
        """Refuse names that are values of their own columns: then the first line is a row."""
        table = self._table
        if not table.has_header or table.options.header != "auto" or len(table.names) == 1:
            return
        for name, profile in self.profiles.items():
            if name in profile.values:
                raise ValueError(
                    f"{self.name}: {name!r} stands in the first line and in rows of the same column; is the first line "
                    "a row? Then name the columns with --names A,B,...; else say --header yes"
                )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines with columns that are as wide as their widest word."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def type_name(type_: pa.DataType) -> str:
    """The type as Arrow calls it, short.

    >>> type_name(pa.list_(pa.int64()))
    'list of int64'
    """
    return f"list of {type_.value_type}" if pa.types.is_list(type_) else str(type_)


def _words(profile: ColumnProfile) -> str:
    words = profile.missing_words
    total = profile.words + profile.text_missing.total()
    shown = [f"{shorten(word)} in {count:,}" for word, count in words.most_common(5)]
    if len(words) > 5 or sum(words.values()) < total:
        shown.append(f"others in {total - sum(count for _, count in words.most_common(5)):,}")
    return ", ".join(shown) or "-"


def _where(block: Block, chunk: pa.Array, value: str) -> str:
    return f"{block.file}, line {block.lines[chunk.index(value).as_py()]}"
