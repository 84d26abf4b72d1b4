"""Rows, files of them and what readers make of them, for tests of bad data."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "features": {
            "user": {"kind": "id", "range": 90, "dim": 4},
            "city": {"kind": "id", "buckets": 9, "dim": 4},
            "seen": {"kind": "id_list", "range": 90, "dim": 4, "weights": "seen_weights"},
            "words": {"kind": "id_list", "buckets": 9, "separator": " ", "dim": 4},
            "price": {"kind": "number"},
        },
        "labels": {"click": {}},
    }
)
ROWS, ROW_GROUP = 12, 4


def table(first: int = 0, rows: int = ROWS) -> pa.Table:
    numbers = range(first, first + rows)
    return pa.table(
        {
            "row": pa.array(numbers, pa.int64()),
            "user": pa.array(numbers, pa.int64()),
            "city": [f"city {number % 5}" for number in numbers],
            "seen": [[number] * (number % 3) for number in numbers],
            "seen_weights": [[0.5] * (number % 3) for number in numbers],
            "words": [f"a b{number % 2}" for number in numbers],
            "price": pa.array([float(number) for number in numbers]),
            "click": pa.array([number % 2 for number in numbers], pa.int8()),
        }
    )


def write(path: Path, rows: pa.Table, **options: Any) -> Path:
    pq.write_table(rows, path, **{"row_group_size": ROW_GROUP, "write_page_checksum": True, **options})
    return path


def changed(column: str, array: pa.Array | None, rows: int = ROWS) -> pa.Table:
    made = table(rows, rows)
    place = made.column_names.index(column)
    return made.remove_column(place) if array is None else made.set_column(place, column, array)


def batches(source: Any, world_size: int = 1, **keys: Any) -> tuple[list[Batch], list[BatchReader]]:
    """The batches of an epoch from all ranks, those of rank 0 first, and the readers."""
    dataset = source if isinstance(source, ParquetDataset) else ParquetDataset(str(source), SCHEMA, keys=["row"])
    readers = [BatchReader(dataset, 4, rank, world_size, **{"window_rows": 8, **keys}) for rank in range(world_size)]
    return [batch for reader in readers for batch in reader.epoch()], readers


def rows_of(read: list[Batch]) -> dict[int, tuple[Any, ...]]:
    """By number what was made of each row; rows that cannot be read have no number and are left out."""
    found: dict[int, tuple[Any, ...]] = {}
    for batch in read:
        bags = [[row.tolist() for row in batch.sparse[key].to_dense()] for key in SCHEMA.sparse_features]
        assert batch.keys is not None
        for number, row in enumerate(batch.keys["row"].to_pylist()):
            ids = [bag[number] for bag in bags]
            numbers = (
                batch.dense_BF[number].tolist(),
                batch.labels_BK[number].tolist(),
                float(batch.weights_B[number]),
            )
            assert row not in found, "a row came twice"
            if row is not None:
                found[row] = (ids, *numbers)
    return found


def damage(path: Path, row_group: int, column: str) -> None:
    """Flip a bit in the last byte of a column chunk; its file looks as before."""
    file = pq.ParquetFile(path)
    number = next(n for n in range(file.metadata.num_columns) if file.metadata.schema.column(n).path.startswith(column))
    chunk = file.metadata.row_group(row_group).column(number)
    start = min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset is not None)
    data = bytearray(path.read_bytes())
    data[start + chunk.total_compressed_size - 1] ^= 4
    path.write_bytes(data)
