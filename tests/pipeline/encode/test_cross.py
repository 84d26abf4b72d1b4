"""Crosses against the definition: xxhash over the ids' bytes, in Python, row by row."""

import struct
from pathlib import Path
from typing import Any

import pytest
import xxhash

from tests.pipeline.read.test_block import ids, read

USER = {"kind": "id", "range": 9, "dim": 4}
AGE = {"kind": "number", "boundaries": [20, 40], "dim": 4}
CROSS = {"kind": "cross", "of": ["user", "age"], "buckets": 1000, "dim": 4}
COLUMNS: dict[str, Any] = {"user": [3, 8, None, 3], "age": [10, 45, 20, 10]}


def expected(parts: tuple[int, ...], buckets: int, seed: int = 0) -> int:
    return xxhash.xxh64_intdigest(struct.pack(f"<{len(parts)}q", *parts), seed) % buckets


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_cross_is_the_hash_of_its_parts(tmp_path: Path, shuffle: bool) -> None:
    features = {"x": {**CROSS, "seed": 5}, "user": USER, "age": AGE}  # a cross may stand before what it is of
    batch, mended = read(tmp_path, COLUMNS, features, shuffle)
    assert batch.sparse.keys() == ["x", "user", "age"]
    found = list(zip(ids(batch, "user"), ids(batch, "age"), ids(batch, "x"), strict=True))
    for user, age, cross in found:
        assert cross == ([expected((user[0], age[0]), 1000, seed=5)] if user else [])
    assert sorted(user for user, _, _ in found) == [[], [3], [3], [8]]
    assert mended == {"user: null -> empty": 1}  # once, not again for the cross


def test_the_order_of_the_parts_counts_and_three_can_be_crossed(tmp_path: Path) -> None:
    hour = {"kind": "time", "unit": "s", "part": "hour", "dim": 4}
    features = {
        "user": {**USER, "default": 1},
        "age": AGE,
        "hour": hour,
        "ab": CROSS,
        "ba": {**CROSS, "of": ["age", "user"]},
        "abc": {**CROSS, "of": ["user", "age", "hour"], "buckets": 2**40},
    }
    batch, _ = read(tmp_path, {**COLUMNS, "hour": [0, 3600, 7200, 86_399]}, features)
    users, ages, hours = [3, 8, 1, 3], [0, 2, 1, 0], [0, 1, 2, 23]
    assert ids(batch, "ab") == [[expected(pair, 1000)] for pair in zip(users, ages, strict=True)]
    assert ids(batch, "ba") == [[expected(pair, 1000)] for pair in zip(ages, users, strict=True)]
    assert ids(batch, "abc") == [[expected(row, 2**40)] for row in zip(users, ages, hours, strict=True)]


def test_a_reserved_id_is_crossed_and_a_dropped_row_is_not(tmp_path: Path) -> None:
    columns = {"user": [3, 99, 8, 3], "age": [10, 10, 10, 45]}
    batch, _ = read(tmp_path, columns, {"user": {**USER, "on_bad": "reserve"}, "age": AGE, "x": CROSS})
    assert ids(batch, "x")[1] == [expected((9, 0), 1000)]
    batch, mended = read(tmp_path, columns, {"user": {**USER, "on_bad": "drop"}, "age": AGE, "x": CROSS})
    assert ids(batch, "x")[1] == []
    assert batch.weights_B.tolist() == [1, 0, 1, 1]
    assert mended == {"user: out of range -> row dropped": 1}
