"""Text files of one value a line: what gives each value its id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from rankmixer.pipeline.base.storage import StorageError, open_storage, reading


def read_text(path: str) -> str:
    """A UTF-8 text file, local or on any filesystem that fsspec opens."""
    filesystem, inner = open_storage(path)
    try:
        with reading(path), filesystem.open(inner, "rt", encoding="utf-8") as file:
            return str(file.read())
    except StorageError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def read_vocabulary(path: str) -> tuple[str, ...]:
    """One value a line, lines ended by LF or CRLF; the id of a value is its line number, from 0."""
    try:
        text = read_text(path)
    except ValueError as error:
        hint = "; `rankmixer vocab` writes it" if isinstance(error.__context__, FileNotFoundError) else ""
        raise ValueError(f"{error}{hint}") from None
    words = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if words == [""]:
        raise ValueError(f"vocabulary {path}: found no value; expected one a line")
    lines: dict[str, int] = {}
    for line, word in enumerate(words, 1):
        if lines.setdefault(word, line) != line:
            raise ValueError(f"vocabulary {path}: line {line} repeats {word!r} of line {lines[word]}; remove one")
    return tuple(words)


def write_vocabulary(file: IO[bytes], words: Iterable[str]) -> None:
    """Write what `read_vocabulary` reads; no word may hold a line break."""
    for word in words:
        file.write(f"{word}\n".encode())
