"""One table in CSV files: its header, and blocks of strings; every row, or an error that names file and line."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from rankmixer.pipeline.csv.column_text import DATA_WORD
from rankmixer.pipeline.csv.dialect import LINE_CHARS, CsvOptions
from rankmixer.pipeline.csv.rows import CsvRows, as_strings, check_text
from rankmixer.pipeline.csv.text import TextFile, find_text, lines_of, open_text

HEAD_ROWS = 100
HEAD_CHARS = 1 << 20


class Block(NamedTuple):
    """Rows of a file: as strings, null where empty, and the line on which each begins."""

    file: str
    lines: list[int]
    batch: pa.RecordBatch


class CsvFiles:
    """One table in several CSV files with the same header.

    Blanks around a value are dropped, an empty value is null, blank lines are no rows. Files whose columns stand in
    another order are read by name. Files without a byte are left out, if others have some.

    Attributes:
        names: of the columns; one without a name is called column_N.
        notes: what is worth saying of what was read, complete once all blocks are read.

    Raises:
        ValueError: no such file, no rows, a row with another number of values than the header, quotation marks that do
            not close, repeated column names, other columns than the first file's, NUL bytes, text in another encoding.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    ...     _ = file.write('a,b\\n1,"x, y"\\n2,\\n')
    ...     file.flush()
    ...     [block.batch.to_pylist() for block in CsvFiles(file.name).blocks()]
    [[{'a': '1', 'b': 'x, y'}, {'a': '2', 'b': None}]]
    """

    def __init__(self, paths: str | Sequence[str], options: CsvOptions | None = None) -> None:
        self.options = options or CsvOptions()
        self.files = find_text(paths)
        self.name = self.files[0].name + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")
        self.notes: list[str] = []
        self.rows = 0
        for file in self.files:
            with open_text(file, self.options.encoding) as stream:
                head = _head(stream)
            self._delimiter = self.options.find_delimiter(head)
            with open_text(file, self.options.encoding) as stream:
                first = self._open(file, stream).header()
            if first:
                break
        else:
            raise ValueError(f"{self.name} is empty; expected a line of column names, then rows")
        self.has_header = self._is_header(file.name, first)
        self.names = self._named(file.name, first)

    def blocks(self) -> Iterator[Block]:
        """All rows, file by file."""
        self.rows = 0
        for file in self.files:
            with open_text(file, self.options.encoding) as stream:
                yield from self._blocks(file.name, self._open(file, stream, self.names))
        if not self.rows:
            raise ValueError(f"{self.name} has a header but no rows")

    def _open(self, file: TextFile, stream: io.TextIOWrapper, names: Sequence[str] = ()) -> CsvRows:
        return CsvRows(file.name, stream, names, self._delimiter, self.options, self.notes)

    def _blocks(self, file: str, rows: CsvRows) -> Iterator[Block]:
        order = list(range(len(self.names)))
        if self.has_header and (header := rows.header()):
            if self.options.names and len(header) != len(order):
                rows.refuse_width(1, header)
            if not self.options.names:
                order = self._order(file, header)
        while (taken := rows.take()) is not None:
            lines, values = taken
            if lines:
                columns = list(zip(*values, strict=True))
                arrays = [
                    as_strings(file, lines, columns[index], name) for index, name in zip(order, self.names, strict=True)
                ]
                self.rows += len(lines)
                yield Block(file, lines, pa.RecordBatch.from_arrays(arrays, names=self.names))

    def _order(self, file: str, header: Sequence[str]) -> list[int]:
        """Where the columns stand in a file."""
        header = _with_names(header)
        if header == self.names:
            return list(range(len(header)))
        if sorted(header) == sorted(self.names):
            return [header.index(name) for name in self.names]
        raise ValueError(
            f"{file} has other columns than {self.files[0].name}: {differences(header, self.names)}; import them "
            "apart, or rename"
        )

    def _is_header(self, file: str, row: list[str]) -> bool:
        """Whether the first line names the columns; refuse to guess where it could as well be a row."""
        if self.options.header != "auto":
            return self.options.header == "yes"
        values = [value.strip() for value in row]
        numbered = values == [str(index) for index in range(len(values))]  # what pandas calls columns without names
        data = [value for value in values if DATA_WORD.fullmatch(value)]
        how = "--names A,B,..., or --header yes if these are names"
        if data and not numbered:
            if self.options.names:
                return False
            raise ValueError(
                f"{file}: line 1 holds {data[0]!r}, as a row would, not a name; name the columns with {how}"
            )
        if self.options.names:
            raise ValueError(
                f"{file}: do --names replace the first line ({', '.join(values)[:60]}), or is it a row? Say "
                "--header yes or --header no"
            )
        return True

    def _named(self, file: str, row: list[str]) -> list[str]:
        given = self.options.names
        if given and len(given) != len(row):
            raise ValueError(
                f"{file}: --names has {len(given)} names, line 1 has {len(row)} values; is {self._delimiter!r} the "
                "delimiter?"
            )
        names = _with_names(given or row if self.has_header or given else [""] * len(row))
        for index, name in enumerate(names):
            check_text(file, 1, name)
            if self.has_header and not given and not row[index]:
                self.notes.append(f"column {index + 1} has no name and is called {name}")
            if name in names[:index]:
                first = names.index(name) + 1
                raise ValueError(
                    f"{file}: columns {first} and {index + 1} are both named {name!r}; rename or delete one, or name "
                    "all with --names and --header yes"
                )
        return names


def _head(stream: io.TextIOWrapper) -> list[str]:
    """Some first lines of a file."""
    lines: list[str] = []
    for line in lines_of(stream, LINE_CHARS):
        lines.append(line)
        if len(lines) == HEAD_ROWS or sum(map(len, lines)) >= HEAD_CHARS:
            break
    return lines


def _with_names(row: Sequence[str]) -> list[str]:
    return [value.strip() or f"column_{index + 1}" for index, value in enumerate(row)]


def differences(found: Sequence[str], expected: Sequence[str]) -> str:
    """What columns are missing, new, and perhaps renamed.

    >>> differences(["user", "prices"], ["user", "price", "city"])
    "without 'city'; 'price' may be what is called 'prices' here"
    """
    missing = [name for name in expected if name not in found]
    new = [name for name in found if name not in expected]
    words = []
    for name in list(missing):
        near = difflib.get_close_matches(name.lower(), [other.lower() for other in new], n=1, cutoff=0.6)
        if near:
            other = next(other for other in new if other.lower() == near[0])
            words.append(f"{name!r} may be what is called {other!r} here")
            missing.remove(name)
            new.remove(other)
    parts = [f"without {', '.join(map(repr, missing))}"] if missing else []
    parts += [f"with {', '.join(map(repr, new))}"] if new else []
    return "; ".join(parts + words)
