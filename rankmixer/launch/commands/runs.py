"""Commands that look at runs: status, compare, report."""

from __future__ import annotations

import argparse

from rankmixer.launch.commands.grammar import Commands, add_json


def add_runs(commands: Commands) -> None:
    """`rankmixer status`, `compare` and `report`."""
    status = commands.add(
        "status", _status, "Show what a run is doing, on one screen.", "rankmixer status runs/ml-100k"
    )
    status.add_argument("run", help="run.directory of a training run")
    compare = commands.add(
        "compare",
        _compare,
        "Show the metrics and speed of runs side by side, and where their configurations differ.",
        "rankmixer compare runs/ml-100k runs/other",
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run.directory of a training run")
    for command in (status, compare):
        add_json(command)
    report = commands.add(
        "report",
        _report,
        "Print a run's metrics as a table and as JSON, and write its report.html.",
        "rankmixer report runs/ml-100k",
    )
    report.add_argument("run", help="run.directory of a training run")
    add_json(report)


def _status(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.report.show_run import show_status

    show_status(arguments.run, as_json=arguments.json)


def _compare(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.report.show_run import show_comparison

    show_comparison(arguments.runs, as_json=arguments.json)


def _report(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.report.report import report

    report(arguments.run, as_json=arguments.json)
