"""What a checkpoint of a run holds."""

from __future__ import annotations

from dataclasses import asdict

from launch.bad_files import remembered
from launch.build import Build
from launch.config import Config, dump_config
from launch.distributed import Ranks
from launch.health import are_finite
from launch.job import random_state, sizes_of, waiting_state
from launch.judging import Judge
from launch.versions import versions
from pipeline.checkpoint import Checkpoints
from pipeline.collective import together
from pipeline.dataset import ParquetDataset
from pipeline.journal import Journal
from pipeline.loop import DivergedError, Position


class Saver:
    """Writes the checkpoints of one run.

    Args:
        config: the run.
        built: model, tables and optimizers.
        ranks: this process.
        checkpoints: where to.
        journal: of rank 0; None on other ranks.
    """

    def __init__(
        self, config: Config, built: Build, ranks: Ranks, checkpoints: Checkpoints, journal: Journal | None
    ) -> None:
        self.config, self.built, self.ranks = config, built, ranks
        self.checkpoints, self.journal = checkpoints, journal

    def save(self, position: Position, dataset: ParquetDataset, judge: Judge) -> None:
        """Write a checkpoint: model, tables, optimizers, random state; position and everything else as JSON.

        Raises:
            DivergedError: a weight is not finite.
        """
        broken = together("cannot look at the weights", lambda: not are_finite(self.built.model.parameters()))
        if any(broken):
            raise DivergedError(f"weights are not finite after step {position.step}, though the loss still was")
        waiting = waiting_state(self.built, self.ranks)
        state = {**self.built.state(), "random": random_state(self.ranks), "waiting": waiting}
        meta = {
            "position": asdict(position),
            **judge.memory(),
            "config": dump_config(self.config),
            "schema_digest": self.config.feature_schema.digest(),
            "data": remembered(dataset),
            "plan": [asdict(shard) for shard in self.built.plan],
            "waiting": sizes_of(waiting),
            "world_size": self.ranks.world_size,
            "device": self.ranks.device.type,
            "versions": versions(),
        }
        metric = judge.score() if judge.step == position.step else None
        name = self.checkpoints.save(position.step, state, meta, metric=metric)
        if self.journal:
            self.journal.event("checkpoint", position.step, name=name)
