"""`rankmixer train`: from files to a trained, evaluated, resumable model."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import asdict
from typing import Any

from launch.bad_files import BadFileReport, check_resumed, found_bad
from launch.build import Build, build
from launch.config import Config, dump_config
from launch.distributed import Ranks, check_world_here, cluster_here, process_group
from launch.health import layer_statistics
from launch.job import evaluate, restore, training_reader
from launch.judging import Judge
from launch.learnt import with_schema_to_train
from launch.paths import checkpoints_of
from launch.peak import peak_flops
from launch.plan import planned_memory
from launch.report import print_result
from launch.run_page import PAGE, RunPage
from launch.saving import Saver
from launch.versions import versions
from pipeline.checkpoint import Checkpoints
from pipeline.collective import together
from pipeline.journal import Journal
from pipeline.loop import DivergedError, Loop, Pace, Position
from pipeline.reader import BatchReader
from pipeline.train_pipeline import AgreedPipeline


def train(config: Config) -> None:
    """Train, evaluate, save; resume if the run directory holds a checkpoint. Prints one JSON line at the end."""
    from launch.stream import StreamTraining  # which is a Training

    check_world_here(config)
    kind = Training if config.data.stream is None else StreamTraining
    with process_group(config) as ranks:
        result = kind(with_schema_to_train(config), ranks).run()
        if ranks.is_first:
            print_result(result)


class Training:
    """One run on one rank: everything that outlives a step.

    Args:
        config: the run.
        ranks: this process.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.checkpoints: Checkpoints = checkpoints_of(config)
        resumed = self.checkpoints.latest()
        if resumed and config.run.resume == "never":
            raise ValueError(
                f"{self.checkpoints.directory} holds {resumed} and run.resume is never; give another run.directory, "
                "remove this one, or set run.resume=auto"
            )
        self.meta: dict[str, Any] = self.checkpoints.meta(resumed) if resumed else {}
        data = self.meta.get("data", {})
        position = Position(**self.meta.get("position", {}))
        reader, epochs = self.open_rows(position, data.get("bad_files"))
        pace = Pace(
            epochs=epochs,
            max_steps=config.train.max_steps,
            evaluate_every=config.train.evaluate_every,
            checkpoint_every=config.train.checkpoint_every,
            log_every=config.train.log_steps,
        )
        if data:
            check_resumed(reader.dataset, data, position.row)
        self.total_steps = self.count_steps(pace, position, reader)
        self.built: Build = build(config, ranks, cluster_here(ranks, config.plan), self.total_steps or 1)
        if resumed:
            restore(self.built, ranks, self.checkpoints, resumed, config, to_resume=True)
            self.built.optimizer.set_optimizer_step(position.step)  # FBGEMM's Adam counts steps outside its state
        self.told_mended: Counter[str] = Counter()
        self.peak = config.train.peak_tflops * 1e12 if config.train.peak_tflops else peak_flops(ranks.device)
        self.hosts = ", ".join(dict.fromkeys(together("cannot name the hosts", socket.gethostname)))
        self.journal = self._journal(resumed)
        self.page = RunPage(config.run.directory)
        self.bad_files = BadFileReport(config.run.directory, self.journal)
        self.judge = Judge(config, self.built, ranks, self.journal, self.bad_files, self.meta)
        self.saver = Saver(config, self.built, ranks, self.checkpoints, self.journal)
        self.pipeline = AgreedPipeline(self.built.model, self.built.optimizer, ranks.device, ranks.control)
        self.loop = Loop(
            pipeline=self.pipeline,
            reader=reader,
            pace=pace,
            position=position,
            before_step=self.built.optimizer.follow_schedule,
            report=self.report,
            evaluate=self.evaluate,
            save=self.save,
        )
        if ranks.roll_call:
            ranks.roll_call.steps_done = lambda: position.step

    def open_rows(self, position: Position, set_aside: dict[str, str] | None) -> tuple[BatchReader, int]:
        """What to read, and how often. Collective."""
        return training_reader(self.config, self.ranks, set_aside), self.config.train.epochs

    def count_steps(self, pace: Pace, position: Position, reader: BatchReader) -> int | None:
        """Step number at which training ends if nothing stops it early; None: that is not known."""
        return pace.total_steps(position, reader)

    def train_rows(self) -> None:
        """Train from the position to the end. Collective."""
        self.loop.run()

    def _journal(self, resumed: str | None) -> Journal | None:
        if not self.ranks.is_first:
            return None
        journal = Journal(
            self.config.run.directory,
            total_steps=self.total_steps,
            resume_step=self.meta["position"]["step"] if resumed else 0,
            seconds=self.config.train.log_seconds,
        )
        journal.event(
            "start",
            self.meta.get("position", {}).get("step", 0),
            resumed_from=resumed,
            total_steps=self.total_steps,
            world_size=self.ranks.world_size,
            hosts=self.hosts,
            dense_parameters=self.built.dense_parameters,
            table_parameters=sum(table.rows * table.dim for table in self.config.feature_schema.tables.values()),
            flops_per_example=self.built.flops_per_example,
            peak_tflops=self.peak / 1e12,
            versions=versions(),
            plan={
                "shards": [asdict(shard) for shard in self.built.plan],
                "memory": planned_memory(self.config, self.ranks.world_size, self.built.plan, self.built.head_bytes),
            },
            config=dump_config(self.config),
        )
        return journal

    def run(self) -> dict[str, Any]:
        """Train to the end, then read the test rows once with the best weights."""
        try:
            self.bad_files.tell(self.loop.position.step, "train", found_bad(self.loop.reader))
            self.show()
            self.built.model.train()
            self.train_rows()
            return self.finish()
        except DivergedError as error:
            raise DivergedError(self._diagnosis(error)) from None
        finally:
            self.show(has_ended=True)
            if self.journal:
                self.journal.close()

    def show(self, *, has_ended: bool = False) -> None:
        """Write the run's page, which no disk that fails may turn into the end of the job."""
        if self.journal:
            with self.journal.survive(PAGE):
                self.page.refresh(has_ended=has_ended)

    def _diagnosis(self, error: DivergedError) -> str:
        """What went wrong, what the layers look like, what is safe and what to do. Collective; recorded in the log."""
        checkpoint = self.checkpoints.latest()
        layers = layer_statistics(self.built.model)
        if self.journal:
            self.journal.event("diverged", self.loop.position.step, layers=layers, checkpoint=checkpoint)
        lines = "\n".join(f"  {name}: {found}" for name, found in layers.items())
        kept = f"The last good checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
        return (
            f"{error}. Weights of the layers:\n{lines}\n{kept} in "
            f"{self.checkpoints.directory}; nothing was saved since. Lower optimizer.dense.lr or optimizer.sparse.lr, "
            "set optimizer.clip_norm, or look for huge numbers in the dense features; the same command then resumes"
        )

    def report(self, step: int, *, epoch: int, loss: float, examples_per_second: float, data_wait_share: float) -> None:
        """Tell the journal what the last steps did; rank 0 speaks for all."""
        if self.journal is None:
            return
        # A training step's matrix products are three times the forward's.
        flops = 3 * self.built.flops_per_example * examples_per_second / self.ranks.world_size
        lr_sparse, lr_dense = self.built.optimizer.learning_rates
        grad_norm = self.built.optimizer.grad_norm
        self.journal.step(
            step,
            epoch=epoch,
            loss=loss,
            examples_per_second=examples_per_second,
            data_wait_share=data_wait_share,
            mfu=flops / self.peak,
            lr_sparse=lr_sparse,
            lr_dense=lr_dense,
            **({} if grad_norm is None else {"grad_norm": float(grad_norm)}),
            **self.built.routing_state(),
        )

    def evaluate(self, position: Position) -> bool:
        """Evaluate on data.evaluate; True when early stopping says that it is enough."""
        self.tell_mended(position)
        if self.config.data.evaluate is None:
            return False
        self.pipeline.detach()
        is_enough = self.judge.evaluate(position, self.config.data.evaluate)
        self.show()
        return is_enough

    def tell_mended(self, position: Position) -> None:
        """Say how many values the schema's policies have mended in the training rows so far, on all ranks."""
        counts: Counter[str] = Counter()
        for mended in together("cannot count what was mended", lambda: dict(self.loop.reader.mended)):
            counts.update(mended)
        if counts != self.told_mended and self.journal:
            self.journal.event("mended", position.step, **counts)
        self.told_mended = counts
        self.bad_files.tell(position.step, "train", found_bad(self.loop.reader))

    def save(self, position: Position) -> None:
        """Write a checkpoint."""
        self.saver.save(position, self.loop.reader.dataset, self.judge)

    def finish(self) -> dict[str, Any]:
        """The run's result: its last evaluation, and the test metrics of its best checkpoint."""
        config = self.config
        result: dict[str, Any] = {"steps": self.loop.position.step, **self.judge.metrics}
        details: dict[str, Any] = {}
        best = self.checkpoints.best()
        if config.data.test is not None:
            if best is not None:
                self.pipeline.detach()
                restore(self.built, self.ranks, self.checkpoints, best, config)
            evaluation = evaluate(config, self.built, self.ranks, config.data.test)
            self.bad_files.tell(self.loop.position.step, "test", evaluation.bad)
            details = evaluation.details
            result = {
                "steps": self.loop.position.step,
                "checkpoint": best,
                **{f"test_{key}": value for key, value in evaluation.metrics.items()},
            }
        if self.journal:
            self.journal.event("finish", self.loop.position.step, **result, **details)
        return result
