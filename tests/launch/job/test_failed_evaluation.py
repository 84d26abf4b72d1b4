"""An evaluation that raises, on one rank or all: what was trained is saved once, and the same command goes on there."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from rankmixer.launch.cli import _quiet_libraries
from rankmixer.launch.config.config import load_config
from rankmixer.launch.job.train import train
from rankmixer.launch.ranks.errors import JobFailed
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.metrics.metrics import Metrics
from rankmixer.pipeline.metrics.reliability import Reliability
from tests.helpers.job import Job
from tests.integration.test_preemption import free_ports, records

OVERRIDES = ["train.checkpoint_every=100", "metrics.slices=[city]"]
BATCHES = 4  # of an evaluation


def be_rank(rank: int, world_size: int, port: int, config: str, run: str, where: str) -> None:
    """Train; with an evaluation that fails on the last rank in its first or last batch, or on all at its end."""
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "localhost"})
    os.environ.update({"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    _quiet_libraries()
    update, calls = Reliability.update, [0]

    def break_in_a_batch(self: Any, *arguments: Any) -> None:
        calls[0] += 1
        update(self, *arguments)
        if rank == world_size - 1 and calls[0] == (1 if where == "first batch" else BATCHES):
            raise KeyError("broken here")

    def break_on_all(self: Any, *arguments: Any) -> Any:
        raise ValueError("broken here")

    if where == "end":
        Metrics.compute = break_on_all  # type: ignore[assignment]
    elif where:
        Reliability.update = break_in_a_batch  # type: ignore[assignment]
    arguments = load_config(config, [*OVERRIDES, f"run.directory={Path(config).with_name(run)}"])
    if where:
        with pytest.raises((KeyError, ValueError, RuntimeError, JobFailed), match="broken here"):
            train(arguments)
    else:
        train(arguments)


@pytest.mark.parametrize(
    ("ranks", "where"),
    [
        (2, "first batch"),
        (2, "last batch"),
        (1, "first batch"),
        pytest.param(2, "end", marks=pytest.mark.long),
    ],
)
def test_what_was_trained_is_saved_and_the_evaluation_done_again(ranks: int, where: str, tmp_path: Path) -> None:
    job = Job(tmp_path)
    attempts = [("undisturbed", ""), ("run", where), ("run", "")]
    for port, attempt in zip(free_ports(len(attempts)), attempts, strict=True):
        mp.start_processes(be_rank, (ranks, port, str(job.config), *attempt), nprocs=ranks, start_method="spawn")
    lines, expected = (read_log(tmp_path / run) for run in ("run", "undisturbed"))
    warning = "the evaluation has failed; step 4 is saved; the same command goes on with the evaluation"
    assert [line["message"] for line in records(lines, "warning")].count(warning) == 1
    assert [line.get("resumed_from") for line in records(lines, "start")] == [None, "step-00000004"]
    for kind in ("evaluate", "finish"):
        assert records(lines, kind) == records(expected, kind)
    assert job.losses() == job.losses("undisturbed")
