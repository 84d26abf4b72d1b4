"""The step loop: knows batches, steps and boundaries; not what the model is."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.distributed as dist

from pipeline.batch import Batch
from pipeline.errors import Preempted
from pipeline.reader import BatchReader
from pipeline.train_pipeline import AgreedPipeline


class DivergedError(ValueError):
    """The training loss is no longer a number."""


@dataclass
class Position:
    """Where training stands: after `step` steps, the next row is `row` of `epoch`. Valid for any number of ranks.

    Args:
        evaluation_due: the evaluation that belongs here has not ended.
    """

    step: int = 0
    epoch: int = 0
    row: int = 0
    evaluation_due: bool = False


@dataclass(frozen=True)
class Pace:
    """When the loop stops, evaluates and saves; in steps."""

    epochs: int
    max_steps: int | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    log_every: int = 10

    def total_steps(self, position: Position, reader: BatchReader) -> int:
        """Step number at which training from `position` ends if nothing stops it early."""
        steps = position.step
        if position.epoch < self.epochs:
            steps += reader.steps(position.row) + reader.steps() * (self.epochs - position.epoch - 1)
        return steps if self.max_steps is None else min(steps, self.max_steps)


class StepReport(Protocol):
    """Called with what the last few steps did."""

    def __call__(
        self, step: int, *, epoch: int, loss: float, examples_per_second: float, data_wait_share: float
    ) -> None:
        """Args: mean global loss, global examples a second, share of the time in which steps waited for their batch."""


@dataclass
class Loop:
    """Train from a position to the end.

    Between boundaries the pipeline runs full; at a boundary (evaluation, checkpoint, end of an epoch) it has run dry,
    so the position is that of the batch trained last, and the model may be evaluated or saved.

    Args:
        pipeline: takes batches, trains.
        reader: this rank's batches, in the order of (seed, epoch).
        pace: when to stop at a boundary.
        position: where to begin; kept up to date.
        before_step: sets the learning rates of a step.
        report: every `pace.log_every` steps and at boundaries, on every rank.
        evaluate: at its boundaries; returns True to stop early.
        save: at its boundaries, after evaluation.
        save_early: before leaving between them, because the job was told to leave.
    """

    pipeline: AgreedPipeline
    reader: BatchReader
    pace: Pace
    position: Position
    before_step: Callable[[int], None]
    report: StepReport
    evaluate: Callable[[Position], bool]
    save: Callable[[Position], None]
    save_early: Callable[[Position], None]
    _saved: Position | None = None
    _losses: list[torch.Tensor] = field(default_factory=list)
    _since: float = 0.0

    def run(self) -> bool:
        """Train to the end of the pace, or until `evaluate` says to stop: then True.

        Raises:
            Preempted: the job was told to leave, and the position is saved. An evaluation is abandoned: it is the
                first thing that whoever goes on from there does.
        """
        self._saved = self._saved or replace(self.position)
        try:
            return self._run()
        except Preempted:
            if self.position != self._saved:
                self.save_early(self.position)
            raise

    def _run(self) -> bool:
        last_step = self.pace.total_steps(self.position, self.reader)
        if self.position.evaluation_due and self._boundary(last_step):
            return True
        while self.position.step < last_step:
            batches = self.reader.epoch(self.position.epoch, self.position.row)
            try:
                if self._run_epoch(batches, self.position.epoch, last_step):
                    return True
            finally:
                batches.close()
        return False

    def _run_epoch(self, batches: Iterator[Batch], epoch: int, last_step: int) -> bool:
        while self.position.epoch == epoch and self.position.step < last_step:
            steps = min(self._steps_to_boundary(), last_step - self.position.step)
            self._train(itertools.islice(batches, steps), steps)
            if self._boundary(last_step):
                return True
        return False

    def _boundary(self, last_step: int) -> bool:
        """Evaluate and save if that is due; True to stop."""
        at_end = self.position.row == 0 or self.position.step == last_step
        stop = False
        if self._is_due(self.pace.evaluate_every, at_end):
            self.position.evaluation_due = True
            stop = self.evaluate(self.position)
            self.position.evaluation_due = False
        if stop or self._is_due(self.pace.checkpoint_every or self.pace.evaluate_every, at_end):
            self.save(self.position)
            self._saved = replace(self.position)
        return stop

    def _steps_to_boundary(self) -> int:
        step, distances = self.position.step, [self.reader.steps(self.position.row)]
        for every in (self.pace.evaluate_every, self.pace.checkpoint_every):
            if every is not None:
                distances.append(every - step % every)
        return min(distances)

    def _is_due(self, every: int | None, at_end: bool) -> bool:
        return at_end or (every is not None and self.position.step % every == 0)

    def _train(self, batches: Iterator[Batch], steps: int) -> None:
        self._restart_clock()
        epoch, start = self.position.epoch, self.position.row
        for done in range(1, steps + 1):
            self.before_step(self.position.step)
            try:
                self._losses.append(self.pipeline.progress(batches).loss)
            except Preempted:
                if self._losses:
                    self._report(epoch)
                raise
            self.position.step += 1
            self.position.epoch, self.position.row = self.reader.next_position(epoch, start, done)
            if self.position.step % self.pace.log_every == 0 or done == steps:
                self._report(epoch)

    def _first_broken_step(self) -> int:
        """The first of the steps reported together whose loss is not finite on some rank. Collective."""
        is_broken = [not math.isfinite(loss) for loss in torch.stack(self._losses).tolist()]
        first = torch.tensor(is_broken.index(True) if True in is_broken else len(is_broken))
        dist.all_reduce(first, dist.ReduceOp.MIN, group=self.pipeline.control)
        return self.position.step - len(is_broken) + min(int(first), len(is_broken) - 1) + 1

    def _restart_clock(self) -> None:
        self._losses.clear()
        self._since = time.perf_counter()
        self.pipeline.wait_seconds = 0.0

    def _report(self, epoch: int) -> None:
        # Each rank's loss is its share times W: the mean over ranks and steps is the mean global loss.
        loss_and_wait = torch.tensor([torch.stack(self._losses).mean().item(), self.pipeline.wait_seconds])
        dist.all_reduce(loss_and_wait, group=self.pipeline.control)
        loss, wait_seconds = (loss_and_wait / self.pipeline.control.size()).tolist()
        seconds = time.perf_counter() - self._since
        step = self.position.step
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} in step {self._first_broken_step()} (epoch {epoch})")
        self.report(
            step,
            epoch=epoch,
            loss=loss,
            examples_per_second=len(self._losses) * self.reader.batch_size / seconds,
            data_wait_share=wait_seconds / seconds,
        )
        self._restart_clock()
