"""One run that is killed again and again, and its undisturbed twin."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.points import Fault, Point, Victims
from benchmarks.faults.runs import Run, command, prepare, ranks_of
from benchmarks.faults.server import ForkServer, Hung

SECONDS = 240.0  # what an attempt may take on a busy machine; an undisturbed one takes a few
TOLERANCE = 1e-5  # relative, where attempts differ in the number of ranks
WORKER = "benchmarks.faults.worker"


class Launcher(Protocol):
    """Starts an attempt and waits for its end."""

    def start(self, ranks: int, arguments: list[str], fault: Fault | None) -> bool:
        """Return whether it came to its end.

        Raises:
            Hung: it does not end.
        """

    def said(self) -> str:
        """What the last attempt printed."""


class Forked:
    """Attempts on ranks that a server forks."""

    def __init__(self, server: ForkServer) -> None:
        self.server = server

    def start(self, ranks: int, arguments: list[str], fault: Fault | None) -> bool:
        return not any(self.server.run(ranks, arguments, seconds=SECONDS, faults=[fault] if fault else []).values())

    def said(self) -> str:
        return self.server.said(0)


class Cold:
    """Attempts that torchrun starts, in new interpreters."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "torchrun.out"

    def start(self, ranks: int, arguments: list[str], fault: Fault | None) -> bool:
        launch = [sys.executable, "-m", "rankmixer.launch.ranks.torchrun", "--nproc-per-node", str(ranks), "-m", WORKER]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        environment["RANKMIXER_FAULTS"] = json.dumps([fault.as_json()] if fault else [])
        with self.output.open("w") as output:
            job = subprocess.Popen(
                [*launch, *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment
            )
            try:
                status = job.wait(SECONDS)
            except subprocess.TimeoutExpired:
                for process in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
                    process.kill()
                job.wait()
                raise Hung(f"not ended after {SECONDS:g} s\n{self.said()[-4000:]}") from None
        return status == 0

    def said(self) -> str:
        return self.output.read_text(errors="replace")


@dataclass
class Result:
    """What became of one run.

    Args:
        kills: how many faults struck.
        rounds: how often the run came to its end.
        points: kills by point and victims.
        lost: why it did not come to an end, if so.
        different: in what it was not its twin.
        distances: from the twin, where attempts differ in the number of ranks.
        seconds: all in all.
    """

    kills: int = 0
    rounds: int = 0
    points: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    distances: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def faults(seed: str, run: Run, directory: Path) -> Iterator[Fault]:
    """The faults of `seed`, without end; most strike within a few steps of a start, so that the run gets on slowly."""
    chance = random.Random(seed)
    while True:
        points: list[Point] = ["file", "step", "evaluate", "clock"]
        (point,) = chance.choices(points, [4, 3, 1, 2])
        number = {"file": chance.randint(1, 40), "step": chance.randint(1, 12), "evaluate": chance.randint(1, 6)}
        after = chance.choice([0.0, chance.uniform(0, 0.02)]) if point != "clock" else chance.uniform(0.05, 2.5)
        if run.cold:
            after += 4.0 * (point == "clock")  # an interpreter takes so long to import torch
            victims: Victims = chance.choice(["one", "all", "launcher", "everything"])
        else:
            victims = chance.choice(["one", "one", "all"])
        rank = chance.randrange(min(run.ranks))
        if point == "file":  # rank 0 writes more than the others, and some of the points only it comes to
            rank *= chance.randrange(2)
        # What a scheduler sends before it takes a machine away reaches all ranks.
        chosen = chance.choice([signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGUSR1])
        victims = victims if chosen == signal.SIGKILL else "launcher" if run.cold else "all"
        record = f"{directory}.struck"
        yield Fault(point, number.get(point, 1), after, rank, victims, chosen, str(directory), record)


def disturb(run: Run, kills: int, seed: int, configuration: Path, folder: Path, launcher: Launcher) -> Result:
    """Kill a run `kills` times, as often over again as that takes, and compare each of its ends with its twin's.

    Args:
        run: which.
        kills: how many.
        seed: of the faults.
        configuration: file, beside the data.
        folder: for the run directories; removed before.
        launcher: of the attempts.
    """
    result, started = Result(), time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        prepare(run, configuration, folder / "twin")
        ended = launcher.start(run.ranks[0], command(run, configuration, folder / "twin"), None)
        if not ended:
            result.lost.append(f"the twin failed\n{launcher.said()[-2000:]}")
            return result
        twin = Outcome(folder / "twin")
        upcoming = faults(f"{seed} {run.name}", run, folder / "killed")
        while result.kills < kills and not result.lost:
            shutil.rmtree(folder / "killed", ignore_errors=True)
            prepare(run, configuration, folder / "killed")
            _one_round(run, kills, result, upcoming, command(run, configuration, folder / "killed"), launcher)
            if not result.lost:
                _compare(run, result, twin, Outcome(folder / "killed"))
    except Hung as hung:
        result.lost.append(str(hung))
    result.seconds = time.monotonic() - started
    return result


def _one_round(
    run: Run, kills: int, result: Result, upcoming: Iterator[Fault], arguments: list[str], launcher: Launcher
) -> None:
    """Start the run until it comes to its end, with a fault each time as long as there are some left."""
    fault: Fault | None = None
    for attempt in range(10 * kills):
        fault = next(upcoming) if result.kills < kills else None
        record = Path(fault.record) if fault else None
        if record:
            record.unlink(missing_ok=True)
        ended = launcher.start(ranks_of(run, attempt), arguments, fault)
        struck = record is not None and record.exists()
        if struck and fault:
            result.kills += 1
            result.points[f"{signal.Signals(fault.signal).name} to {fault.victims}, {fault.point}"] += 1
        if ended:
            result.rounds += 1
            return
        if not struck:
            break
    result.lost.append(f"needs a human; the last fault was {fault}\n{launcher.said()[-3000:]}")


def _compare(run: Run, result: Result, twin: Outcome, killed: Outcome) -> None:
    if not run.resized:
        result.different += twin.differences(killed)
        return
    for name, distance in twin.distances(killed).items():
        result.distances[name] = max(distance, result.distances.get(name, 0.0))
        if not distance <= TOLERANCE:
            result.different.append(f"{name} are {distance:.2g} apart")


def as_json(result: Result) -> dict[str, Any]:
    """For a cache file."""
    return {**vars(result), "points": dict(result.points)}
