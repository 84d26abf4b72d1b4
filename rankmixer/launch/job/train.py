"""`rankmixer train`: from files to a trained, evaluated, resumable model."""

from __future__ import annotations

import gc
import math
import signal
from collections import Counter
from typing import Any

from rankmixer.launch.config.config import Config
from rankmixer.launch.health.health import largest_weight, layer_statistics
from rankmixer.launch.job.checkup import Checkup
from rankmixer.launch.job.failed_evaluation import all_ranks_know
from rankmixer.launch.job.job import evaluate, training_reader
from rankmixer.launch.job.judging import Judge
from rankmixer.launch.job.record import RunRecord
from rankmixer.launch.job.restoring import choose_whole, record_damaged, restore
from rankmixer.launch.job.rollback import Rollbacks
from rankmixer.launch.job.saving import Saver
from rankmixer.launch.job.traces import StepTrace
from rankmixer.launch.model.build import Build, build
from rankmixer.launch.model.settle import settle_buckets
from rankmixer.launch.ranks.distributed import Ranks, check_world_here, cluster_here, process_group
from rankmixer.launch.ranks.retries import marking_mistakes
from rankmixer.launch.ranks.run_lock import RunLock
from rankmixer.launch.report.output import print_result
from rankmixer.launch.rows.bad_files import BadFileReport, check_resumed, found_bad
from rankmixer.launch.rows.learnt import with_schema_to_train
from rankmixer.launch.rows.paths import checkpoints_of
from rankmixer.launch.warm_start.warm_start import record_warm_start, warm_start
from rankmixer.pipeline.base.collective import together
from rankmixer.pipeline.base.errors import Interrupted, Preempted
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.train.loop import DivergedError, Loop, Pace, Position
from rankmixer.pipeline.train.train_pipeline import AgreedPipeline


def train(config: Config) -> None:
    """Train, evaluate, save; resume if the run directory holds a checkpoint. Prints one JSON line at the end."""
    from rankmixer.launch.job.stream import StreamTraining  # which is a Training

    check_world_here(config)
    kind = Training if config.data.stream is None else StreamTraining
    with process_group(config) as ranks, RunLock(config) as lock, marking_mistakes(config):
        config = with_schema_to_train(config)
        rollbacks = Rollbacks(config, ranks)
        result = None
        while result is None:
            try:
                result = kind(config, ranks, rollbacks, lock).run()
            except DivergedError as error:
                rollbacks.follow(error)
            gc.collect()  # the model that diverged, before there is another
        if ranks.is_first:
            print_result(result)


class Training:
    """One run on one rank: everything that outlives a step.

    Args:
        config: the run.
        ranks: this process.
        rollbacks: what is passed over, and what is looked at closely.
        lock: on the run's directory.
    """

    def __init__(self, config: Config, ranks: Ranks, rollbacks: Rollbacks, lock: RunLock) -> None:
        self.config, self.ranks, self.lock = config, ranks, lock
        self.checkpoints: Checkpoints = checkpoints_of(config)
        self.rollbacks = rollbacks
        newest = self.checkpoints.latest()
        if newest and config.run.resume == "never" and not rollbacks.news:
            raise ValueError(
                f"{self.checkpoints.directory} holds {newest} and run.resume is never; give another run.directory, "
                "remove this one, or set run.resume=auto"
            )
        resumed, damaged = choose_whole(self.checkpoints, ranks, "latest")
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
        settle_buckets(self.built, config, ranks)
        if resumed:
            restore(self.built, ranks, self.checkpoints, resumed, config, to_resume=True)
        self.built.optimizer.set_optimizer_step(position.step)  # FBGEMM's Adam counts steps outside its state
        warm = warm_start(config, self.built, ranks) if config.run.warm_start and not resumed else None
        self.told_mended: Counter[str] = Counter()
        self.record = RunRecord(
            config, ranks, self.built, resumed=resumed, step=position.step, total_steps=self.total_steps
        )
        self.journal = self.record.journal
        if rollbacks.news and self.journal:
            self.journal.event("rollback", position.step, **rollbacks.news)
        record_damaged(self.journal, position.step, damaged)
        record_warm_start(self.journal, config.run.directory, warm)
        self.bad_files = BadFileReport(config.run.directory, self.journal)
        self.checkup = Checkup(config, ranks, self.journal)
        self.judge = Judge(config, self.built, ranks, self.journal, self.bad_files, self.checkup, self.meta)
        self.saver = Saver(config, self.built, ranks, self.checkpoints, self.journal, self.checkup)
        self.trace = StepTrace(config.train.profile, ranks.rank, config.run.directory, self.journal, ranks.world_size)
        self.pipeline = AgreedPipeline(
            self.built.model, self.built.optimizer, ranks.device, ranks.control, ranks.preemption.is_told_to_leave
        )
        self.loop = Loop(
            pipeline=self.pipeline,
            reader=reader,
            pace=pace,
            position=position,
            before_step=self.built.optimizer.follow_schedule,
            report=self.report,
            evaluate=self.evaluate,
            save=self.save,
            save_early=self.save_early,
            look=self.checkup.look,
            weights_are_finite=lambda: math.isfinite(largest_weight(self.built.model)),
            passes_over=rollbacks.starts,
            careful_until=rollbacks.careful_until,
            step_context=self.trace.step,
        )
        if ranks.roll_call:
            ranks.roll_call.steps_done = lambda: position.step

    def open_rows(self, position: Position, set_aside: dict[str, str] | None) -> tuple[BatchReader, int]:
        """What to read, and how often. Collective."""
        return training_reader(self.config, self.ranks, set_aside), self.config.train.epochs

    def count_steps(self, pace: Pace, position: Position, reader: BatchReader) -> int | None:
        """Steps of the whole run, for the schedule: batches passed over count, then a restart changes nothing.

        None: that is not known.
        """
        behind = sum(batch < (position.epoch, position.row) for batch in self.rollbacks.starts)
        return pace.total_steps(position, reader, -behind)

    def train_rows(self) -> None:
        """Train from the position to the end. Collective."""
        self.loop.run()

    def run(self) -> dict[str, Any]:
        """Train to the end, then read the test rows once with the best weights."""
        try:
            with self.ranks.preemption.listening():
                self.bad_files.tell(self.loop.position.step, "train", found_bad(self.loop.reader))
                self.record.show()
                self.built.model.train()
                if not self.judge.has_seen_enough:  # and then was killed or told to leave
                    self.train_rows()
                return self.finish()
        except Preempted:
            raise self._farewell() from None
        except DivergedError as error:
            raise DivergedError(error.what, error.step, error.batch, self._diagnosis(error)) from None
        finally:
            self.trace.close(self.loop.position.step)
            self.saver.close()
            self.record.close()

    def _farewell(self) -> Preempted:
        """What to end with when the job was told to leave and its last checkpoint is whole. Collective; in the log."""
        self.saver.finish()
        told = self.ranks.preemption.signal
        everywhere = together("cannot say which signal came", lambda: told and told.name)
        names = " and ".join(sorted({name for name in everywhere if name}))
        step, checkpoint = self.loop.position.step, self.checkpoints.latest()
        if self.journal:
            self.journal.event("preempted", step, signal=names, checkpoint=checkpoint)
        kept = f"{checkpoint} is saved" if checkpoint else "there is nothing to save yet"
        if names == signal.SIGINT.name:
            return Interrupted(f"interrupted at step {step}; {kept}; the same command goes on")
        return Preempted(f"preempted by {names} at step {step}; {kept}; the same command goes on")

    def _diagnosis(self, error: DivergedError) -> str:
        """What went wrong, what the layers look like, what is safe and what to do. Collective; recorded in the log."""
        self.saver.wait()
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

    def report(self, step: int, *, loss: float, **values: Any) -> None:
        """Look at what the last steps did, and record it; `values` as train.loop.StepReport has them."""
        norm = self.built.optimizer.grad_norm
        grad_norm = None if norm is None else float(norm)
        if grad_norm is not None and not math.isfinite(grad_norm):
            raise DivergedError(f"the gradient norm is {grad_norm} in one of the steps before {step + 1}", step)
        self.checkup.report(step, loss, grad_norm)
        self.record.report(step, loss=loss, grad_norm=grad_norm, **values)

    def evaluate(self, position: Position) -> bool:
        """Evaluate on data.evaluate; True when early stopping says that it is enough."""
        self.tell_mended(position)
        if self.config.data.evaluate is None:
            return False
        self.pipeline.detach()
        try:
            is_enough = self.judge.evaluate(position, self.config.data.evaluate)
        except Preempted:
            raise
        except Exception as error:
            if not self.loop.is_saved and all_ranks_know(error, position.step, self.ranks):
                self.save_before_the_end(position)
            raise
        self.record.show()
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
        self.lock.check()
        self.saver.save(position, self.loop.reader.dataset, self.judge)

    def save_early(self, position: Position) -> None:
        """Write a checkpoint where none was due, which the undisturbed run could not choose as its best."""
        self.judge.step = None
        self.save(position)

    def save_before_the_end(self, position: Position) -> None:
        """Write a checkpoint since the evaluation has failed, on all ranks; its error is what matters."""
        try:
            self.save_early(position)
            self.saver.finish()
            what = f"step {position.step} is saved; the same command goes on with the evaluation"
        except Exception as error:
            what = f"and step {position.step} cannot be saved: {error}"
        if self.journal:
            self.journal.event("warning", position.step, message=f"the evaluation has failed; {what}")

    def finish(self) -> dict[str, Any]:
        """The run's result: its last evaluation, and the test metrics of its best checkpoint."""
        config = self.config
        self.saver.finish()
        result: dict[str, Any] = {"steps": self.loop.position.step, **self.judge.metrics}
        details: dict[str, Any] = {}
        if config.data.test is not None:
            best, damaged = choose_whole(self.checkpoints, self.ranks, "best")
            record_damaged(self.journal, self.loop.position.step, damaged)
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
        result |= self.rollbacks.result()
        if self.journal:
            self.journal.event("finish", self.loop.position.step, **result, **details)
        return result
