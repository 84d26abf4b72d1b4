"""Traces of chosen steps by torch.profiler, for Perfetto and chrome://tracing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from torch.profiler import profile, record_function

from rankmixer.launch.config.config import ProfileConfig
from rankmixer.pipeline.journal.journal import Journal

FOLDER = "traces"
NOTHING = nullcontext()


class StepTrace:
    """Traces the steps that `train.profile` names, on this rank, into one file in RUN/traces.

    A step stands in the trace as `step N`; inside it TorchRec's pipeline names what it does: next_batch, forward,
    backward, optimizer. What happens between two of the steps, such as an evaluation, is in the trace too. A trace that
    cannot be made costs a warning, and not the job.

    Args:
        config: which steps and ranks; None: none.
        rank: of this process.
        directory: run.directory.
        journal: of rank 0; None on other ranks.
        world_size: ranks in all; a warning says so if none of them is named.
    """

    def __init__(
        self, config: ProfileConfig | None, rank: int, directory: str, journal: Journal | None, world_size: int
    ) -> None:
        self._is_wanted = config is not None and rank in config.ranks
        self.first, self.last = config.steps if config is not None else (0, 0)
        self.path = Path(directory, FOLDER, f"rank-{rank}-steps-{self.first}-{self.last}.pt.trace.json.gz")
        self.journal = journal
        self._profile: profile | None = None
        self._traced: list[int] = []
        if config is not None and rank == 0 and min(config.ranks, default=world_size) >= world_size:
            self._warn(
                f"train.profile.ranks is {config.ranks}, and the ranks of this job are 0 to {world_size - 1}: none is "
                "traced; name one of those",
                0,
            )

    def step(self, number: int) -> AbstractContextManager[None]:
        """What to train step `number` in, the first of a run being 1."""
        return self._step(number) if self._is_wanted and self.first <= number <= self.last else NOTHING

    @contextmanager
    def _step(self, number: int) -> Iterator[None]:
        if self._profile is None:
            self._profile = profile()  # CPU, and CUDA where there is one
            self._try(self._profile.start, number)
        with record_function(f"step {number}"):
            yield
        self._traced.append(number)
        if number == self.last and self._is_wanted:
            self._write(number)

    def close(self, step: int) -> None:
        """Write what has been traced until now, and say which steps did not occur. The run ends after `step` steps."""
        if not self._is_wanted:
            return
        if self._profile is not None:
            self._write(step)
        self._is_wanted = False
        trained = f"only {self._traced[0]} to {self._traced[-1]} were" if self._traced else "none was"
        self._warn(
            f"train.profile.steps: of the steps {self.first} to {self.last} {trained} trained here; "
            f"this run ends after step {step}",
            step,
        )

    def _write(self, step: int) -> None:
        finished, unfinished = self._profile, self.path.with_name(f".{self.path.name}")
        assert finished is not None

        def write() -> None:
            finished.stop()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(unfinished))
            unfinished.replace(self.path)

        if self._try(write, step) and self.journal:
            self.journal.event("trace", step, path=str(self.path))
        self._profile, self._is_wanted = None, False

    def _try(self, action: Callable[[], None], step: int) -> bool:
        try:
            action()
        except Exception as error:
            self._is_wanted = False
            self._warn(f"train.profile: {self.path} cannot be made: {error}; training goes on", step)
        return self._is_wanted

    def _warn(self, message: str, step: int) -> None:
        if self.journal:
            self.journal.event("warning", step, message=message)
            return
        with suppress(OSError):
            print(f"warning: {message}", file=sys.stderr, flush=True)
