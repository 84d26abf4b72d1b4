"""Rows that can be told apart, for tests of the reader: in files, and found again in batches."""

from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torchrec.sparse.jagged_tensor_validator import validate_keyed_jagged_tensor

from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema

LOCAL = fsspec.filesystem("file")
SCHEMA = Schema.model_validate(
    {
        "features": {
            "user": {"kind": "id", "range": 100, "dim": 4},
            "tags": {"kind": "id_list", "range": 100, "dim": 4, "weights": "tag_weights"},
            "price": {"kind": "number"},
        },
        "labels": {"click": {}, "buy": {}},
        "weight": "importance",
    }
)


def table(first: int, rows: int) -> pa.Table:
    """Rows that can be told apart, numbered from `first`."""
    numbers = range(first, first + rows)
    return pa.table(
        {
            "row": pa.array(numbers, pa.int64()),
            "user": pa.array([number % 100 for number in numbers], pa.int32()),
            "tags": pa.array([[number % 7] * (number % 4) for number in numbers], pa.list_(pa.int16())),
            "tag_weights": pa.array([[number / 8] * (number % 4) for number in numbers], pa.list_(pa.float64())),
            "price": pa.array([number / 2 for number in numbers], pa.float64()),
            "click": pa.array([number % 2 for number in numbers], pa.int8()),
            "buy": pa.array([number % 3 == 0 for number in numbers], pa.bool_()),
            "importance": pa.array([1 + number % 5 for number in numbers], pa.float32()),
        }
    )


def write(folder: str, files: list[list[int]], filesystem: fsspec.AbstractFileSystem = LOCAL) -> list[str]:
    """One file for each list, with row groups of those sizes; rows are numbered through."""
    paths, first = [], 0
    for number, groups in enumerate(files):
        paths.append(f"{folder}/part-{number:03d}.parquet")
        with filesystem.open(paths[-1], "wb") as stream, pq.ParquetWriter(stream, table(0, 0).schema) as writer:
            for rows in groups:
                writer.write_table(table(first, rows))
                first += rows
    return paths


def check(batch: Batch) -> list[int]:
    """The rows of a batch, after everything else in it was compared with them."""
    assert validate_keyed_jagged_tensor(batch.sparse)
    assert batch.keys is not None
    rows = batch.keys["row"].to_pylist()
    padding = len(batch.weights_B) - len(rows)
    tags = [row.tolist() for row in batch.sparse["tags"].to_dense()]
    assert [row.tolist() for row in batch.sparse["user"].to_dense()] == [[row % 100] for row in rows] + [[]] * padding
    assert tags == [[row % 7] * (row % 4) for row in rows] + [[]] * padding
    weights = [1.0] * len(rows) + [row / 8 for row in rows for _ in range(row % 4)]
    np.testing.assert_allclose(batch.sparse.weights(), weights, rtol=1e-6)
    np.testing.assert_allclose(batch.dense_BF, [[row / 2] for row in rows] + [[0]] * padding)
    assert batch.labels_BK.tolist() == [[row % 2, row % 3 == 0] for row in rows] + [[0, 0]] * padding
    assert batch.weights_B.tolist() == [1 + row % 5 for row in rows] + [0] * padding
    return rows


def read(
    dataset: ParquetDataset, batch_size: int, world_size: int, epoch: int, row: int, **keys: Any
) -> list[list[int]]:
    """The rows of every step, ranks one after the other; all ranks must take the same number of steps."""
    ranks = []
    for rank in range(world_size):
        reader = BatchReader(dataset, batch_size, rank, world_size, **keys)
        batches = list(reader.epoch(epoch, row))
        assert len(batches) == reader.steps(row)
        assert {len(batch.weights_B) for batch in batches} == {batch_size // world_size}
        ranks.append([check(batch) for batch in batches])
    return [[row for rank in step for row in rank] for step in zip(*ranks, strict=True)]
