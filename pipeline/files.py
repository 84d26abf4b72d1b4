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
from pipeline.footers import Footer, Footers, Schemas
from pipeline.manifest import Manifest, Stamp

FOOTER_THREADS = 16
MANIFEST_FILES = 100  # fewer footers are read as fast as a manifest
_CHANGED = ("ETag", "etag", "LastModified", "last_modified", "updated", "created")  # what fsspec's file systems tell


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group: the number of its file, its index there, its rows, and its first row in the file."""

    file: int
    index: int
    num_rows: int
    first_row: int


@dataclass(frozen=True)
class ParquetFile:
    """A path and what its footer says; the whole footer, many times as large, is held for the files used last.

    `row_groups` are the rows of each row group.
    """

    path: str
    filesystem: pafs.FileSystem | None
    schema: pa.Schema
    row_groups: tuple[int, ...]
    footers: Footers

    @property
    def metadata(self) -> pq.FileMetaData:
        """The footer.

        Raises:
            DataError: the file cannot be read, or is another one than it was.
        """
        metadata = self.footers.get(self.path)
        return self._held(*_read_footer(self.path, self.filesystem)) if metadata is None else metadata

    def open(self, read_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
        """Open it to read row groups; raises as `metadata` does, or what Arrow raises."""
        metadata = self.metadata if read_dictionary else self.footers.get(self.path)
        file = pq.ParquetFile(
            self.path,
            metadata=metadata,
            filesystem=self.filesystem,
            read_dictionary=list(read_dictionary),
            pre_buffer=self.filesystem is not None,  # one request for many columns pays on a network only
        )
        if metadata is None:  # then Arrow has read it now
            try:
                self._held(file.metadata, Footer.of(file))
            except DataError:
                file.close()
                raise
        return file

    def _held(self, metadata: pq.FileMetaData, footer: Footer) -> pq.FileMetaData:
        if footer != Footer(self.schema, self.row_groups):
            found, do = "a file that has changed since its footer was read", "Start again."
            raise data_error(self.path, found=found, expected="the file as it was", do=do)
        self.footers.put(self.path, metadata)
        return metadata

    def string_leaves(self, columns: Sequence[str]) -> list[str]:
        """The paths of the string leaves of some columns, such as `tags.list.element`."""
        if not columns:
            return []
        schema = self.metadata.schema
        leaves = [schema.column(number) for number in range(len(schema))]
        return [
            leaf.path
            for leaf in leaves
            if leaf.physical_type == "BYTE_ARRAY"
            and leaf.logical_type.type == "STRING"
            and (leaf.path in columns or leaf.path.split(".")[0] in columns)
        ]


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
    def open(cls, paths: str | Sequence[str], filesystem: Any = None, *, manifests: str | None = None) -> ParquetFiles:
        """Read the footers, in threads; of many files only those that changed since the last time.

        Args:
            paths: a path, glob, directory or URL, or several. A directory stands for every .parquet file below it.
                A file that is named twice is read once.
            filesystem: of fsspec or pyarrow; without it a URL says which one.
            manifests: directory that keeps what the footers of `MANIFEST_FILES` files or more said.

        Raises:
            ValueError: a path that does not exist, or matches no file.
            DataError: a file that is empty, truncated or not Parquet.
        """
        asked = [paths] if isinstance(paths, str) else paths
        found: dict[str, pafs.FileSystem | None] = {}
        for path in asked:
            found.update(_find(path, filesystem))
        if not found:
            raise ValueError("no paths were given; expected at least one Parquet file, directory, glob or URL")
        names, held, schemas = sorted(found), Footers(), Schemas()
        manifest = Manifest(manifests, asked) if manifests is not None and len(found) >= MANIFEST_FILES else None
        # Before the footers are read: a file that changes meanwhile is read again the next time.
        stamps = _stamps(found) if manifest else {}
        known = manifest.load(schemas) if manifest else {}
        footers = {name: known[name][1] for name in names if name in known and known[name][0] == stamps.get(name)}

        def read(name: str) -> Footer:
            metadata, footer = _read_footer(name, found[name])
            held.put(name, metadata)
            return footer._replace(schema=schemas(footer.schema))

        unknown = [name for name in names if name not in footers]
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            footers.update(zip(unknown, pool.map(read, unknown), strict=True))
        if manifest and (known.keys() != stamps.keys() or not stamps.keys().isdisjoint(unknown)):
            manifest.save({name: (stamp, footers[name]) for name, stamp in stamps.items()})
        return cls([ParquetFile(name, found[name], *footers[name], held) for name in names])

    @property
    def one_of_each_schema(self) -> list[ParquetFile]:
        """The first file of each Arrow schema: what holds for its columns holds for all files of that schema."""
        first: dict[int, ParquetFile] = {}
        for file in self.files:
            first.setdefault(id(file.schema), file)
        return list(first.values())

    @cached_property
    def row_groups(self) -> list[RowGroup]:
        """All row groups that hold a row, in the order of the files."""
        groups = []
        for number, file in enumerate(self.files):
            first_row = 0
            for index, rows in enumerate(file.row_groups):
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


def _read_footer(path: str, filesystem: pafs.FileSystem | None) -> tuple[pq.FileMetaData, Footer]:
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            return file.metadata, Footer.of(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, filesystem, error) from None


def _stamps(found: dict[str, pafs.FileSystem | None]) -> dict[str, Stamp]:
    """Of each file whose file system tells when it changed, or an entity tag."""
    by_filesystem: dict[int, list[str]] = {}
    for path, filesystem in found.items():
        by_filesystem.setdefault(id(filesystem), []).append(path)
    stamps = {}
    for paths in by_filesystem.values():
        filesystem = found[paths[0]]
        for path, info in zip(paths, (filesystem or pafs.LocalFileSystem()).get_file_info(paths), strict=True):
            changed = info.mtime_ns
            if changed is None and isinstance(filesystem, pafs.PyFileSystem):
                further = filesystem.handler.fs.info(path)
                changed = next((further[key] for key in _CHANGED if further.get(key) is not None), None)
            if changed is not None and info.size is not None:
                stamps[path] = (info.size, str(changed))
    return stamps


def _unreadable(path: str, filesystem: pafs.FileSystem | None, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    info = (filesystem or pafs.LocalFileSystem()).get_file_info(path)
    what = "an empty file (0 bytes)" if info.size == 0 else f"a file whose footer cannot be read ({reason})"
    return data_error(path, found=what, expected="a whole Parquet file", do="Write it again, or leave it out.")
