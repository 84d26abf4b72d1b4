"""Checkpoints written by a thread while training goes on, one at a time."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from rankmixer.pipeline.base.collective import on_rank_0, rank, world_size
from rankmixer.pipeline.base.prefetch import leave_behind
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.meeting import StoreMeeting
from rankmixer.pipeline.checkpoint.save import Failure, Outcome, Saving
from rankmixer.pipeline.checkpoint.staging import Staging


class BackgroundSaves:
    """Saves checkpoints of one run.

    A save copies this rank's part of the state to host memory, once more as large, and returns; a thread writes the
    copy. Without that memory it writes before it returns. The ranks' threads agree over the store (meeting.py),
    and rank 0's makes the checkpoint whole when all have written. The ranks hear what became of it in `wait`, together.

    Args:
        checkpoints: where to.
        store: the job's, under a prefix that no earlier attempt has used; None with one rank.
        ranks_here: ranks on this host.
        tell: called on rank 0 by its thread with what became of each attempt; must not raise.

    >>> checkpoints = Checkpoints("memory://doctest/background")
    >>> saves = BackgroundSaves(checkpoints)
    >>> _ = saves.save(10, {}, {"epoch": 1})
    >>> print(saves.wait(), checkpoints.latest())
    /doctest/background/step-00000010 is whole step-00000010
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        store: dist.Store | None = None,
        *,
        ranks_here: int = 1,
        tell: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self._checkpoints, self._tell = checkpoints, tell
        self._meeting = StoreMeeting(store, rank(), world_size())
        self._staging = Staging(ranks_here)
        self._saving: Saving | None = None
        self._thread: threading.Thread | None = None
        self._mine: Outcome | None = None
        self._error: Exception | None = None
        self._known: Outcome | None = None

    @property
    def staged_bytes(self) -> int:
        """Host memory that this rank keeps for copies."""
        return self._staging.num_bytes

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any], metric: float | None = None) -> float:
        """Begin to save, when the save before is done; return the seconds waited for that. Collective.

        Arguments and ValueErrors are those of Checkpoints.save; the tensors of `state` may change afterwards.
        """
        started = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - started
        self._saving = self._checkpoints.plan_save(step, state, meta, metric=metric)
        is_staged = self._saving.stage(self._staging)
        self._start()
        if not is_staged:
            self._join()
        return waited

    def wait(self) -> Outcome | None:
        """What became of the last save, when it is done; None before the first. Collective."""
        self._join()
        if self._error is not None:
            raise self._error
        if self._known is None and self._saving is not None:
            found = on_rank_0("cannot tell what became of the checkpoint", lambda: self._mine and asdict(self._mine))
            self._known = Outcome(**{**found, "failures": [Failure(**failure) for failure in found["failures"]]})
        return self._known

    def again(self) -> Outcome | None:
        """Write the last save once more, which failed; the state must not have changed since. Collective."""
        self._start()
        return self.wait()

    def close(self, seconds: float) -> None:
        """Let a save that is under way end, for so long. Not collective: what other ranks do is not known."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
            self._meeting.give_up()
            thread.join(1.0)
            if thread.is_alive():
                leave_behind(thread)
        self._thread = None
        atexit.unregister(self.close)

    def _start(self) -> None:
        self._mine = self._known = self._error = None
        # A daemon, lest a disk that does not answer keep the process from ending.
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        atexit.register(self.close, 0.0)  # a daemon thread must not see Python go
        self._thread.start()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            atexit.unregister(self.close)

    def _write(self) -> None:
        assert self._saving is not None
        try:
            self._mine = self._saving.write(self._meeting)
            if self._mine is not None:
                self._tell(self._mine)
        except Exception as error:
            self._error = error
