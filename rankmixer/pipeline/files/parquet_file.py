"""One Parquet file: what its footer says, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankmixer.pipeline.base.errors import DataError, data_error
from rankmixer.pipeline.files.footers import Footer, Footers
from rankmixer.pipeline.files.manifest import Stamp
from rankmixer.pipeline.files.watch import Watch

_LOCAL = pafs.LocalFileSystem()
_CHANGED = ("ETag", "etag", "LastModified", "last_modified", "updated", "created")  # what fsspec's file systems tell


@dataclass(frozen=True)
class ParquetFile:
    """A path and what its footer says; the whole footer, many times as large, is held for the files used last.

    `row_groups` are the rows of each row group, `stamp` is the file's size and time of change (or entity tag); what its
    file system does not tell is None.
    """

    path: str
    filesystem: pafs.FileSystem | None
    schema: pa.Schema
    row_groups: tuple[int, ...]
    stamp: Stamp
    footers: Footers

    @property
    def metadata(self) -> pq.FileMetaData:
        """The footer.

        Raises:
            DataError: the file is gone or has changed.
        """
        metadata = self.footers.get(self.path)
        if metadata is None:
            with self.open() as file:
                metadata = file.metadata
        return metadata

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
        raise self._changed(found)

    def open(self, read_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
        """Open it to read row groups; pages that carry a checksum are compared with it.

        Raises:
            DataError: the file is gone or has changed.
        """
        self.check()
        # Opened with `read_dictionary`, a file shows other types than its footer has.
        metadata = self.metadata if read_dictionary else self.footers.get(self.path)
        file = pq.ParquetFile(
            self.path,
            metadata=metadata,
            filesystem=self.filesystem,
            read_dictionary=list(read_dictionary),
            pre_buffer=self.filesystem is not None,  # one request for many columns pays on a network only
            page_checksum_verification=True,
        )
        if metadata is None:
            if Footer.of(file) != Footer(self.schema, self.row_groups):
                file.close()
                raise self._changed("a file that has changed since its footer was read")
            self.footers.put(self.path, file.metadata)
        return file

    def _changed(self, found: str) -> DataError:
        do = "Put it back, or start again; write new data under new names."
        return data_error(self.path, found=found, expected="the file as it was", do=do)

    def fetch(self) -> None:
        """Read all bytes and do nothing with them; raises whatever the file system does.

        All of them, because pyarrow ends the process where a footer's statistics are damaged and one asks it for the
        place of a column.
        """
        with (self.filesystem or _LOCAL).open_input_stream(self.path) as stream:
            while stream.read(1 << 23):
                pass

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


def read_footer(path: str, filesystem: pafs.FileSystem | None, held: Footers, watch: Watch) -> ParquetFile | DataError:
    """The file, or what is wrong with it."""
    with watch.reading(path):
        stamp = None
        try:
            # Before the footer: a file that changes meanwhile is not taken for this one.
            stamp = _stamp(path, filesystem)
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                _check_rows(file.metadata)
                held.put(path, file.metadata)
                return ParquetFile(path, filesystem, *Footer.of(file), stamp or (None, None), held)
        except Exception as error:  # whatever a file system raises, and what Arrow makes of bytes that mean nothing
            return _unreadable(path, stamp, error)


def _check_rows(metadata: pq.FileMetaData) -> None:
    """The order of an epoch is made of these numbers, and nothing else in the format vouches for them."""
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError(f"it says {metadata.num_rows} rows, its row groups {rows}"[:200])


def _stamp(path: str, filesystem: pafs.FileSystem | None) -> Stamp | None:
    """What tells a file from another one of its name; None where there is none."""
    return _stamp_of((filesystem or _LOCAL).get_file_info(path), filesystem)


def _stamp_of(info: pafs.FileInfo, filesystem: pafs.FileSystem | None) -> Stamp | None:
    if info.type != pafs.FileType.File:
        return None
    changed = info.mtime_ns
    if changed is None and isinstance(filesystem, pafs.PyFileSystem):
        further = filesystem.handler.fs.info(info.path)
        changed = next((further[key] for key in _CHANGED if further.get(key) is not None), None)
    return info.size, None if changed is None else str(changed)


def stamps_of(found: Mapping[str, pafs.FileSystem | None], watch: Watch) -> dict[str, Stamp | None]:
    """Of many files at once; none if that fails, which reading the footers one by one explains."""
    by_filesystem: dict[int, list[str]] = {}
    for path, filesystem in found.items():
        by_filesystem.setdefault(id(filesystem), []).append(path)
    stamps: dict[str, Stamp | None] = {}
    with suppress(Exception):
        for paths in by_filesystem.values():
            filesystem = found[paths[0]]
            with watch.reading(paths[0]):
                infos = (filesystem or _LOCAL).get_file_info(paths)
            stamps.update((path, _stamp_of(info, filesystem)) for path, info in zip(paths, infos, strict=True))
    return stamps


def _unreadable(path: str, stamp: Stamp | None, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    found = "an empty file (0 bytes)" if stamp and stamp[0] == 0 else f"a file whose footer cannot be read ({reason})"
    do = "Write it again, leave it out, or set `data.on_bad_file: skip`."
    return data_error(path, found=found, expected="a whole Parquet file", do=do)
