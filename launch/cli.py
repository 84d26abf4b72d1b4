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

from launch.cli_checkpoints import add_checkpoints
from launch.cli_data import add_data
from launch.cli_jobs import add_jobs
from launch.cli_runs import add_runs
from launch.errors import run_reporting_errors
from launch.grammar import Commands
from launch.preemption import sigint_is_said_once, sigterm_unwinds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status, as launch.errors.run_reporting_errors says."""
    parsed = parser().parse_args(arguments)
    _quiet_libraries()
    with sigint_is_said_once(), sigterm_unwinds() if parsed.name != "train" else nullcontext():
        status = run_reporting_errors(lambda: parsed.command(parsed))
    # Gloo joins a group's threads when the last reference to the group goes, and models and tracebacks refer to theirs
    # in cycles. A thread that lets a tensor go while Python shuts down ends a finished job with SIGABRT.
    gc.collect()
    if "pipeline.prefetch" in sys.modules and sys.modules["pipeline.prefetch"].left_behind():
        # A thread waits for a file system that does not answer; so would Arrow's threads, joined when a process ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


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
    and gloo say of a rank that fails, which launch/roll_call.py says better.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    for name in ("torchrec", "torch.distributed", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|torchrec|fbgemm_gpu)\b.*")


if __name__ == "__main__":
    sys.exit(main())
