"""Parquet files on any filesystem: which they are, and what their footers say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import DataError, data_error
from pipeline.prefetch import prefetch
from pipeline.watch import READ_SECONDS, Watch

FOOTER_THREADS = 16
OnBadFile = Literal["fail", "skip"]
_LOCAL = pafs.LocalFileSystem()


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group: the number of its file, its index there, its rows, and its first row in the file."""

    file: int
    index: int
    num_rows: int
    first_row: int


@dataclass(frozen=True)
class ParquetFile:
    """A path and its footer. Opening it again is cheap: the footer is not read twice.

    `stamp` is the file's size and time of change; what its file system does not tell is None.
    """

    path: str
    filesystem: pafs.FileSystem | None
    metadata: pq.FileMetaData
    schema: pa.Schema
    stamp: tuple[int | None, int | None]

    def check(self) -> None:
        """Refuse a file that is not the one whose footer was read.

        Raises:
            DataError: it is gone or has changed.
        """
        stamp = _stamp(self.path, self.filesystem)
        if stamp == self.stamp:
            return
        found = "no file any more"
        if stamp is not None:
            found = "a file that has changed since its footer was read"
            if stamp[0] != self.stamp[0]:
                found += f" ({self.stamp[0]} bytes then, {stamp[0]} now)"
        do = "Put it back, or start again; write new data under new names."
        raise data_error(self.path, found=found, expected="the file as it was", do=do)

    def open(self, read_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
        """Open it to read row groups; pages that carry a checksum are compared with it.

        Raises:
            DataError: the file is gone or has changed.
        """
        self.check()
        return pq.ParquetFile(
            self.path,
            metadata=self.metadata,
            filesystem=self.filesystem,
            read_dictionary=list(read_dictionary),
            pre_buffer=self.filesystem is not None,  # one request for many columns pays on a network only
            page_checksum_verification=True,
        )

    def fetch(self) -> None:
        """Read all bytes and do nothing with them; raises whatever the file system does.

        All of them, because pyarrow ends the process where a footer's statistics are damaged and one asks it for the
        place of a column.
        """
        with (self.filesystem or _LOCAL).open_input_stream(self.path) as stream:
            while stream.read(1 << 23):
                pass

    @cached_property
    def string_leaves(self) -> dict[str, list[str]]:
        """Column -> the paths of its string leaves, such as `tags.list.element`."""
        leaves: dict[str, list[str]] = {name: [] for name in self.schema.names}
        for number in range(len(self.metadata.schema)):
            leaf = self.metadata.schema.column(number)
            if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "STRING":
                top = leaf.path if leaf.path in leaves else leaf.path.split(".")[0]
                leaves[top].append(leaf.path)
        return leaves


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files in the order of their paths, with their footers.

    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> pq.write_table(pa.table({"a": range(5)}), os.path.join(folder, "part-0.parquet"), row_group_size=3)
    >>> files = ParquetFiles.open(folder)
    >>> files.num_rows, files.row_groups
    (5, [RowGroup(file=0, index=0, num_rows=3, first_row=0), RowGroup(file=0, index=1, num_rows=2, first_row=3)])
    """

    files: list[ParquetFile]
    bad: dict[str, str] = field(default_factory=dict)
    """The files that were set aside, and why."""
    watch: Watch = field(default_factory=Watch)

    @classmethod
    def open(
        cls,
        paths: str | Sequence[str],
        filesystem: Any = None,
        *,
        on_bad_file: OnBadFile = "fail",
        set_aside: Mapping[str, str] | None = None,
        read_seconds: float = READ_SECONDS,
    ) -> ParquetFiles:
        """Read the footers, in threads.

        Args:
            paths: a path, glob, directory or URL, or several. A directory stands for every .parquet file below it.
                A file that is named twice is read once.
            filesystem: of fsspec or pyarrow; without it a URL says which one.
            on_bad_file: `skip` sets files aside that cannot be read, into `bad`.
            set_aside: files that are not even looked at, and why.
            read_seconds: limit on one read, now and later.

        Raises:
            ValueError: a path that does not exist, or matches no file.
            DataError: a file that is empty, truncated or not Parquet; or a read that does not end.
        """
        watch = Watch(read_seconds)
        found: dict[str, pafs.FileSystem | None] = {}
        names = [paths] if isinstance(paths, str) else paths
        for files in prefetch((partial(_find, name, filesystem, watch) for name in names), 1, 1, watch.overdue):
            found.update(files)
        if not found:
            raise ValueError("no paths were given; expected at least one Parquet file, directory, glob or URL")
        bad = {path: reason for path, reason in (set_aside or {}).items() if path in found}
        left = [path for path in sorted(found) if path not in bad]
        calls = (partial(_read_footer, path, found[path], watch) for path in left)
        threads = min(FOOTER_THREADS, len(left))
        opened = []
        for path, file in zip(left, prefetch(calls, threads, 2 * threads, watch.overdue), strict=True):
            if isinstance(file, ParquetFile):
                opened.append(file)
            elif on_bad_file == "fail":
                raise file
            else:
                bad[path] = str(file)
        return cls(opened, bad, watch)

    @cached_property
    def row_groups(self) -> list[RowGroup]:
        """All row groups that hold a row, in the order of the files."""
        groups = []
        for number, file in enumerate(self.files):
            first_row = 0
            for index in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(index).num_rows
                if rows:
                    groups.append(RowGroup(number, index, rows, first_row))
                first_row += rows
        return groups

    @property
    def num_rows(self) -> int:
        return sum(group.num_rows for group in self.row_groups)

    @cached_property
    def layout(self) -> str:
        """SHA-256 of the rows of all row groups, which decide the order of an epoch."""
        sizes = [(group.file, group.num_rows) for group in self.row_groups]
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the first file."""
        return self.files[0].schema


def _find(path: str, filesystem: Any, watch: Watch) -> dict[str, pafs.FileSystem | None]:
    """The files that `path` stands for -> their filesystem, None for local ones (pyarrow opens those fastest)."""
    fs, inner = _resolve(path, filesystem)
    with watch.reading(path):
        try:
            names = _names(path, fs, inner)
        except ValueError:
            raise
        except Exception as error:  # whatever a file system raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise data_error(
                path, found=f"no answer ({reason})", expected="files", do="Check path and access."
            ) from None
    if isinstance(fs, LocalFileSystem):
        return dict.fromkeys(names)
    arrow = fs.fs if isinstance(fs, ArrowFSWrapper) else pafs.PyFileSystem(pafs.FSSpecHandler(fs))
    return dict.fromkeys(names, arrow)


def _names(path: str, fs: fsspec.AbstractFileSystem, inner: str) -> list[str]:
    if fs.isfile(inner):
        names = [inner]
    elif fs.isdir(inner):
        names = [name for name in fs.find(inner) if name.endswith(".parquet") and not _hidden(name[len(inner) :])]
        if not names:
            raise ValueError(
                f"{path}: found no .parquet file in this directory; expected at least one. Check the path."
            )
    else:
        names = [name for name in fs.glob(inner) if fs.isfile(name)] if fsspec.core.has_magic(inner) else []
        if not names:
            raise ValueError(f"{path}: found no file; expected a Parquet file, directory or glob. Check the path.")
    return names


def _hidden(path: str) -> bool:
    """Whether other tools keep their own things there, such as _temporary/."""
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _resolve(path: str, filesystem: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    if isinstance(filesystem, pafs.FileSystem):
        return ArrowFSWrapper(filesystem), path
    if filesystem is not None:
        return filesystem, filesystem._strip_protocol(path)
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as fsspec_error:  # a URL that fsspec has no package for
        try:
            arrow, inner = pafs.FileSystem.from_uri(path)
        except (pa.ArrowException, OSError) as arrow_error:
            reasons = f"fsspec: {fsspec_error}; pyarrow: {arrow_error}"
            raise ValueError(f"{path}: found a URL that neither fsspec nor pyarrow opens ({reasons})") from None
        return ArrowFSWrapper(arrow), inner


def _read_footer(path: str, filesystem: pafs.FileSystem | None, watch: Watch) -> ParquetFile | DataError:
    """The file, or what is wrong with it."""
    with watch.reading(path):
        stamp = None
        try:
            stamp = _stamp(path, filesystem)
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                _check_rows(file.metadata)
                return ParquetFile(path, filesystem, file.metadata, file.schema_arrow, stamp or (None, None))
        except Exception as error:  # whatever a file system raises, and what Arrow makes of bytes that mean nothing
            return _unreadable(path, stamp, error)


def _check_rows(metadata: pq.FileMetaData) -> None:
    """The order of an epoch is made of these numbers, and nothing else in the format vouches for them."""
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError(f"it says {metadata.num_rows} rows, its row groups {rows}"[:200])


def _stamp(path: str, filesystem: pafs.FileSystem | None) -> tuple[int | None, int | None] | None:
    """Size and time of change of a file; None where there is none."""
    info = (filesystem or _LOCAL).get_file_info(path)
    return (info.size, info.mtime_ns) if info.type == pafs.FileType.File else None


def _unreadable(path: str, stamp: tuple[int | None, int | None] | None, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    found = "an empty file (0 bytes)" if stamp and stamp[0] == 0 else f"a file whose footer cannot be read ({reason})"
    do = "Write it again, leave it out, or set `data.on_bad_file: skip`."
    return data_error(path, found=found, expected="a whole Parquet file", do=do)
