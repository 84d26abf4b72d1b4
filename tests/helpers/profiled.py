"""Rows with something wrong in every column, for tests of profiles and of drift."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.schema.schema import Schema

ROWS = 700
NUMBERS = Schema.model_validate({"features": {"x": {"kind": "number"}}, "labels": {"click": {}}})


def schema_in(folder: Path) -> Schema:
    """Every kind of column that a profile looks at; its vocabulary lies in the folder."""
    (folder / "cities.txt").write_text("".join(f"city {number}\n" for number in range(20)))
    return Schema.model_validate(
        {
            "features": {
                "user": {"kind": "id", "range": 40, "dim": 8},
                "city": {"kind": "id", "vocabulary": str(folder / "cities.txt"), "dim": 8, "default": "city 3"},
                "item": {"kind": "id", "buckets": 50, "dim": 8, "table": "films"},
                "seen": {"kind": "id_list", "buckets": 50, "dim": 8, "table": "films"},
                "tags": {"kind": "id_list", "buckets": 64, "dim": 4, "separator": "|", "column": "words"},
                "flag": {"kind": "id", "range": 2, "dim": 4},
                "price": {"kind": "number", "transform": "log1p", "standardise": [1.0, 2.0]},
                "age": {"kind": "number", "boundaries": [18, 30], "dim": 4, "default": 50},
            },
            "labels": {"click": {}, "watched": {"column": "share"}},
            "weight": "importance",
        }
    )


def columns(rows: int = ROWS) -> dict[str, list[Any]]:
    """Rows as Python has them, with everything in them that a policy or an error is for."""
    random = np.random.default_rng(3)
    zipf = [min(int(value), 90) for value in random.zipf(1.3, rows)]
    return {
        "user": [int(value) for value in random.integers(-1, 43, rows)],
        "city": [None if row % 9 == 0 else f"city {random.integers(24)}" for row in range(rows)],
        "item": zipf,
        "seen": [None if row % 11 == 0 else [int(i) for i in random.integers(99, size=row % 5)] for row in range(rows)],
        "words": [None if row % 13 == 0 else "|".join(f"w{i}" for i in range(row % 6)) for row in range(rows)],
        "flag": [bool(value < 20) for value in zipf],
        "price": [
            [1.5, None, float("nan"), -2.0, float("inf")][row % 5] if row % 7 == 0 else row / 8 for row in range(rows)
        ],
        "age": [None if row % 10 == 0 else int(random.integers(90)) for row in range(rows)],
        "click": [int(random.random() < (0.9 if row >= rows - 100 else 0.3)) for row in range(rows)],
        "share": [2.0 if row == 333 else float(random.random()) for row in range(rows)],
        "importance": [1.0] * rows,
    }


def write(folder: Path, data: dict[str, list[Any]], **types: pa.DataType) -> ParquetFiles:
    folder.mkdir()
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in data.items()})
    pq.write_table(table.slice(0, len(table) - 100), folder / "a.parquet", row_group_size=150)
    pq.write_table(table.slice(len(table) - 100), folder / "b.parquet", row_group_size=33)
    return ParquetFiles.open(str(folder))
