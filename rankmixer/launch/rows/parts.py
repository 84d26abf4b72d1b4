"""A directory of Parquet files, one a rank, that exists whole or not at all."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.rows.paths import check_output
from rankmixer.pipeline.base.collective import on_rank_0, together
from rankmixer.pipeline.base.storage import move_directory, open_storage, telling, writing

REMOVALS = 10  # tries to remove what other ranks remove at the same time


class ParquetParts:
    """Each rank writes `part-RANK.parquet` into a directory beside `out`, which takes its name when all are done.

    The block goes around that of the process group: when a rank fails, the others hear of it before its files go, so
    that none of them fails for want of these and says that instead.

        with ParquetParts(out) as parts, process_group(config) as ranks:
            parts.begin(ranks)
            parts.write(table)
            parts.finish()

    Args:
        out: path or fsspec URL of a directory that must not exist.
    """

    def __init__(self, out: str) -> None:
        self._fs, path = open_storage(out)
        self._name, self._out = out, path.rstrip("/")
        self._unfinished = f"{self._out}.unfinished"
        self._has_begun = False
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> ParquetParts:
        return self

    def begin(self, ranks: Ranks) -> None:
        """Make the directory, empty, and this rank's file. Collective.

        Raises:
            ValueError: on all ranks, `out` exists.
        """
        together("cannot write there", lambda: check_output(self._name))
        self._has_begun = True
        on_rank_0(f"cannot write {self._name}", self._make)
        # Opened before any rank can fail: a file whose directory has gone can still be written.
        file = f"{self._unfinished}/part-{ranks.rank:05d}.parquet"
        together(f"cannot write {self._name}", lambda: self._open(file))

    def write(self, table: pa.Table) -> None:
        """Append rows to this rank's file; call it on every rank, without a row too."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, table.schema, write_page_checksum=True)
        with writing(self._fs, self._name):
            self._writer.write_table(table)

    def finish(self) -> None:
        """Give the directory its name, once the files of all ranks are whole. Collective.

        Raises:
            RuntimeError: on all ranks, what went wrong on one of them; `SystemFailure` for an error of its disk.
        """
        together(f"cannot write {self._name}", self._close)
        on_rank_0(f"cannot write {self._name}", self._give_name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._has_begun:
            return
        with suppress(Exception):  # `error` is what is told, and not that its file cannot be finished
            self._close()
        with telling(self._fs, self._name):
            self._remove()

    def _make(self) -> None:
        with writing(self._fs, self._name):
            if self._fs.exists(self._unfinished):
                self._fs.rm(self._unfinished, recursive=True)
            self._fs.makedirs(self._unfinished)

    def _open(self, file: str) -> None:
        with writing(self._fs, self._name):
            self._sink = self._fs.open(file, "wb")

    def _close(self) -> None:
        with writing(self._fs, self._name):
            try:
                if self._writer is not None:
                    self._writer.close()
            finally:
                self._sink.close()

    def _give_name(self) -> None:
        with writing(self._fs, self._name):
            move_directory(self._fs, self._unfinished, self._out)

    def _remove(self) -> None:
        problem: Exception | None = None
        for _ in range(REMOVALS):
            try:
                if not self._fs.exists(self._unfinished):
                    return
                self._fs.rm(self._unfinished, recursive=True)
            except FileNotFoundError as error:  # another rank was faster
                problem = error
            except Exception as error:
                problem = error
                break
        if problem is not None:
            print(f"warning: {self._unfinished} is left there, for it cannot be removed: {problem}", file=sys.stderr)
