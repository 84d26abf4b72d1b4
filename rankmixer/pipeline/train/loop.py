"""The step loop: knows batches, steps and boundaries; not what the model is."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist

from rankmixer.pipeline.base.errors import Preempted
from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.train.train_pipeline import AgreedPipeline


class DivergedError(ValueError):
    """Loss, gradients or weights are no longer numbers.

    Args:
        what: what is not finite.
        step: the step after which it was seen.
        batch: (epoch, row) where the batch of this step begins, if it is known to have done it.
        told: what is told to the person; default: `what`.
    """

    def __init__(self, what: str, step: int, batch: tuple[int, int] | None = None, told: str | None = None) -> None:
        super().__init__(told or what)
        self.what, self.step, self.batch = what, step, batch


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

    def total_steps(self, position: Position, reader: BatchReader, passed_over: int = 0) -> int:
        """Step number at which training from `position` ends if nothing stops it early.

        `passed_over` batches are taken off.
        """
        steps = position.step - passed_over
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
        look: takes what the pipeline gave for a step that is about to be reported.
        weights_are_finite: whether all weights of all ranks are. Collective.
        passes_over: (epoch, row) where batches begin that are not trained on.
        careful_until: up to this step loss and weights are looked at after each step.
        step_context: what to train a step in, given its number, the first being 1.
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
    look: Callable[[Any], None] = lambda output: None
    weights_are_finite: Callable[[], bool] = lambda: True
    passes_over: Sequence[tuple[int, int]] = ()
    careful_until: int = 0
    step_context: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
    _saved: Position | None = None
    _losses: list[torch.Tensor] = field(default_factory=list)
    _batch: tuple[int, int] = (0, 0)
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
            if not self.is_saved:
                self.save_early(self.position)
            raise

    def _run(self) -> bool:
        ahead = sum(self._here() <= batch < (self.pace.epochs, 0) for batch in self.passes_over)
        last_step = self.pace.total_steps(self.position, self.reader, ahead)
        if self.position.evaluation_due:
            at_end = self._begins_epoch() or self.position.step == last_step
            if self._boundary(at_end, steps=1):
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
            if steps:
                self._train(itertools.islice(batches, steps), steps)
            passed = self._pass_over()
            at_end = self.position.epoch != epoch or self.position.step == last_step
            if self._boundary(at_end, steps):
                return True
            if passed:
                return False  # the reader begins anew behind it
        return False

    def _boundary(self, at_end: bool, steps: int) -> bool:
        """Evaluate and save if that is due `steps` steps behind the boundary before; True to stop."""
        stop = False
        if self._is_due(self.pace.evaluate_every, at_end, steps):
            self.position.evaluation_due = True
            stop = self.evaluate(self.position)
            self.position.evaluation_due = False
        if stop or self._is_due(self.pace.checkpoint_every or self.pace.evaluate_every, at_end, steps):
            self.save(self.position)
            self._saved = replace(self.position)
        return stop

    @property
    def is_saved(self) -> bool:
        """Whether the position is that of the last checkpoint."""
        return self.position == self._saved

    def _begins_epoch(self) -> bool:
        """Whether nothing of the epoch has been trained on."""
        before = range(0, self.position.row, self.reader.batch_size)
        return all((self.position.epoch, row) in self.passes_over for row in before)

    def _pass_over(self) -> bool:
        """Move the position behind batches that are not trained on."""
        before = self._here()
        while self._here() in self.passes_over:
            self.position.epoch, self.position.row = self.reader.next_position(*self._here(), 1)
        return self._here() != before

    def _here(self) -> tuple[int, int]:
        return self.position.epoch, self.position.row

    def _steps_to_boundary(self) -> int:
        step, distances = self.position.step, [self.reader.steps(self.position.row)]
        for epoch, row in self.passes_over:
            if epoch == self.position.epoch and row >= self.position.row:
                distances.append((row - self.position.row) // self.reader.batch_size)
        for every in (self.pace.evaluate_every, self.pace.checkpoint_every):
            if every is not None:
                distances.append(every - step % every)
        return min(distances)

    def _is_due(self, every: int | None, at_end: bool, steps: int) -> bool:
        return at_end or (every is not None and steps > 0 and self.position.step % every == 0)

    def _train(self, batches: Iterator[Batch], steps: int) -> None:
        self._restart_clock()
        epoch, start = self._here()
        for done in range(1, steps + 1):
            self._batch = self._here()
            self.before_step(self.position.step)
            try:
                with self.step_context(self.position.step + 1):
                    output = self.pipeline.progress(batches)
            except Preempted:
                if self._losses:
                    self._report(epoch)
                raise
            self._losses.append(output.loss)
            self.position.step += 1
            self.position.epoch, self.position.row = self.reader.next_position(epoch, start, done)
            step = self.position.step
            if step % self.pace.log_every == 0 or done == steps or step <= self.careful_until:
                self.look(output)
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
            broken = self._first_broken_step()
            what = f"the loss is {loss} in step {broken} (epoch {epoch})"
            raise DivergedError(what, broken, self._batch if len(self._losses) == 1 else None)
        if step <= self.careful_until and not self.weights_are_finite():
            raise DivergedError(f"weights are not finite after step {step} (epoch {epoch})", step, self._batch)
        self.report(
            step,
            epoch=epoch,
            loss=loss,
            examples_per_second=len(self._losses) * self.reader.batch_size / seconds,
            data_wait_share=wait_seconds / seconds,
        )
        self._restart_clock()
