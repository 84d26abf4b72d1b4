"""Text files wherever they are, however compressed or encoded: find them, and read their lines."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from rankmixer.pipeline.files.locate import resolve

CARRIAGE_RETURN = "\ud80d"  # stands for one within a value; half of a surrogate pair, which no text holds
SUFFIX = re.compile(r"\.(csv|tsv|tab|psv|txt|dat|data)(\.(gz|bz2|xz|zst|zip))?$", re.IGNORECASE)
# What the first bytes of files of other kinds are, and what to do with these.
FOREIGN = {
    b"PAR1": "a Parquet file; `rankmixer data parquet` reads it",
    b"ORC": "an ORC file; export it as CSV or Parquet",
    b"Obj\x01": "an Avro file; export it as CSV or Parquet",
    b"ARROW1": "an Arrow file; write it as Parquet",
    b"FEA1": "a Feather file; write it as Parquet",
    b"\x89HDF": "an HDF5 file; export it as CSV or Parquet",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save the sheet as CSV",
    b"%PDF": "a PDF",
    b"\x80\x04": "a pickle; write it as CSV or Parquet",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it, or compress it with gzip or zstd",
    b"\xff\x06\x00\x00sNaPpY": "compressed with snappy; unpack it, or compress it with gzip or zstd",
}
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TextFile:
    """A file, by the name that messages give it."""

    name: str
    filesystem: fsspec.AbstractFileSystem
    path: str


def find_text(paths: str | Sequence[str]) -> list[TextFile]:
    """The files that paths, globs, directories or URLs stand for, sorted by name; one named twice is there once.

    A directory stands for the files below it whose names end as those of CSV files do.

    Raises:
        ValueError: a path that does not exist, or stands for no file.
    """
    found: dict[str, TextFile] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        fs, inner = resolve(path, None)
        try:
            names = _names(path, fs, inner)
        except ValueError:
            raise
        except Exception as error:  # whatever a file system raises
            raise ValueError(f"{path}: cannot be looked up ({_sentence(error)}); check path and access") from None
        remote = "://" in path
        for name in names:
            shown = path if names == [inner] else fs.unstrip_protocol(name) if remote else name
            found.setdefault(name, TextFile(shown, fs, name))
    if not found:
        raise ValueError("no files were given; expected at least one CSV file, directory, glob or URL")
    return [found[name] for name in sorted(found)]


def _names(path: str, fs: fsspec.AbstractFileSystem, inner: str) -> list[str]:
    if fs.isfile(inner):
        return [inner]
    if fs.isdir(inner):
        below = sorted(name for name in fs.find(inner) if not _hidden(name[len(inner) :]))
        names = [name for name in below if SUFFIX.search(name)]
        if names:
            return names
        if any(name.endswith(".parquet") for name in below):
            raise ValueError(f"{path}: a directory of Parquet files; `rankmixer data parquet` reads those")
        held = ", ".join(name[len(inner) :].lstrip("/") for name in below[:3]) or "no file"
        raise ValueError(
            f"{path}: a directory without a file that ends in .csv, .tsv or .txt; it holds {held}; name files, or a "
            "glob such as 'folder/part-*'"
        )
    names = [name for name in fs.glob(inner) if fs.isfile(name)] if fsspec.core.has_magic(inner) else []
    if not names:
        raise ValueError(f"{path}: no such file")
    return names


def _hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/"))


@contextmanager
def open_text(file: TextFile, encoding: str | None = None) -> Iterator[io.TextIOWrapper]:
    """The text of a file, line ends as they are; bytes that are not UTF-8 come as lone surrogates.

    It is unpacked if it is a gzip, bzip2, xz, zstandard or zip file, whatever its name. Without an `encoding` it is
    UTF-8, or what its byte order mark says.

    Raises:
        ValueError: a file that cannot be opened or unpacked, that is of another kind, or whose encoding is another.
    """
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(f"encoding {encoding!r} is unknown; expected a name such as latin-1 or utf-16") from None
    try:
        is_local = isinstance(file.filesystem, LocalFileSystem)  # whose files by way of fsspec take more calls a line
        with open(file.path, "rb") if is_local else file.filesystem.open(file.path, "rb") as raw:
            binary = _unpacked(file.name, raw)
            chosen = encoding or _encoding(file.name, _peek(binary))
            errors = "surrogateescape" if chosen.startswith("utf-8") else "strict"
            yield io.TextIOWrapper(cast(BinaryIO, binary), chosen, errors, newline="")
    except UnicodeError as error:
        raise ValueError(f"{file.name}: is not {encoding or 'what its byte order mark says'} ({error})") from None
    except (EOFError, lzma.LZMAError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{file.name}: cannot be read ({_sentence(error)}); copy it again, or check access") from None


def lines_of(stream: io.TextIOWrapper, longest: int) -> Iterator[str]:
    """The lines of a text, each with its end; one of more than `longest` characters ends there.

    Where the first line ends in LF or CRLF, a CR alone ends none: pandas and the csv module write one that is part of a
    value without quotation marks. It comes as CARRIAGE_RETURN, for csv.reader would take it for the end of a row.
    """
    is_ended_by_cr: bool | None = None
    while line := stream.readline(longest + 1):
        if is_ended_by_cr is None:
            is_ended_by_cr = line.endswith("\r")
        if line.endswith("\r") and not is_ended_by_cr:
            pieces, size = [line], len(line)
            while pieces[-1].endswith("\r") and size <= longest and (more := stream.readline(longest + 1)):
                pieces[-1] = pieces[-1][:-1] + CARRIAGE_RETURN
                pieces.append(more)
                size += len(more)
            line = "".join(pieces)
        yield line


def _peek(binary: io.BufferedReader) -> bytes:
    return binary.peek(64)[:4096]


def _unpacked(name: str, raw: Any) -> io.BufferedReader:
    """The bytes of a file, decompressed."""
    raw = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
    head = _peek(raw)
    for magic, kind in FOREIGN.items():
        if head.startswith(magic):
            raise ValueError(f"{name}: expected a CSV file; found {kind}")
    if head.startswith(b"\x1f\x8b"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if head.startswith(b"BZh"):
        return io.BufferedReader(bz2.BZ2File(raw))
    if head.startswith(b"\xfd7zXZ\x00"):
        return io.BufferedReader(lzma.LZMAFile(raw))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_Zstandard(raw))
    if head.startswith(b"PK\x03\x04"):
        members = [member for member in zipfile.ZipFile(raw).namelist() if not _hidden(member) and member[-1] != "/"]
        if "[Content_Types].xml" in members:
            raise ValueError(f"{name}: expected a CSV file; found an Excel workbook; save the sheet as CSV")
        if len(members) != 1:
            held = ", ".join(members[:3]) or "nothing"
            raise ValueError(f"{name}: holds {len(members)} files ({held}); unpack it and name the files")
        return io.BufferedReader(cast(io.RawIOBase, zipfile.ZipFile(raw).open(members[0])))
    return raw


class _Zstandard(io.RawIOBase):
    """Arrow's decompressor as a raw file; a file cut short is an error, as it is with the others."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _encoding(name: str, head: bytes) -> str:
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head[:256]:
        likely = {0: "utf-16-be", 1: "utf-16-le"}[head.index(b"\0") % 2]
        raise ValueError(
            f"{name}: holds NUL bytes; if it is UTF-16 without a mark, say --encoding {likely}; otherwise it is "
            "damaged or no text"
        )
    if head.lstrip()[:2] in (b'{"', b"[{"):
        raise ValueError(f"{name}: looks like JSON; expected a CSV file; convert it")
    return "utf-8"


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
