"""The rows of one CSV file, each with the line on which it begins; or an error that names the line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.csv.dialect import LINE_CHARS, CsvOptions, is_blank
from rankmixer.pipeline.csv.text import CARRIAGE_RETURN, lines_of

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 1 << 14


class CsvRows:
    """Rows of values, in blocks.

    Args:
        name: of the file, for messages.
        names: of the columns.
        notes: takes up what is worth saying.
    """

    def __init__(
        self,
        name: str,
        stream: io.TextIOWrapper,
        names: Sequence[str],
        delimiter: str,
        options: CsvOptions,
        notes: list[str],
    ) -> None:
        self._name, self._stream, self._names = name, stream, names
        self._delimiter, self._options, self._notes = delimiter, options, notes
        self._width = len(names)
        self._line = ""  # read last
        self._before = 0  # the line on which the row before ends
        self._header: list[str] = []
        self._null = re.compile(rf"(?<![^{re.escape(delimiter)}])\\N(?![^{re.escape(delimiter)}\r\n])")
        self._has_returns = False  # whether a value has held CARRIAGE_RETURN
        self._reader = options.rows(self._lines(), delimiter)

    def header(self) -> list[str]:
        """The values of the first line that is not blank; none if there is no such line."""
        try:
            row: list[str] = next((row for row in self._reader if not is_blank(row)), [])
        except csv.Error as error:
            self._refuse(str(error))
        self._before, self._header = self._reader.line_num, self._restored(row)
        return [value.strip() for value in self._header]

    def take(self) -> tuple[list[int], list[list[str]]] | None:
        """Lines and values of the next rows, perhaps of none; None at the end.

        Raises:
            ValueError: a row with another number of values than there are names; marks that do not close or close
                before the value ends; two stray ones that have swallowed rows; the header once more; a NUL byte.
        """
        lines: list[int] = []
        rows: list[list[str]] = []
        try:
            is_end = not self._take(lines, rows)
        except csv.Error as error:
            self._refuse(str(error))
        return None if is_end else (lines, rows)

    def _take(self, lines: list[int], rows: list[list[str]]) -> bool:
        """Append the next lines and rows; False at the end."""
        size, reader, width = 0, self._reader, self._width
        is_end = True
        for row in islice(reader, BLOCK_ROWS):
            is_end = False
            first, last = self._before + 1, reader.line_num
            self._before = last
            if self._has_returns:
                if len(row) != width and (ended := self._ended_by_returns(row)):
                    lines += [first] * len(ended)
                    rows += ended
                    continue
                row = self._restored(row)
            if len(row) != width or (width == 1 and not row[0]):
                if not is_blank(row):
                    self.refuse_width(first, row)
                # Of one column, "" is a row and a blank line is none.
                if not (row and width == 1 and self._line.strip()):
                    continue
            if last != first:
                self._check_lines(first, row)
                size += sum(map(len, row))
            if row == self._header and width > 1:
                raise ValueError(
                    f"{self._name}: line {first} repeats the header, as where files were joined; delete the line"
                )
            lines.append(first)
            rows.append(row)
            size += len(self._line)
            if size > BLOCK_BYTES:
                break
        return not is_end

    def _ended_by_returns(self, row: Sequence[str]) -> list[list[str]]:
        """The rows on a line where a CR alone ends each, if all then have the right number of values; else none."""
        if not any(CARRIAGE_RETURN in value for value in row):
            return []
        pieces = io.StringIO(self._line.replace(CARRIAGE_RETURN, "\r"), newline="")
        try:
            found = list(self._options.rows(map(self._escaped, pieces), self._delimiter))
        except csv.Error:
            return []
        return found if all(len(values) == self._width for values in found) else []

    @staticmethod
    def _restored(row: Sequence[str]) -> list[str]:
        return [value.replace(CARRIAGE_RETURN, "\r") for value in row]

    def refuse_width(self, line: int, row: Sequence[str]) -> NoReturn:
        """Raise the error of a row that has another number of values than there are names."""
        raise ValueError(
            f"{self._name}: line {line} has {len(row)} values, the header has {self._width}: "
            f"{self._delimiter.join(row)[:80]!r}; put values that hold {self._delimiter!r} in quotes, or name another "
            "--delimiter, --quote or --escape"
        )

    def _lines(self) -> Iterator[str]:
        for number, line in enumerate(lines_of(self._stream, LINE_CHARS), 1):
            self._line = line
            self._has_returns |= CARRIAGE_RETURN in line
            if len(self._line) > LINE_CHARS:
                raise ValueError(f"{self._name}: line {number} has more than {LINE_CHARS:,} characters; is it text?")
            if "\0" in self._line:
                raise ValueError(
                    f"{self._name}: line {number} holds a NUL byte; the file is damaged, or its --encoding another"
                )
            yield self._escaped(line)
        self._line = ""

    def _escaped(self, line: str) -> str:
        """Keep the null that Hive and MySQL write, of which the csv module would make an N."""
        if self._options.escape == "\\" and "\\N" in line:
            return self._null.sub(r"\\\\N", line)
        return line

    def _refuse(self, error: str) -> NoReturn:
        first, last = self._before + 1, self._reader.line_num
        if "expected after" in error:
            what = "closes before more text" + (f" on line {last}" if last > first else "")
        elif "field larger" in error:
            what = f"is not closed within {LINE_CHARS:,} characters"
        else:
            what = f"is not closed when the file ends on line {last}"
        found = f": {self._line.strip()[:60]!r}" if self._line else ""
        escaped = ", or --escape '\\' if that stands before it" if '\\"' in self._line else ""
        raise ValueError(
            f"{self._name}: line {first}: a value that begins with a quotation mark {what}{found}; write the mark "
            f"twice within a value, or say --quote none if it is a character like others{escaped}"
        ) from None

    def _check_lines(self, line: int, row: Sequence[str]) -> None:
        """Look whether a value that runs over lines has swallowed rows between two stray quotation marks."""
        if self._options.quote is not None or self._width == 1:
            return
        for index, value in enumerate(row):
            pieces = re.split(r"\r\n?|\n", value)
            counts = [piece.count(self._delimiter) for piece in pieces]
            as_rows = [self._width - 1 - index, *[self._width - 1] * (len(pieces) - 2), index]
            if len(pieces) < 2 or counts != as_rows:
                continue
            found = (
                f"{self._name}: line {line}: the value {value[:20]!r} of column {self._names[index]!r} runs over "
                f"{len(pieces)} lines that look like {len(pieces)} rows"
            )
            if len(pieces) > 2:
                raise ValueError(
                    f"{found}; are two quotation marks stray? Say --quote none if the mark is a character like others, "
                    "--quote '\"' if this is one value"
                )
            self._notes.append(found)


def as_strings(file: str, lines: Sequence[int], values: Sequence[str], name: str) -> pa.Array:
    """A column as Arrow strings, trimmed, null where empty."""
    try:
        column = pc.utf8_trim_whitespace(pa.array(values, pa.string()))
    except UnicodeEncodeError:
        for line, value in zip(lines, values, strict=True):
            check_text(file, line, value, f", column {name!r}")
        raise
    return pc.if_else(pc.equal(column, ""), None, column)


def check_text(file: str, line: int, value: str, where: str = "") -> None:
    """Refuse bytes that are not UTF-8, which stand in the text as lone surrogates."""
    wrong = next((char for char in value if "\udc80" <= char <= "\udcff"), None)
    if wrong is not None:
        shown = value.encode("utf-8", "surrogateescape").decode("latin-1")
        raise ValueError(
            f"{file}: line {line}{where}: byte 0x{ord(wrong) - 0xDC00:02x} is not UTF-8; save the file as UTF-8, or "
            f"say what it is: with --encoding latin-1 this is {shown[:40]!r}"
        )
