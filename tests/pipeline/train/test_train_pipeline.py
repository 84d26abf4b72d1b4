"""Ranks agree on every step: when one has no batch, and when one cannot read its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rankmixer.embeddings.sharding import Cluster
from rankmixer.launch.model.build import build
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.train.train_pipeline import AgreedPipeline, PeerFailed
from tests.embeddings.test_sharding import batch_of, config, global_batch
from tests.helpers.ranks import run_ranks


def train_until_the_end(pipeline: AgreedPipeline, batches: Iterator[Batch]) -> int:
    steps = 0
    try:
        while True:
            pipeline.progress(batches)
            steps += 1
    except StopIteration:
        return steps


def batches_then_failure(batches: list[Batch]) -> Iterator[Batch]:
    yield from batches
    raise ValueError("row 7 is bad")


def uneven_ranks(rank: int, world_size: int) -> dict[str, Any]:
    ranks = Ranks(rank, world_size, rank, world_size, torch.device("cpu"), dist.new_group(backend="gloo"))
    run = config("planner")
    built = build(run, ranks, Cluster("cpu", world_size, world_size, 0, 8 << 30), total_steps=10)
    pipeline = AgreedPipeline(built.model, built.optimizer, ranks.device, ranks.control)

    def some(count: int) -> list[Batch]:
        return [batch_of(global_batch(), run.feature_schema.sparse_features, slice(0, 4)) for _ in range(count)]

    first = train_until_the_end(pipeline, iter(some(5 if rank == 0 else 3)))
    second = train_until_the_end(pipeline, iter(some(1 if rank == 0 else 2)))
    weightless = some(1)
    weightless[0].weights_B.zero_()
    loss = pipeline.progress(iter(weightless)).loss.item()
    try:
        train_until_the_end(pipeline, iter(some(4)) if rank == 0 else batches_then_failure(some(1)))
        failure = "none"
    except (PeerFailed, ValueError) as error:
        failure = f"{type(error).__name__}: {error}"
    return {"first": first, "second": second, "loss": loss, "failure": failure}


@pytest.mark.slow
def test_ranks_end_together_and_fail_together(tmp_path: Path) -> None:
    results = run_ranks(2, uneven_ranks, tmp_path)
    assert [result["first"] for result in results] == [3, 3]
    assert [result["second"] for result in results] == [1, 1]  # the end of one epoch does not end the next
    assert [result["loss"] for result in results] == [0.0, 0.0]  # a global batch without weight
    assert results[0]["failure"] == "PeerFailed: 1 of 2 ranks could not read their batch"
    assert results[1]["failure"] == "ValueError: row 7 is bad"
