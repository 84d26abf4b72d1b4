"""Rows without a group, such as those whose user is null: in no group of GAUC, on one rank and on several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from rankmixer.launch.job.job import group_ids
from rankmixer.pipeline.metrics.metrics import Metrics
from rankmixer.pipeline.read.batch import Batch
from tests.helpers.ranks import run_ranks
from tests.pipeline.metrics.test_metrics import random_rows

ROWS = 400


def rows() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows in which group 0 exists and every third row has none, though its number is that of group 0."""
    logits_BK, labels_BK, weights_B, groups_B = random_rows(ROWS, tasks=2, seed=11, distinct=50)
    grouped_B = torch.arange(ROWS) % 3 != 0
    return logits_BK, labels_BK, weights_B, torch.where(grouped_B, (groups_B + 2048) // 1024, 0), grouped_B


def computed(rank: int, world_size: int, bins: int | None = None) -> dict[str, float]:
    """The metrics; the last of several ranks has only rows without a group."""
    columns = rows()
    metrics = Metrics(["click", "buy"], group="user", auc_bins=bins)
    place_B, grouped_B = torch.arange(ROWS), columns[-1]
    if world_size > 1:
        is_last_B = ~grouped_B & (place_B >= 100)
        mine_B = is_last_B if rank == world_size - 1 else ~is_last_B & (place_B % (world_size - 1) == rank)
    else:
        mine_B = place_B >= 0
    metrics.update(*(column[mine_B] for column in columns))
    return metrics.compute()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("bins", [None, 64])
def test_gauc_is_that_of_the_rows_with_a_group(world_size: int, bins: int | None, tmp_path: Path) -> None:
    *columns, grouped_B = rows()
    weights_B = columns[2]
    alone, everything = Metrics(["click", "buy"], group="user"), Metrics(["click", "buy"], group="user")
    alone.update(*(column[grouped_B] for column in columns))
    everything.update(*columns)
    expected, joined = alone.compute(), everything.compute()
    results = [computed(0, 1, bins)] if world_size == 1 else run_ranks(world_size, computed, tmp_path, bins)
    for found in results:
        for task in ("click", "buy"):
            assert found[f"{task}/gauc"] == pytest.approx(expected[f"{task}/gauc"], rel=1e-12)
            assert found[f"{task}/gauc"] != pytest.approx(joined[f"{task}/gauc"], rel=1e-3)
            assert found[f"{task}/logloss"] == pytest.approx(joined[f"{task}/logloss"], rel=1e-12)
            if bins is None:
                assert found[f"{task}/auc"] == pytest.approx(joined[f"{task}/auc"], rel=1e-12)
        without = float(weights_B[~grouped_B].double().sum() / weights_B.double().sum())
        assert found["ungrouped"] == pytest.approx(without, rel=1e-12)
        assert found["rows"] == joined["rows"]


def test_no_row_has_a_group() -> None:
    logits_BK, labels_BK, weights_B, groups_B, grouped_B = rows()
    metrics = Metrics(["click", "buy"], group="user")
    metrics.update(logits_BK, labels_BK, weights_B, groups_B, torch.zeros_like(grouped_B))
    values = metrics.compute()
    assert np.isnan(values["click/gauc"])
    assert values["ungrouped"] == 1.0
    assert "ungrouped" not in Metrics(["click"]).compute()


@pytest.mark.parametrize(
    "users",
    [
        pa.array([0, None, 7, 0, None], pa.int64()),
        pa.array([0, None, 7, 0, None], pa.uint16()),
        pa.array(["", None, "a", "", None]),
        pa.array(["", None, "a", "", None], pa.large_string()),
        pa.array(["", None, "a", "", None]).dictionary_encode(),
        pa.DictionaryArray.from_arrays([0, 1, 2, 0, 1], pa.array(["", None, "a"])),  # null is a word of the dictionary
    ],
    ids=lambda users: str(users.type),
)
def test_null_is_no_user_and_neither_0_nor_the_empty_string(users: pa.Array) -> None:
    sparse = KeyedJaggedTensor(keys=[], values=torch.empty(0, dtype=torch.int64), lengths=torch.empty(0).int())
    keys = pa.table({"user": pa.chunked_array([users.slice(0, 2), users.slice(2)])})
    batch = Batch(sparse, torch.zeros(6, 0), torch.zeros(6, 1), torch.ones(6), keys)
    groups_B, grouped_B = group_ids(batch, "user")
    assert grouped_B.tolist() == [True, False, True, True, False, False]  # the last is padding
    assert groups_B[0] == groups_B[3] != groups_B[2]
