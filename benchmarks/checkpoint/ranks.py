"""What a rank of a job does for `python -m benchmarks.checkpoint`: trains, saves, loads, and the same bytes plainly."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from benchmarks.harness import interleave
from rankmixer.launch.config.config import Config
from rankmixer.launch.job.rollback import Rollbacks
from rankmixer.launch.job.train import Training
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.ranks.run_lock import RunLock
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.train.loop import Position

BLOCK = 16 * 2**20  # bytes of a plain read or write
DIM = 64
ROWS = 50_000  # of training data


def config_of(folder: Path, gigabytes: float) -> Config:
    """Two tables that take so many GB with their optimizer's state, a head of the preset `tiny`, and a little data."""
    table_rows = int(gigabytes * 1e9 / 2 / (4 * DIM + 4))
    random = np.random.RandomState(0)
    columns = {name: random.randint(table_rows, size=ROWS) for name in ("user", "item")}
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(pa.table({**columns, "click": random.randint(2, size=ROWS)}), folder / "data" / "rows.parquet")
    feature = {"kind": "id", "range": table_rows, "dim": DIM}
    return Config.model_validate(
        {
            "feature_schema": {
                "features": {"user": {**feature, "group": "user"}, "item": {**feature, "group": "item"}},
                "labels": {"click": {}},
            },
            "data": {"train": str(folder / "data"), "batch_size": 512},
            "model": {"preset": "tiny"},
            "train": {"epochs": 1_000_000, "log_steps": 10, "log_seconds": 1e9, "peak_tflops": 1.0},
            "run": {"directory": str(folder / "run"), "keep": 1, "resume": "never"},
        }
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every arm on this rank, between barriers; and the bytes of its part and of the whole."""
    world = dist.get_world_size()
    folder = Path(options.folder, str(world))
    store = dist.FileStore(str(folder / "messages"), world)
    rank = dist.get_rank()
    ranks = Ranks(rank, world, rank, world, torch.device("cpu"), dist.new_group(backend="gloo"), store=store)
    config = config_of(folder, options.gigabytes)
    with RunLock(config) as lock:
        return measure_all(Training(config, ranks, Rollbacks(config, ranks), lock), folder, options)


def measure_all(training: Training, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The arms of `measure`, in turn."""
    if training.journal:
        training.journal.close()  # nothing but training and saving is measured
    training.built.model.train()
    steps = Steps(training)
    window = steps.that_take(options.seconds)
    stepping = interleave(
        {
            "without": lambda: between_barriers(partial(steps.train, window)),
            "with": lambda: between_barriers(partial(steps.train_and_save, window)),
        },
        options.runs,
    )
    blocked = list(steps.blocked)[1:]  # the first takes its memory from the system
    moving, sizes = bandwidth(training, folder, options.runs)
    return {"steps": window, "stepping": stepping, "blocked": blocked, "moving": moving, **sizes}


class Steps:
    """Training, some steps at a time, without evaluation."""

    def __init__(self, training: Training) -> None:
        self.training, self.loop = training, training.loop
        self.loop.evaluate = lambda position: False
        self.loop.save = self._save
        self.blocked: list[float] = []
        self._due: int | None = None

    def train(self, steps: int, due: int | None = None) -> None:
        """Take some steps; after `due` of them stands a checkpoint, as in a job: the pipeline runs dry for it."""
        done = self.loop.position.step
        self._due = due and done + due
        self.loop.pace = replace(self.loop.pace, max_steps=done + steps, checkpoint_every=self._due)
        self.loop.run()

    def train_and_save(self, steps: int) -> None:
        """Take some steps with a checkpoint among them, which is whole at their end."""
        self.train(steps, due=max(1, steps // 4))
        outcome = self.training.saver.wait()
        assert outcome is not None
        assert not outcome.failures, str(outcome)

    def _save(self, position: Position) -> None:
        if position.step == self._due:
            started = time.perf_counter()
            self.training.save(position)
            self.blocked.append(time.perf_counter() - started)

    def that_take(self, seconds: float) -> int:
        """How many steps take so long, the same on all ranks."""
        self.train(20)
        needed = between_barriers(partial(self.train, 100)) / 100
        steps = torch.tensor(max(20, round(seconds / needed)))
        dist.broadcast(steps, 0)
        return int(steps)


def bandwidth(training: Training, folder: Path, runs: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of saving and loading, and of writing and reading the same bytes plainly."""
    checkpoints = Checkpoints(folder / "bandwidth", keep=1)
    state = training.built.state()
    saved = folder / "bandwidth" / checkpoints.save(1, state, {})
    mine = saved / f"rank-{dist.get_rank():05d}.safetensors"
    plain = folder / f"plain-{dist.get_rank()}"
    size = mine.stat().st_size
    memory = torch.from_numpy(np.fromfile(mine, dtype=np.uint8))

    def save() -> float:
        if dist.get_rank() == 0:
            for file in saved.iterdir():
                file.unlink()
        return between_barriers(lambda: checkpoints.save(1, state, {}))

    def write() -> float:
        plain.unlink(missing_ok=True)
        return between_barriers(lambda: write_plainly(plain, memory))

    def read(action: Callable[[], Any], path: Path, cold: bool) -> float:
        for file in path.iterdir() if path.is_dir() else [path]:
            (forget if cold else remember)(file)
        return between_barriers(action)

    arms: dict[str, Callable[[], float]] = {"save": save, "write": write}
    for name, cold in (("cold", True), ("warm", False)):
        arms[f"load, {name}"] = partial(read, lambda: checkpoints.load(saved.name, state), saved, cold)
        arms[f"read, {name}"] = partial(read, lambda: read_plainly(plain, memory), plain, cold)
    seconds = interleave(arms, runs)
    whole = sum(file.stat().st_size for file in saved.iterdir())
    return seconds, {"bytes_here": size, "bytes": whole}


def between_barriers(action: Callable[[], Any]) -> float:
    """Seconds until all ranks have done it."""
    dist.barrier()
    started = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - started


def write_plainly(path: Path, memory: torch.Tensor) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in memory.split(BLOCK):
            file.write(piece.numpy().data)
        os.fsync(file.fileno())


def read_plainly(path: Path, memory: torch.Tensor) -> None:
    with path.open("rb", buffering=0) as file:
        for piece in memory.split(BLOCK):
            assert file.readinto(piece.numpy().data) == len(piece)


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(path: Path) -> None:
    """Have all of a file in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(BLOCK):
            pass
