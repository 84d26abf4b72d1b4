"""A Parquet file that is written batch by batch, in row groups of one size."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 131_072


class ParquetPart:
    """`folder`/part-00000.parquet, written when a row group is full."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(exist_ok=True)
        self._writer = pq.ParquetWriter(folder / "part-00000.parquet", schema, write_page_checksum=True)
        self._batches: list[pa.RecordBatch] = []
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self.rows += len(batch)
        if sum(map(len, self._batches)) >= ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._batches, self._writer.schema)
        if len(table):
            self._writer.write_table(table, row_group_size=len(table))
        self._batches = []
