"""What a checkpoint of a run holds, and when it is whole."""

from __future__ import annotations

import math
import time
from dataclasses import asdict

from rankmixer.launch.config.config import Config, dump_config
from rankmixer.launch.health.health import largest_weight
from rankmixer.launch.health.symptoms import in_weights
from rankmixer.launch.job.checkup import Checkup
from rankmixer.launch.job.job import random_state, sizes_of, waiting_state
from rankmixer.launch.job.judging import Judge
from rankmixer.launch.job.save_report import SaveReport, remedy
from rankmixer.launch.model.build import Build
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.ranks.errors import SECONDS_TO_BE_STOPPED, JobFailed
from rankmixer.launch.ranks.versions import versions
from rankmixer.launch.rows.bad_files import remembered
from rankmixer.launch.rows.learnt import SchemaKeeper
from rankmixer.pipeline.checkpoint.background import BackgroundSaves
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.save import Outcome
from rankmixer.pipeline.journal.journal import Journal
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.train.loop import DivergedError, Position

# What a job waits before it tries again to write its last checkpoint.
RETRY_SECONDS = (1.0, 5.0, 15.0)


class Saver:
    """Writes the checkpoints of one run, while training goes on.

    Args:
        config: the run.
        built: model, tables and optimizers.
        ranks: this process.
        checkpoints: where to.
        journal: of rank 0; None on other ranks.
        checkup: is told how large the weights are.
    """

    def __init__(
        self,
        config: Config,
        built: Build,
        ranks: Ranks,
        checkpoints: Checkpoints,
        journal: Journal | None,
        checkup: Checkup,
    ) -> None:
        self.config, self.built, self.ranks = config, built, ranks
        self.checkpoints, self.checkup = checkpoints, checkup
        self._report = SaveReport(journal)
        self._schema = SchemaKeeper(config) if ranks.is_first else None
        self._saves = BackgroundSaves(checkpoints, ranks.store, ranks_here=ranks.local_world_size, tell=self._tell)

    def save(self, position: Position, dataset: ParquetDataset, judge: Judge) -> None:
        """Copy what a checkpoint holds, and let it be written: model, optimizers, random state; all else as JSON.

        A save that is still under way is waited for. Collective.

        Raises:
            DivergedError: a weight is not finite.
        """
        largest = largest_weight(self.built.model)
        if not math.isfinite(largest):
            what = f"weights are not finite after step {position.step}, though the loss still was"
            raise DivergedError(what, position.step)
        self.checkup.tell(position.step, in_weights(largest))
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
        waited = self._saves.save(position.step, state, meta, metric)
        self._report.tell_slow(position.step, waited)

    def wait(self) -> Outcome | None:
        """Wait until the last save is done, and say what became of it; None before the first. Collective.

        Afterwards `checkpoints.latest()` is the last good checkpoint.
        """
        return self._saves.wait()

    def finish(self) -> None:
        """Wait until the last checkpoint is whole; where it could not be written, try again. Collective.

        The state must be the one saved.

        Raises:
            JobFailed: it cannot be written.
        """
        outcome = self.wait()
        for seconds in RETRY_SECONDS:
            if outcome is None or not outcome.failures:
                return
            time.sleep(seconds)
            outcome = self._saves.again()
        if outcome is not None and outcome.failures:
            latest = self.checkpoints.latest()
            kept = f"{latest} is the last good checkpoint" if latest else "there is no checkpoint"
            raise JobFailed(
                f"{outcome}, after {1 + len(RETRY_SECONDS)} attempts. It was to be the last of the job, and what was "
                f"trained since is lost: {kept}. {remedy(outcome).capitalize()}; the same command then resumes"
            )

    def close(self) -> None:
        """Give a save that is under way the time to end that the job's end leaves. Not collective."""
        alone = self.ranks.world_size == 1
        self._saves.close(self.config.run.timeout_seconds if alone else SECONDS_TO_BE_STOPPED)

    def _tell(self, outcome: Outcome) -> None:
        """On rank 0, when a save is done: tell the journal, and see that the schema still lies beside it."""
        self._report.tell(outcome)
        if self._schema is not None and not outcome.failures:
            try:
                self._schema.keep()
            except Exception as error:  # filesystems of fsspec raise anything
                message = f"{self._schema.directory} was removed and cannot be written again: {error}"
                self._report.warn(outcome.step, f"{message}; {outcome.name} cannot be used without it")
