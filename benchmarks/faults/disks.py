"""Disks that are full, read-only or gone, reads that hang, ranks that are slow or stopped: what becomes of a run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.points import Fault
from benchmarks.faults.runs import Run, command
from benchmarks.faults.server import ForkServer, Hung

SECONDS = 240.0
PLENTY = 64 << 20
FULL_AT = range(50_000, 450_000, 50_000)  # bytes of the disk; a checkpoint takes some 150 kB


@dataclass(frozen=True)
class Case:
    """A run with one trouble.

    Args:
        name: its line in the table.
        expected: "goes on": the run comes to its end at once; "resumes": it ends with a status other than 0, and the
            same command brings it to its end.
        says: what its output must hold.
        ranks: how many.
        overrides: over the common configuration.
        faults: what happens in it.
        disk: how many bytes that holds; None: all there are.
        on_disk: what is struck, the checkpoints or the whole run directory.
    """

    name: str
    expected: str
    says: str
    ranks: int = 1
    overrides: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    disk: int | None = None
    on_disk: str = "checkpoints"


def cases(directory: Path) -> list[Case]:
    """All cases, each for a run in `directory`."""
    checkpoints = directory / "checkpoints"
    full = [
        Case(
            f"{what} on a disk that is full at {size // 1000} kB, until step 30",
            "goes on",
            "",
            faults=(Fault("step", 30, shell=f"mount -o remount,size={PLENTY} {place}"),),
            disk=size,
            on_disk=what,
        )
        for what, place in (("checkpoints", checkpoints), ("run directory", directory))
        for size in FULL_AT
    ]
    full_to_the_end = Case(
        "checkpoints on a disk that is full to the end", "resumes", "It was to be the last of the job", disk=FULL_AT[0]
    )
    read_only = (
        Fault("step", 6, shell=f"mount -o remount,ro {checkpoints}"),
        Fault("step", 15, shell=f"mount -o remount,rw {checkpoints}"),
    )
    return [
        *full,
        full_to_the_end,
        Case("checkpoints read-only for a while", "goes on", "ead-only", 2, faults=read_only, disk=PLENTY),
        Case("checkpoints deleted", "goes on", "", 2, faults=(Fault("step", 10, shell=f"rm -rf {checkpoints}"),)),
        Case(
            "run directory deleted",
            "goes on",
            "",
            faults=(Fault("step", 10, shell=f"rm -rf {directory}"),),
            on_disk="run directory",
        ),
        Case(
            "a read hangs",
            "resumes",
            "data.timeout_seconds",
            2,
            ("data.timeout_seconds=3", "run.timeout_seconds=30"),
            (Fault("read", 9, rank=1, sleep=3600),),
        ),
        Case("a rank is slow", "goes on", "", 2, faults=(Fault("step", 7, rank=1, sleep=3),)),
        Case(
            "a rank is stopped",
            "resumes",
            "did not answer",
            2,
            ("run.timeout_seconds=5",),
            (Fault("step", 7, rank=1, signal=signal.SIGSTOP),),
        ),
    ]


def try_case(case: Case, twins: Callable[[int], Outcome], configuration: Path, folder: Path, server: ForkServer) -> str:
    """Run it; what went wrong, "" if nothing, or why it was skipped."""
    directory = folder / "troubled"
    shutil.rmtree(directory, ignore_errors=True)
    run = Run(case.name, (case.ranks,), case.overrides)
    arguments = command(run, configuration, directory)
    if case.disk is not None and os.geteuid() != 0:
        return "skipped: mounting a disk of a given size takes root"
    twin = twins(case.ranks)
    is_whole = case.on_disk == "run directory"  # then lines of the log are lost, of which there is a warning
    with disk(directory if is_whole else directory / "checkpoints", case.disk) as resize:
        try:
            statuses = server.run(case.ranks, arguments, seconds=SECONDS, faults=case.faults)
            said = "\n".join(server.said(rank) for rank in range(case.ranks))
            resize(PLENTY)
            fails = any(statuses.values())
            if case.says not in said:
                return f"does not say {case.says!r}: {said[-1500:]}"
            if "Traceback" in said:
                return f"a traceback: {said[max(0, said.index('Traceback') - 300) :][:2500]}"
            if fails != (case.expected == "resumes"):
                return f"statuses {statuses}: {said[-1500:]}"
            if any(server.run(case.ranks, arguments, seconds=SECONDS).values()):
                return f"does not come to its end afterwards: {server.said(0)[-1500:]}"
        except Hung as hung:
            return str(hung)
        different = twin.differences(Outcome(directory), is_told=not is_whole)
    return "; ".join(different)


@contextmanager
def disk(directory: Path, size: int | None) -> Iterator[Callable[[int], None]]:
    """A file system in memory of so many bytes; the value makes it as large as said. None: an ordinary directory."""
    directory.mkdir(parents=True)
    if size is None:
        yield lambda _: None
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], check=True)

    def resize(larger: int) -> None:
        subprocess.run(["mount", "-o", f"remount,rw,size={larger}", str(directory)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
