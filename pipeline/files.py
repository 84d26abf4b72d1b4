"""Parquet files on any filesystem: which they are, and what their footers say."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import DataError, data_error

FOOTER_THREADS = 16


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group: the number of its file, its index there, its rows, and its first row in the file."""

    file: int
    index: int
    num_rows: int
    first_row: int


@dataclass(frozen=True)
class ParquetFile:
    """A path and its footer. Opening it again is cheap: the footer is not read twice."""

    path: str
    filesystem: pafs.FileSystem | None
    metadata: pq.FileMetaData
    schema: pa.Schema

    def open(self, read_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.path,
            metadata=self.metadata,
            filesystem=self.filesystem,
            read_dictionary=list(read_dictionary),
            pre_buffer=self.filesystem is not None,  # one request for many columns pays on a network only
        )

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

    @classmethod
    def open(cls, paths: str | Sequence[str], filesystem: Any = None) -> ParquetFiles:
        """Read the footers, in threads.

        Args:
            paths: a path, glob, directory or URL, or several. A directory stands for every .parquet file below it.
                A file that is named twice is read once.
            filesystem: of fsspec or pyarrow; without it a URL says which one.

        Raises:
            ValueError: a path that does not exist, or matches no file.
            DataError: a file that is empty, truncated or not Parquet.
        """
        found: dict[str, pafs.FileSystem | None] = {}
        for path in [paths] if isinstance(paths, str) else paths:
            found.update(_find(path, filesystem))
        if not found:
            raise ValueError("no paths were given; expected at least one Parquet file, directory, glob or URL")
        with ThreadPoolExecutor(min(FOOTER_THREADS, len(found))) as pool:
            return cls(list(pool.map(_read_footer, sorted(found), [found[path] for path in sorted(found)])))

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

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the first file."""
        return self.files[0].schema


def _find(path: str, filesystem: Any) -> dict[str, pafs.FileSystem | None]:
    """The files that `path` stands for -> their filesystem, None for local ones (pyarrow opens those fastest)."""
    fs, inner = _resolve(path, filesystem)
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
    if isinstance(fs, LocalFileSystem):
        return dict.fromkeys(names)
    arrow = fs.fs if isinstance(fs, ArrowFSWrapper) else pafs.PyFileSystem(pafs.FSSpecHandler(fs))
    return dict.fromkeys(names, arrow)


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


def _read_footer(path: str, filesystem: pafs.FileSystem | None) -> ParquetFile:
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            return ParquetFile(path, filesystem, file.metadata, file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, filesystem, error) from None


def _unreadable(path: str, filesystem: pafs.FileSystem | None, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    info = (filesystem or pafs.LocalFileSystem()).get_file_info(path)
    what = "an empty file (0 bytes)" if info.size == 0 else f"a file whose footer cannot be read ({reason})"
    return data_error(path, found=what, expected="a whole Parquet file", do="Write it again, or leave it out.")
