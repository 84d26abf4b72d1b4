"""A directory of Parquet files, one a rank, that exists whole or not at all."""

from __future__ import annotations

from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from launch.distributed import Ranks
from launch.paths import check_output
from pipeline.storage import move_directory, open_storage, writing


class ParquetParts:
    """Each rank writes `part-RANK.parquet` into a directory beside `out`, which takes its name when all are done.

    Args:
        out: path or fsspec URL of a directory that must not exist.
        ranks: this process among those that write.

    Raises:
        ValueError: `out` exists.
    """

    def __init__(self, out: str, ranks: Ranks) -> None:
        self._fs, path = open_storage(out)
        self._out, self._ranks = path.rstrip("/"), ranks
        self._unfinished = f"{self._out}.unfinished"
        self._writer: pq.ParquetWriter | None = None
        self._file = f"{self._unfinished}/part-{ranks.rank:05d}.parquet"
        check_output(out)

    def __enter__(self) -> ParquetParts:
        if self._ranks.is_first:
            if self._fs.exists(self._unfinished):
                self._fs.rm(self._unfinished, recursive=True)
            self._fs.makedirs(self._unfinished)
        dist.barrier(self._ranks.control)
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows to this rank's file."""
        if self._writer is None:
            self._sink = self._fs.open(self._file, "wb")
            self._writer = pq.ParquetWriter(self._sink, table.schema, write_page_checksum=True)
        self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
        if error is not None:
            # Ranks fail together; whoever comes first removes what was written.
            if self._fs.exists(self._unfinished):
                self._fs.rm(self._unfinished, recursive=True)
            return
        dist.barrier(self._ranks.control)
        if self._ranks.is_first:
            with writing(self._fs, self._out):
                move_directory(self._fs, self._unfinished, self._out)
        dist.barrier(self._ranks.control)
