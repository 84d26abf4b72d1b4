"""`rankmixer status` and `rankmixer compare`: runs at a glance, from their logs and checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rankmixer.launch.config.config import leaves
from rankmixer.launch.report.output import show
from rankmixer.launch.report.run_page import PAGE
from rankmixer.launch.report.run_sections import number, span
from rankmixer.launch.runs.run_log import RunLog
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.metrics.metrics import LOWER_IS_BETTER
from rankmixer.pipeline.schema.vocabulary import read_text

STYLES = {
    "running": "bold blue",
    "finished": "bold green",
    "diverged": "bold red",
    "stopped": "bold yellow",
    "preempted": "bold yellow",
}
WARNINGS_SHOWN = 5
# Where a run is: differs always.
PLACES = ("run.directory", "run.checkpoints")


def show_status(directory: str, *, as_json: bool = False) -> None:
    """Print what a run is doing, on one screen or as one JSON object.

    Raises:
        ValueError: the directory holds no run, or one that has said nothing yet.
    """
    found = status(directory)
    view = Table.grid(padding=(0, 3))
    view.add_column(style="dim", no_wrap=True)
    view.add_column(overflow="fold")
    for key, value in _lines(found):
        view.add_row(key, value if isinstance(value, Text) else Text(value))
    title = Text.assemble((directory, "bold"), "  ", (found["state"], STYLES[found["state"]]))
    show(found, title, view, as_json=as_json)


def status(directory: str, now: float | None = None) -> dict[str, Any]:
    """What a run is doing, as JSON has it; None for what is not known.

    Raises:
        ValueError: the directory holds no run, or one that has said nothing yet.
    """
    now = time.time() if now is None else now
    log = RunLog(directory).read()
    last = log.last_step or {}
    columns = dict(log.metric_columns())
    names = log.metric_names()
    page = Path(directory, PAGE)
    state = log.state(now)
    return {
        "run": directory,
        "state": state,
        "step": log.step,
        "total_steps": log.total_steps,
        "epoch": last.get("epoch"),
        "seconds": log.seconds,
        "seconds_left": log.seconds_left if state == "running" else None,
        "seconds_silent": log.silence(now),
        "ranks": log.start.get("world_size"),
        "hosts": log.start.get("hosts"),
        "restarts": max(0, log.starts - 1),
        "loss": last.get("loss"),
        "examples_per_second": log.examples_per_second,
        "data_wait_share": last.get("data_wait_share"),
        "mfu": last.get("mfu"),
        "select": log.select,
        "metrics": {heading: _chosen(values, names) for heading, values in columns.items()},
        "best_step": log.best["step"] if log.best else None,
        **_checkpoints(log, now),
        "warnings": [f"step {event['step']:,}: {event['sentence']}" for event in log.events.trouble()],
        "report": str(page) if page.exists() else None,
    }


def _chosen(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values.get(name) for name in names}


def _checkpoints(log: RunLog, now: float) -> dict[str, Any]:
    """The newest checkpoint that is there, its age as far as the log knows it, and the best one."""
    given = log.config.get("run", {}).get("checkpoints")
    checkpoints = Checkpoints(given or f"{log.directory}/checkpoints")
    try:
        newest, best = checkpoints.latest(), checkpoints.best()
    except (OSError, RuntimeError, ValueError, ImportError) as error:  # a bucket that does not answer, say
        return {
            "checkpoint": None,
            "checkpoint_seconds": None,
            "best_checkpoint": None,
            "checkpoints_error": str(error),
        }
    told = log.checkpoint if log.checkpoint and log.checkpoint.get("name") == newest else None
    age = None if told is None else max(0.0, now - told["time"])
    return {"checkpoint": newest, "checkpoint_seconds": age, "best_checkpoint": best, "checkpoints_error": None}


def _lines(found: dict[str, Any]) -> list[tuple[str, str | Text]]:
    """What the screen says, line by line."""
    total = found["total_steps"]
    step = f"{found['step']:,}" + (f" of {total:,} ({found['step'] / total:.0%})" if total else "")
    epoch = f", epoch {found['epoch']}" if found["epoch"] is not None else ""
    took = f"{span(found['seconds'])}, last record {span(found['seconds_silent'])} ago"
    if found["seconds_left"] is not None:
        took += f", about {span(found['seconds_left'])} left"
    lines: list[tuple[str, str | Text]] = [("step", step + epoch), ("time", took)]
    if found["ranks"]:
        where = f"{found['ranks']} rank{'s' * (found['ranks'] != 1)} on {found['hosts']}"
        restarts = found["restarts"]
        lines.append(("where", where + (f", {restarts} restart{'s' * (restarts != 1)}" if restarts else "")))
    if found["loss"] is not None:
        lines.append(("training loss", f"{found['loss']:.4f}"))
    for heading, values in found["metrics"].items():
        at = f" (step {found['best_step']:,})" if heading == "best evaluation" else ""
        told = "  ".join(f"{name} {number(value)}" for name, value in values.items() if not name.endswith("rows"))
        lines.append((heading, told + at))
    if found["examples_per_second"] is not None:
        wait, mfu = found["data_wait_share"], found["mfu"]
        speed = f"{found['examples_per_second']:,.0f} examples/s"
        speed += f", data wait {wait:.1%}" if wait is not None else ""
        lines.append(("speed", speed + (f", MFU {mfu:.1%}" if mfu is not None else "")))
    lines.append(("checkpoint", _told_checkpoint(found)))
    warnings = found["warnings"]
    shown: str | Text = "none"
    if warnings:
        more = [f"and {len(warnings) - WARNINGS_SHOWN} earlier ones"] if len(warnings) > WARNINGS_SHOWN else []
        shown = Text("\n".join([*warnings[-WARNINGS_SHOWN:], *more]), style="yellow")
    return [*lines, ("warnings", shown), ("report", found["report"] or "none yet; rankmixer report RUN writes it")]


def _told_checkpoint(found: dict[str, Any]) -> str:
    if found["checkpoints_error"]:
        return f"not known: {found['checkpoints_error']}"
    if found["checkpoint"] is None:
        return "none yet"
    age = f", {span(found['checkpoint_seconds'])} old" if found["checkpoint_seconds"] is not None else ""
    return f"{found['checkpoint']}{age}; best {found['best_checkpoint'] or 'not known'}"


def show_comparison(directories: Sequence[str], *, as_json: bool = False) -> None:
    """Print runs side by side: metrics, speed, and the keys of the configuration that differ.

    Raises:
        ValueError: a directory holds no run, or one that has said nothing yet.
    """
    found = compare(directories)
    runs = found["runs"]
    titles = [Text(run["run"], overflow="fold") for run in runs]
    view = Table("", title="Runs")
    for title in titles:
        view.add_column(title, justify="right")
    view.add_row("state", *(Text(run["state"], style=STYLES[run["state"]]) for run in runs))
    view.add_row("step", *(f"{run['step']:,}" for run in runs))
    view.add_row("time", *(span(run["seconds"]) for run in runs))
    view.add_row("examples/s", *(_rate(run["examples_per_second"]) for run in runs), end_section=True)
    for heading in ("best evaluation", "test"):
        names = list(dict.fromkeys(name for run in runs for name in run["metrics"].get(heading, {})))
        for name in names:
            values = [run["metrics"].get(heading, {}).get(name) for run in runs]
            view.add_row(f"{heading.split()[0]} {name}", *_marked(name, values), end_section=name == names[-1])
    differences = Table(title="Configuration: what differs")
    for title in (Text("key"), *titles):
        differences.add_column(title, overflow="fold")
    for key, values in found["differences"].items():
        differences.add_row(Text(key), *(Text("" if value is None else _shown(value)) for value in values))
    show(found, view, differences if found["differences"] else "configuration: the same", as_json=as_json)


def compare(directories: Sequence[str]) -> dict[str, Any]:
    """Runs as JSON has them: `runs`, one entry each, and `differences`, the values of every key that differs.

    Raises:
        ValueError: a directory holds no run, or one that has said nothing yet.
    """
    logs = [RunLog(directory).read() for directory in directories]
    runs = [
        {
            "run": log.directory,
            "state": log.state(),
            "step": log.step,
            "seconds": log.seconds,
            "ranks": log.start.get("world_size"),
            "examples_per_second": log.examples_per_second,
            "metrics": {
                heading: _chosen(values, log.metric_names())
                for heading, values in log.metric_columns()
                if heading != "last evaluation"
            },
        }
        for log in logs
    ]
    trees = [leaves(config) for config in _with_common_features([log.config for log in logs])]
    keys = sorted({key for tree in trees for key in tree if key} - set(PLACES))
    found = {key: [tree.get(key) for tree in trees] for key in keys}
    return {
        "runs": runs,
        "differences": {key: values for key, values in found.items() if _differ(key, values)},
    }


def _differ(key: str, values: list[Any]) -> bool:
    """Whether runs differ in a key. Each has copies of its vocabularies: what these hold is compared."""
    if key.endswith(".vocabulary"):
        with suppress(ValueError):  # one is not there any more
            values = [value and read_text(value) for value in values]
    return any(value != values[0] for value in values)


def _with_common_features(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The configurations, with a feature that only some have as one key, its kind, instead of all its keys."""
    schemas = [config.get("feature_schema", {}) for config in configs]
    features = [schema.get("features", {}) for schema in schemas]
    common = set.intersection(*map(set, features))
    short = [
        {name: feature if name in common else feature["kind"] for name, feature in own.items()} for own in features
    ]
    return [
        {**config, "feature_schema": {**schema, "features": own}}
        for config, schema, own in zip(configs, schemas, short, strict=True)
    ]


def _marked(name: str, values: Sequence[float | None]) -> list[Text]:
    """The values, the best in bold where more or less is better."""
    metric = name.split("/")[-1]
    known = [value for value in values if value is not None]
    best = None
    if metric in ("auc", "gauc", *LOWER_IS_BETTER) and len(known) > 1:
        best = min(known) if metric in LOWER_IS_BETTER else max(known)
    return [
        Text("" if value is None else number(value), style="bold" if value is not None and value == best else "")
        for value in values
    ]


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
