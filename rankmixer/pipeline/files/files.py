"""Parquet files on any filesystem: which they are, and what their footers say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs as pafs

from rankmixer.pipeline.base.prefetch import prefetch
from rankmixer.pipeline.files.footers import Footer, Footers, Schemas
from rankmixer.pipeline.files.locate import find
from rankmixer.pipeline.files.manifest import Manifest
from rankmixer.pipeline.files.parquet_file import ParquetFile, read_footer, stamps_of
from rankmixer.pipeline.files.watch import READ_SECONDS, Watch

FOOTER_THREADS = 16
ORDER_RULE = 2
"""Changes with the order that read/order.py gives to row groups: a position in one means nothing in the other."""
MANIFEST_FILES = 100  # fewer footers are read as fast as a manifest
OnBadFile = Literal["fail", "skip"]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group: the number of its file, its index there, its rows, and its first row in the file."""

    file: int
    index: int
    num_rows: int
    first_row: int


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files in the order of their paths, with their footers.

    >>> import os, tempfile
    >>> import pyarrow.parquet as pq
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
        manifests: str | None = None,
    ) -> ParquetFiles:
        """Read the footers, in threads; of many files only those that changed since the last time.

        Args:
            paths: a path, glob, directory or URL, or several. A directory stands for every .parquet file below it.
                A file that is named twice is read once.
            filesystem: of fsspec or pyarrow; without it a URL says which one.
            on_bad_file: `skip` sets files aside that cannot be read, into `bad`.
            set_aside: files that are not even looked at, and why.
            read_seconds: limit on one read, now and later.
            manifests: directory that keeps what the footers of `MANIFEST_FILES` files or more said.

        Raises:
            ValueError: a path that does not exist, or matches no file.
            DataError: a file that is empty, truncated or not Parquet; or a read that does not end.
        """
        watch = Watch(read_seconds)
        found: dict[str, pafs.FileSystem | None] = {}
        asked = [paths] if isinstance(paths, str) else paths
        for files in prefetch((partial(find, name, filesystem, watch) for name in asked), 1, 1, watch.overdue):
            found.update(files)
        if not found:
            raise ValueError("no paths were given; expected at least one Parquet file, directory, glob or URL")
        bad = {path: reason for path, reason in (set_aside or {}).items() if path in found}
        left = [path for path in sorted(found) if path not in bad]
        held, schemas = Footers(), Schemas()
        manifest = Manifest(manifests, asked) if manifests is not None and len(left) >= MANIFEST_FILES else None
        kept = manifest.load(schemas) if manifest else {}
        stamps = next(prefetch([partial(stamps_of, found, watch)], 1, 1, watch.overdue)) if kept else {}
        known = {path: entry for path, entry in kept.items() if entry[0] == stamps.get(path)}
        calls = (partial(read_footer, path, found[path], held, watch) for path in left if path not in known)
        threads = min(FOOTER_THREADS, len(left))
        opened: list[ParquetFile] = []
        # Closed at once, whatever happens: an error would keep the threads alive as long as itself.
        with closing(prefetch(calls, threads, 2 * threads, watch.overdue)) as read:
            for path in left:
                if path in known:
                    stamp, footer = known[path]
                    opened.append(ParquetFile(path, found[path], *footer, stamp, held))
                    continue
                file = next(read)
                if isinstance(file, ParquetFile):
                    opened.append(replace(file, schema=schemas(file.schema)))
                elif on_bad_file == "fail":
                    raise file
                else:
                    bad[path] = str(file)
        if manifest:
            now = {file.path: (file.stamp, Footer(file.schema, file.row_groups)) for file in opened if all(file.stamp)}
            if now.keys() != kept.keys() or any(path not in known for path in now):
                manifest.save(now)
        return cls(opened, bad, watch)

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

    @cached_property
    def layout(self) -> str:
        """SHA-256 of what decides the order of an epoch: the rule, and the rows of all row groups."""
        sizes = [(group.file, group.num_rows) for group in self.row_groups]
        return hashlib.sha256(json.dumps([ORDER_RULE, *sizes]).encode()).hexdigest()

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the first file."""
        return self.files[0].schema
