"""MovieLens-1M's rows as they are split for every benchmark: one pinned split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

FEATURES = ["user_id", "gender", "age", "occupation", "zip", "item_id", "year", "genres"]
PARTS = ("train", "validation", "test")
# NumPy's RandomState stream is frozen.
SPLIT_SEED, TEST_SHARE, VALIDATION_SHARE = 0, 0.1, 0.05


def split_ml_1m(file: str, out: Path) -> None:
    """90/10 into training and test rows, then validation out of training; rating and order are dropped."""
    table = pq.read_table(file, columns=[*FEATURES, "label"])
    order = np.random.RandomState(SPLIT_SEED).permutation(len(table))
    test = round(len(table) * TEST_SHARE)
    validation = round((len(table) - test) * VALIDATION_SHARE)
    parts = np.split(order, [len(table) - test - validation, len(table) - test])
    for part, indices in zip(PARTS, parts, strict=True):
        (out / part).mkdir(parents=True)
        pq.write_table(
            table.take(indices), out / part / "part-00000.parquet", row_group_size=65_536, write_page_checksum=True
        )
