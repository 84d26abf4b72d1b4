"""How a CSV file is written: what the user says of it, and the delimiter that its first rows have."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

DELIMITERS = (",", ";", "\t", "|", "\x01")  # the last one is Hive's
TYPED = {"\\t": "\t", "tab": "\t", "\\x01": "\x01", "^A": "\x01", "space": " "}
LINE_CHARS = 1 << 24  # a line or a value longer than this is taken for damage


@dataclass(frozen=True)
class CsvOptions:
    """How CSV files are to be read; what is not given is found out, or a convention.

    Args:
        delimiter: one character, or `tab` or `space`; default: the one of DELIMITERS that splits the first rows alike.
        quote: '"' (the default), "'" or `none`. When it is given, values that run over lines which look like rows are
            taken for what they are.
        escape: the character that stands before a quotation mark within a value, besides doubling it; such as a
            backslash.
        encoding: a name that Python knows; default: UTF-8, or what the byte order mark says.
        header: whether the first line holds names: `yes`, `no`, or `auto`, which refuses what could be either.
        names: of the columns, instead of those in the first line, or because there are none.
        missing: words that stand for "no value" in every column.
        decimal: "." or ",", the decimal mark; default: a point, but 1,200 alone is not guessed.
        time_format: of dates and times that are not written as 2024-06-01, as in "%d/%m/%Y %H:%M".
    """

    delimiter: str | None = None
    quote: str | None = None
    escape: str | None = None
    encoding: str | None = None
    header: str = "auto"
    names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    decimal: str | None = None
    time_format: str | None = None

    def __post_init__(self) -> None:
        for key in ("delimiter", "quote", "escape"):
            value = getattr(self, key)
            if value is not None and len(TYPED.get(value, value)) != 1 and (key, value) != ("quote", "none"):
                also = ", or none" if key == "quote" else ", tab or space" if key == "delimiter" else ""
                raise ValueError(f"--{key} is {value!r}; expected one character{also}")
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"--decimal is {self.decimal!r}; expected . or ,")

    def rows(self, lines: Iterable[str], delimiter: str) -> Any:
        """The values of each row: RFC 4180, and csv.Error where quotation marks contradict it."""
        quote = self.quote or '"'
        csv.field_size_limit(max(csv.field_size_limit(), LINE_CHARS))
        return csv.reader(
            lines,
            delimiter=delimiter,
            quoting=csv.QUOTE_NONE if quote == "none" else csv.QUOTE_MINIMAL,
            quotechar=None if quote == "none" else quote,
            escapechar=self.escape,
            skipinitialspace=True,
            strict=True,
        )

    def find_delimiter(self, head: Sequence[str]) -> str:
        """The delimiter of the first lines of a file.

        >>> CsvOptions().find_delimiter(["user;tags", "7;a|b|c", "8;a|c"])
        ';'
        """
        if self.delimiter is not None:
            return TYPED.get(self.delimiter, self.delimiter)
        first = re.sub(r'"[^"]*"', "", next((line for line in head if line.strip()), ""))

        def rank(delimiter: str) -> tuple[bool, int]:
            widths = set()
            try:
                for row in self.rows(head, delimiter):
                    if not is_blank(row):
                        widths.add(len(row))
            except csv.Error:  # the last value may go on below
                pass
            return len(widths) == 1 and widths != {1}, first.count(delimiter)

        return max(DELIMITERS, key=rank)


def is_blank(row: Sequence[str]) -> bool:
    """Whether a line held nothing but blanks."""
    return not row or (len(row) == 1 and not row[0].strip())
