"""`rankmixer report`: how good a run is, from its log."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from rankmixer.launch.report.output import show
from rankmixer.launch.report.run_page import write_page
from rankmixer.launch.report.run_sections import number
from rankmixer.launch.runs.run_log import RunLog


def report(run_directory: str, *, as_json: bool = False) -> None:
    """Write a run's page, and print its metrics and speed: tables and one JSON object on the last line, or that alone.

    Raises:
        ValueError: the directory holds no run, or one that has said nothing yet.
        OSError: the page cannot be written.
    """
    log = RunLog(run_directory).read()
    page = str(write_page(log))
    columns = log.metric_columns()
    quality = Table("metric", title="Quality")
    for heading, _ in columns:
        quality.add_column(heading, justify="right")
    for name in log.metric_names():
        quality.add_row(name, *(number(values.get(name)) for _, values in columns))
    given = log.finish or (columns[0][1] if columns else {})
    told = {
        key: value
        for key, value in given.items()
        if key not in ("kind", "time", "step") and not isinstance(value, dict)
    }
    result = {"state": log.state(), "steps": log.step, **told, "report": page}
    views = [quality] if columns else []
    show(result, *views, _speed(log), f"report: {page}", as_json=as_json, ends_in_json=True)


def metrics_table(name: str, metrics: Mapping[str, float]) -> Table:
    """The metrics of one evaluation, under the name of the checkpoint."""
    view = Table("metric", title="Quality")
    view.add_column(name, justify="right")
    for metric, value in metrics.items():
        view.add_row(metric, number(value))
    return view


def _speed(log: RunLog) -> Table:
    """Medians over the training records, and the sizes of the model."""
    records = log.training.points()
    view = Table("ranks", "table parameters", "dense parameters", "examples/s", "data wait", "MFU", title="Speed")
    mfus = [record["mfu"] for record in records if "mfu" in record]
    view.add_row(
        str(log.start.get("world_size")),
        f"{log.start.get('table_parameters', 0):,}",
        f"{log.start.get('dense_parameters', 0):,}",
        "" if log.examples_per_second is None else f"{log.examples_per_second:,.0f}",
        f"{waiting(records):.1%}" if records else "",
        f"{statistics.median(mfus):.1%}" if mfus else "",
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
