"""`rankmixer report`: how good a run is, from its log."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from launch.output import show
from pipeline.journal import LOG, read_log

METRICS = ("auc", "gauc", "logloss", "ne", "calibration", "rows")


def report(run_directory: str, *, as_json: bool = False) -> None:
    """Draw a run's learning curve, and print its metrics: tables and one JSON object on the last line, or that alone.

    Raises:
        ValueError: the directory holds no run, or one that has not come to its end.
    """
    if not Path(run_directory, LOG).exists():
        raise ValueError(f"{run_directory}: no {LOG} here; give the run.directory of a training run")
    from launch.learning_curve import plot  # takes a second to import

    lines = read_log(run_directory)
    finish = _last(lines, "finish")
    if finish is None:
        raise ValueError(
            f"{run_directory}: the run stands at step {lines[-1]['step'] if lines else 0} and has not finished; "
            "start the same training command again to resume it"
        )
    picture = str(Path(run_directory, "learning_curve.png"))
    plot(run_directory, picture)
    result = {key: value for key, value in finish.items() if key not in ("kind", "time", "step")}
    result["learning_curve"] = picture
    views = _quality(lines, finish), _speed(lines), f"learning curve: {picture}"
    show(result, *views, as_json=as_json, ends_in_json=True)


def _last(lines: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((line for line in reversed(lines) if line["kind"] == kind), None)


def _quality(lines: list[dict[str, Any]], finish: dict[str, Any]) -> Table:
    """Every metric of every task: at the last evaluation, at the checkpoint chosen, and on the test rows."""
    evaluations = [line for line in lines if line["kind"] == "evaluate"]
    chosen = next((line for line in evaluations if f"step-{line['step']:08d}" == finish.get("checkpoint")), None)
    view = Table("metric", title="Quality")
    columns: list[tuple[dict[str, Any], str]] = []
    for heading, line, prefix in (
        ("last evaluation", evaluations[-1] if evaluations else None, ""),
        ("best checkpoint", chosen, ""),
        ("test", finish if any(key.startswith("test_") for key in finish) else None, "test_"),
    ):
        if line is not None:
            view.add_column(heading, justify="right")
            columns.append((line, prefix))
    names = [key for line, _ in columns[:1] for key in line] or [key.removeprefix("test_") for key in finish]
    for name in names:
        if name.split("/")[-1] in METRICS:
            view.add_row(name, *(_number(line.get(f"{prefix}{name}")) for line, prefix in columns))
    return view


def metrics_table(name: str, metrics: Mapping[str, float]) -> Table:
    """The metrics of one evaluation, under the name of the checkpoint."""
    view = Table("metric", title="Quality")
    view.add_column(name, justify="right")
    for metric, value in metrics.items():
        view.add_row(metric, _number(value))
    return view


def _speed(lines: list[dict[str, Any]]) -> Table:
    """Medians over the training records, and the sizes of the model."""
    start = _last(lines, "start") or {}
    records = [line for line in lines if line["kind"] == "train"]
    view = Table("ranks", "table parameters", "dense parameters", "examples/s", "data wait", "MFU", title="Speed")
    view.add_row(
        str(start["world_size"]),
        f"{start['table_parameters']:,}",
        f"{start['dense_parameters']:,}",
        f"{statistics.median(line['examples_per_second'] for line in records):,.0f}",
        f"{waiting(records):.1%}",
        f"{statistics.median(line['mfu'] for line in records):.1%}",
    )
    return view


def waiting(records: Sequence[Mapping[str, Any]]) -> float:
    """The share of all training time in which steps waited for their batch; first batches of epochs included.

    A record covers the steps since the one before it, and counts by the time that they took.

    >>> records = [(10, 100.0, 0.5), (20, 100.0, 0.0), (25, 50.0, 0.2)]
    >>> waiting([dict(step=s, examples_per_second=e, data_wait_share=w) for s, e, w in records])
    0.2333...
    """
    steps = [
        record["step"] - before for record, before in zip(records, [0, *(r["step"] for r in records)], strict=False)
    ]
    # Seconds, but for the batch size, which is constant.
    seconds = [count / record["examples_per_second"] for count, record in zip(steps, records, strict=True)]
    waited = [record["data_wait_share"] * spent for record, spent in zip(records, seconds, strict=True)]
    return sum(waited) / sum(seconds)


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "undefined"
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4f}"
