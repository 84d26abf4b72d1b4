"""The command `rankmixer`."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NoReturn

from rankmixer.launch.commands.checkpoints import add_checkpoints
from rankmixer.launch.commands.data import add_data
from rankmixer.launch.commands.grammar import Commands
from rankmixer.launch.commands.jobs import add_jobs
from rankmixer.launch.commands.runs import add_runs
from rankmixer.launch.ranks.errors import run_reporting_errors
from rankmixer.launch.ranks.leave import leave, leave_at_once
from rankmixer.launch.ranks.preemption import sigint_is_said_once, sigterm_unwinds
from rankmixer.launch.ranks.torchrun import end_with_launcher


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status, as rankmixer.launch.ranks.errors.run_reporting_errors says.

    What calls this from Python goes on afterwards; `command` ends the process.
    """
    parsed = parser().parse_args(arguments)
    _quiet_libraries()
    with sigint_is_said_once(), sigterm_unwinds() if parsed.name != "train" else nullcontext():
        status = run_reporting_errors(lambda: parsed.command(parsed))
    gc.collect()  # gloo's threads end with the last reference to their group, and models refer to theirs in cycles
    return status


def command(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and end this process with its exit status (ranks/leave.py says why not by `sys.exit` alone).

    Args:
        arguments: of the command; by default those of this process.
    """
    end_with_launcher()  # before the seconds that imports take, in which a launcher may end
    try:
        status = main(arguments)
    except SystemExit as told:  # by argparse, or SIGTERM
        if not isinstance(told.code, int):
            raise
        status = told.code
    if (
        "rankmixer.pipeline.base.prefetch" in sys.modules
        and sys.modules["rankmixer.pipeline.base.prefetch"].left_behind()
    ):
        # A thread waits for a file system that does not answer; so would Arrow's threads, joined when a process ends.
        leave_at_once(status)
    leave(status)


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    root = argparse.ArgumentParser(
        prog="rankmixer",
        description="RankMixer on TorchRec: train, evaluate, predict, plan.",
        epilog="example: rankmixer train --config configs/ml-100k.yaml",
    )
    commands = Commands(root, dest="name", metavar="COMMAND")
    add_jobs(commands)
    add_runs(commands)
    add_checkpoints(commands)
    add_data(commands)
    return root


def _quiet_libraries() -> None:
    """Silence what TorchRec and torch say at every start about things that are in order here, and what torch's stores
    and gloo say of a rank that fails, which launch/ranks/roll_call.py says better.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    for name in ("torchrec", "torch.distributed", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|torchrec|fbgemm_gpu)\b.*")


if __name__ == "__main__":
    command()
