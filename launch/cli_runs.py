"""Commands that look at a run: report."""

from __future__ import annotations

import argparse

from launch.grammar import Commands


def add_runs(commands: Commands) -> None:
    """`rankmixer report`."""
    report = commands.add(
        "report",
        _report,
        "Print a run's metrics as a table and as JSON, and draw its learning curve.",
        "rankmixer report runs/ml-100k",
    )
    report.add_argument("run", help="run.directory of a training run that has finished")


def _report(arguments: argparse.Namespace) -> None:
    from launch.versions import check_trio

    check_trio()
    from launch.report import report

    report(arguments.run)
