"""Where a fault strikes: the n-th time that this process comes to a point, or a moment after that."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

Point = Literal["clock", "step", "file", "evaluate", "read"]
Victims = Literal["one", "all", "launcher", "everything"]

# Audit events of Python that change a directory or open a file, and which of their arguments is the path.
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link")


@dataclass(frozen=True)
class Fault:
    """One fault of one rank.

    Args:
        point: `clock`: the start of the process; `step`: a step of training begins; `file`: Python is about to open,
            make, rename or remove something below `directory`; `evaluate`: a batch of an evaluation is counted; `read`:
            a row group is about to be read.
        number: the how manyth time, from 1.
        after: seconds after that.
        rank: which comes to the point.
        victims: whom the signal hits: that rank, all ranks, their launcher, or all of these at once.
        signal: sent to them.
        directory: see `point`.
        record: a file that is made when the fault strikes.
        sleep: instead of a signal, the thread that came to the point sleeps so many seconds.
        shell: instead of a signal, that thread runs this command.
    """

    point: Point
    number: int = 1
    after: float = 0.0
    rank: int = 0
    victims: Victims = "one"
    signal: int = signal.SIGKILL
    directory: str = ""
    record: str = ""
    sleep: float = 0.0
    shell: str = ""

    def as_json(self) -> str:
        """For a process that is to install it."""
        return json.dumps(asdict(self))


def install_on(rank: int, faults: Sequence[str]) -> None:
    """Install those faults, as JSON, that are this rank's."""
    for fault in (Fault(**json.loads(one)) for one in faults):
        if fault.rank == rank:
            install(fault)


def install(fault: Fault) -> None:
    """Make this process strike; call once, before the command line runs."""
    left = [fault.number]

    def reached() -> None:
        left[0] -= 1
        if left[0] == 0:
            if fault.after:
                _later(fault.after, lambda: strike(fault))
            else:
                strike(fault)

    if fault.point == "clock":
        reached()
    elif fault.point == "file":
        directory = os.path.abspath(fault.directory) + os.sep

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if left[0] <= 0 or event not in FILE_EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
                return
            if os.path.abspath(os.fsdecode(arguments[0])).startswith(directory):
                reached()

        sys.addaudithook(hook)
    else:
        from rankmixer.launch.model.optimizers import RankerOptimizer
        from rankmixer.pipeline.files.decode import Decoder
        from rankmixer.pipeline.metrics.metrics import Metrics

        points: dict[str, tuple[type, str]] = {
            "step": (RankerOptimizer, "follow_schedule"),
            "evaluate": (Metrics, "update"),
            "read": (Decoder, "_reader"),
        }
        owner, name = points[fault.point]
        original = getattr(owner, name)

        def replacement(*arguments: Any, **keys: Any) -> Any:
            reached()
            return original(*arguments, **keys)

        setattr(owner, name, replacement)


def strike(fault: Fault) -> None:
    """Send the signal: to others first, since this process may not live longer than its own."""
    if fault.record:
        Path(fault.record).touch()
    if fault.sleep or fault.shell:
        time.sleep(fault.sleep)
        if fault.shell:
            subprocess.run(fault.shell, shell=True, check=True)
        return
    here, launcher = psutil.Process(), psutil.Process(os.getppid())
    ranks = [rank for rank in launcher.children() if rank.pid != here.pid] if fault.victims != "one" else []
    victims = {
        "one": [here],
        "all": [*ranks, here],
        "launcher": [launcher],
        "everything": [launcher, *ranks, here],
    }[fault.victims]
    for victim in victims:
        victim.send_signal(fault.signal)


def die_with_parent() -> None:
    """Have the system end this process when its parent ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _later(seconds: float, action: Any) -> None:
    def wait() -> None:
        time.sleep(seconds)
        action()

    threading.Thread(target=wait, daemon=True).start()
