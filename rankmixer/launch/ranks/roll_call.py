"""When a collective fails: which rank is missing, and where is it? Asked once, at the job's store: steps cost nothing.

Every rank has a thread that waits at the store. A rank whose collective fails, because a connection broke or its limit
passed, calls the others, and their threads say at which line they are, after which step. Who does not answer has ended,
is stopped or out of reach; who is not in a collective is late. All ranks hear what was found, and end with it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rankmixer.launch.ranks.errors import (
    FAILURE,
    SECONDS_TO_BE_STOPPED,
    JobFailed,
    PeerFailed,
    is_ours,
    is_user_error,
    report,
)
from rankmixer.pipeline.train import train_pipeline

# A thread answers at once; a machine under load may take longer.
ANSWER_SECONDS = 5.0
FOR_EVER = timedelta(days=365)
# The innermost file of a thread that waits for other ranks.
WAITING = ("torch/distributed/", "torchrec/distributed/", "torch/autograd/graph.py")


def why(error: Exception, roll_call: RollCall) -> JobFailed | None:
    """What to end with because of `error`; None if it is this rank's own, which the others then hear of."""
    if isinstance(error, train_pipeline.PeerFailed):
        return roll_call.hear() or PeerFailed(str(error))
    if is_lost_collective(error):
        return roll_call.find_out(error)
    roll_call.tell(str(error) if is_user_error(error) else f"{type(error).__name__}: {error}")
    return None


def is_lost_collective(error: BaseException) -> bool:
    """True if a collective failed, which is another rank's fault as a rule.

    >>> is_lost_collective(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"))
    True
    >>> is_lost_collective(RuntimeError("Application timeout caused pair closure"))
    True
    """
    is_gloos = isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "pair closure"))
    return isinstance(error, dist.DistError) or is_gloos


class RollCall:
    """This rank's part in it.

    Args:
        store: the job's, under a prefix that no earlier attempt has used.
        hosts: `host, pid` of all ranks, rank 0's first.
        rank: of this process.
        seconds: the limit on collectives, for the message.
    """

    def __init__(self, store: dist.Store, hosts: list[str], rank: int, seconds: float) -> None:
        self.hosts, self.rank, self.seconds = hosts, rank, seconds
        self.steps_done: Callable[[], int | None] = lambda: None
        """Training steps that this rank has done, where it trains."""
        # Connections of their own: process groups use the store too, and one that waits is taken.
        self._waiting, self._asking = store.clone(), store.clone()  # type: ignore[attr-defined]
        self._heard: PeerFailed | None = None
        self._is_told, self._has_ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._listen, name="roll call", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """All went well: nobody will call."""
        self._has_ended.set()
        with suppress(dist.DistError):
            self._asking.set(f"call/{self.rank}", "leave")
            self._thread.join(ANSWER_SECONDS)
            self._asking.add("left", 1)
            if self.rank == 0:  # which may hold the store, so goes last
                self._wait_for("left", len(self.hosts))

    def tell(self, message: str) -> None:
        """This rank fails by itself: the others end with that, unless they have a reason already."""

        def announce() -> None:
            if self._call():
                verdict = f"{self._named(self.rank)} failed{_after(self.steps_done())}: {message}"
                self._announce(verdict, listeners=len(self.hosts) - 1)

        _within(2 * ANSWER_SECONDS, announce)
        self._has_ended.set()

    def hear(self) -> PeerFailed | None:
        """Another rank has failed and tells why; None if it does not come to that."""
        self._is_told.wait(2 * ANSWER_SECONDS)
        self._has_ended.set()
        return self._heard

    def find_out(self, error: BaseException) -> JobFailed:
        """A collective has failed: whose fault is it? All ranks end with the same answer."""
        said = f"{self._named(self.rank)} {self._complaint(error)}{_after(self.steps_done())}"
        found: list[JobFailed] = []

        def ask() -> None:
            if self._call():
                self._wait_for("answers", len(self.hosts) - 1)
                found.append(JobFailed(f"{said}; {self._blame()}"))
                self._announce(str(found[0]), listeners=self._asking.add("answers", 0))
            elif self._is_told.wait(2 * ANSWER_SECONDS) and self._heard:
                found.append(self._heard)

        _within(3 * ANSWER_SECONDS, ask)
        self._has_ended.set()
        if found:
            return found[0]
        where = f"which is where {self._named(0)} is: ended, stopped or out of reach"
        return JobFailed(f"{said}; nor does the job's store answer, {where}")

    def _listen(self) -> None:
        """The thread: answer a call, hear the verdict, and see to it that this process ends."""
        key = f"call/{self.rank}"
        try:
            self._waiting.wait([key], FOR_EVER)
            if self._waiting.get(key) == b"leave":
                return
            self._waiting.set(f"answer/{self.rank}", json.dumps(_position(self.steps_done())))
            self._waiting.add("answers", 1)
            self._waiting.wait(["verdict"], timedelta(seconds=2 * ANSWER_SECONDS))
            verdict = json.loads(self._waiting.get("verdict"))
            self._heard = PeerFailed(verdict["text"], is_said_here=verdict["agent"] == _agent())
            self._waiting.add("heard", 1)
        except dist.DistError:
            return  # the store has gone, and the next collective will fail
        self._is_told.set()
        if not self._has_ended.wait(2 * SECONDS_TO_BE_STOPPED):
            report(f"rankmixer: error: {self._heard}")  # it may be the first of its host to end
            os._exit(FAILURE)  # what is written appears whole or not at all: nothing is left half done

    def _call(self) -> bool:
        """Call all others; False if another rank has done so."""
        if self._asking.add("callers", 1) > 1:
            return False
        for rank in range(len(self.hosts)):
            self._asking.set(f"call/{rank}", "leave" if rank == self.rank else "where are you")
        return True

    def _announce(self, verdict: str, listeners: int) -> None:
        self._asking.set("verdict", json.dumps({"text": verdict, "agent": _agent()}))
        self._wait_for("heard", listeners)

    def _wait_for(self, counter: str, count: int) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._asking.add(counter, 0) < count and time.monotonic() < deadline:
            time.sleep(0.05)

    def _blame(self) -> str:
        """Who does not answer; else who is late; else where everybody is."""
        others = [rank for rank in range(len(self.hosts)) if rank != self.rank]
        answers = {
            rank: json.loads(self._asking.get(f"answer/{rank}"))
            for rank in others
            if self._asking.check([f"answer/{rank}"])
        }
        silent = [self._named(rank) for rank in others if rank not in answers]
        if silent:
            return f"{_some(silent)} did not answer: ended, stopped or out of reach"
        late = [rank for rank in others if not answers[rank]["waits"]]
        places = [f"{self._named(rank)} is at {answers[rank]['place']}" for rank in late or others]
        return f"{_some(places)}{'' if late else ', and waits as well'}"

    def _named(self, rank: int) -> str:
        return f"rank {rank} ({self.hosts[rank]})"

    def _complaint(self, error: BaseException) -> str:
        is_timeout = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        limit = f"waited {self.seconds:g} s (run.timeout_seconds) for other ranks"
        return limit if is_timeout else "lost its connection to another rank"


def _position(steps_done: int | None) -> dict[str, Any]:
    """Where the main thread is: whether it waits for other ranks, and its line in our own code."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    calls = [(Path(call.f_code.co_filename).resolve(), line) for call, line in traceback.walk_stack(frame)]
    ours = (f"{file.parent.name}/{file.name}, line {line}" for file, line in calls if is_ours(file))
    place = next(ours, "its start")  # innermost first
    return {"waits": any(part in str(calls[0][0]) for part in WAITING), "place": f"{place}{_after(steps_done)}"}


def _agent() -> str:
    """torchrun's name for the agent of this rank; without torchrun every rank is on its own."""
    return os.environ.get("GROUP_RANK", f"pid {os.getpid()}")


def _after(steps_done: int | None) -> str:
    return "" if steps_done is None else f" after step {steps_done}"


def _some(texts: list[str]) -> str:
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Give a store that may not answer so much time: its calls know no limit when its process is stopped."""

    def run() -> None:
        with suppress(dist.DistError):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
