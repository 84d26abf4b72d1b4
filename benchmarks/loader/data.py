"""The rows that benchmarks.loader reads: integers, numbers and lists; or strings. Written chunk by chunk."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.pipeline.schema.schema import Schema

IDS, NUMBERS, LISTS = 26, 13, 2
FILES = 20
ROW_GROUP = 1 << 17
CARDINALITIES = np.geomspace(4, 1_000_000, IDS).astype(int).tolist()
MANY_FILES, MANY_ROWS, MANY_DISTINCT = 10_000, 1_000, 20
LABEL: dict[str, Any] = {"label": {}}
INT_SCHEMA = Schema.model_validate(
    {
        "features": {
            **{f"id{i}": {"kind": "id", "range": size, "dim": 16} for i, size in enumerate(CARDINALITIES)},
            **{f"list{i}": {"kind": "id_list", "buckets": 100_000, "dim": 16} for i in range(LISTS)},
            **{f"number{i}": {"kind": "number", "transform": "log1p"} for i in range(NUMBERS)},
        },
        "labels": LABEL,
    }
)
STR_SCHEMA = Schema.model_validate(
    {
        "features": {f"id{i}": {"kind": "id", "buckets": 100_000, "dim": 16} for i in range(IDS)},
        "labels": LABEL,
    }
)
Columns = Callable[[np.random.Generator, int], dict[str, Any]]


def int_columns(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    columns: dict[str, Any] = {f"id{i}": _skewed(rng, size, rows) for i, size in enumerate(CARDINALITIES)}
    for i in range(LISTS):
        offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 11, rows))]).astype(np.int32)
        columns[f"list{i}"] = pa.ListArray.from_arrays(offsets, _skewed(rng, 1_000_000, int(offsets[-1])))
    columns |= {f"number{i}": rng.exponential(10, rows).astype(np.float32) for i in range(NUMBERS)}
    return columns | _labels(rng, rows)


def str_columns(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    words = {f"id{i}": _words(size).take(pa.array(_skewed(rng, size, rows))) for i, size in enumerate(CARDINALITIES)}
    return words | _labels(rng, rows)


def write_files(folder: Path, columns: Columns, rows: int, codec: str, workers: int) -> list[str]:
    """`rows` rows in `FILES` files; a process holds one row group at a time."""
    folder.mkdir()
    paths = [str(folder / f"part-{number:03d}.parquet") for number in range(FILES)]
    write = partial(_write, columns=columns, rows=rows // FILES, codec=codec)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(write, range(FILES), paths))
    return paths


def write_many(folder: Path, codec: str) -> None:
    """10,000 files of 1,000 rows. They are 20 files under many names, so that the disk holds little."""
    folder.mkdir()
    for number in range(MANY_DISTINCT):
        _write(number, str(folder / f"part-{number:05d}.parquet"), int_columns, MANY_ROWS, codec)
    for number in range(MANY_DISTINCT, MANY_FILES):
        os.link(folder / f"part-{number % MANY_DISTINCT:05d}.parquet", folder / f"part-{number:05d}.parquet")


def _write(number: int, path: str, columns: Columns, rows: int, codec: str) -> None:
    rng = np.random.default_rng(number)
    writer = None
    for start in range(0, rows, ROW_GROUP):
        table = pa.table(columns(rng, min(ROW_GROUP, rows - start)))
        writer = writer or pq.ParquetWriter(path, table.schema, compression=codec)
        writer.write_table(table, row_group_size=ROW_GROUP)
    assert writer is not None
    writer.close()


@cache
def _words(size: int) -> pa.Array:
    return pa.array([f"{number * 2654435761 % 2**32:08x}" for number in range(size)])


def _labels(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    return {"label": (rng.random(rows) < 0.2).astype(np.int8)}


def _skewed(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Ids below `size`, small ones more often, as in logs."""
    return (size * rng.random(count) ** 3).astype(np.int64)
