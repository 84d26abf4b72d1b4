"""The curves of a run's report: quality and speed over training steps."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from rankmixer.launch.charts.figures import Figure, Trace, colours
from rankmixer.launch.runs.run_log import Record, RunLog

SMOOTHING = 0.8  # weight of the past in the running mean of the training loss


def quality(log: RunLog) -> list[Figure]:
    """Loss, AUC, GAUC and NE over steps."""
    training = _curve(log.training.points(), "loss")
    figures = []
    if training[0]:
        evaluations = _evaluations(log, "logloss", "evaluation")
        smooth = (training[0], _running_mean(training[1]))
        data = [
            _line(training, "each record", "var(--muted)", opacity=0.35, width=1, hoverinfo="skip", showlegend=False),
            _line(smooth, "training, running mean", "var(--muted)"),
            *evaluations,
        ]
        note = "Training loss is the weighted sum over tasks." if len(log.tasks) > 1 else ""
        figures.append(Figure("Loss", note, data, _over_steps(log, "log loss per example", ".4f")))
    for metric, title, note in (
        ("auc", "AUC", "Share of pairs of a positive and a negative that are in the right order."),
        ("gauc", "GAUC", f"AUC within each {_group(log)}, averaged{_without_one(log)}."),
        (
            "ne",
            "Normalised entropy",
            "Log loss over that of the best constant: below 1 is better than knowing nothing.",
        ),
    ):
        data = _evaluations(log, metric, "evaluation")
        if data:
            figures.append(Figure(title, note, data, _over_steps(log, "", ".4f")))
    return figures


def speed(log: RunLog) -> list[Figure]:
    """Throughput, waiting for data, use of the machine."""
    points = log.training.points()
    peak = log.start.get("peak_tflops")
    figures = []
    for name, title, note, form in (
        ("examples_per_second", "Throughput", "Examples a second, on all ranks together.", ",.0f"),
        ("data_wait_share", "Data wait", "Share of the training time in which steps waited for their batch.", ".1%"),
        (
            "mfu",
            "MFU",
            "FLOPs of the dense part's matrix products in training, all paths and experts, over the peak of a rank"
            + (f" ({peak:.4g} TFLOP/s)." if peak else "."),
            ".1%",
        ),
    ):
        curve = _curve(points, name)
        if curve[0]:
            layout = _over_steps(log, "", form)
            layout["yaxis"] |= {"rangemode": "tozero", "tickformat": "~s" if name.startswith("examples") else ".2~p"}
            figures.append(Figure(title, note, [_line(curve, title, "var(--c0)")], layout, 220))
    return figures


def _evaluations(log: RunLog, metric: str, name: str) -> list[Trace]:
    """A curve for every task, and for the rows that a stream brought; the test rows as a dotted line."""
    data = []
    tasks = log.tasks
    for kind, called, dash in (("evaluate", name, "solid"), ("arrival", "new rows, before training on them", "dash")):
        records = [record for record in log.evaluations if record["kind"] == kind]
        for colour, task in zip(colours(len(tasks)), tasks, strict=True):
            curve = _curve(records, f"{task}/{metric}" if len(tasks) > 1 else metric)
            if curve[0]:
                full = f"{called}, {escape(task)}" if len(tasks) > 1 else called
                data.append(_line(curve, full, colour, markers=True, dash=dash))
                test = (log.finish or {}).get(f"test_{task}/{metric}" if len(tasks) > 1 else f"test_{metric}")
                if test is not None and kind == "evaluate":
                    ends = ([curve[0][0], max(curve[0][-1], log.step)], [test, test])
                    suffix = f", {escape(task)}" if len(tasks) > 1 else ""
                    data.append(_line(ends, f"test {test:.4f}{suffix}", colour, dash="dot", width=1.5))
    return data


def _curve(records: Iterable[Record], name: str) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _running_mean(values: list[float]) -> list[float]:
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = SMOOTHING * total + value, SMOOTHING * weight + 1
        means.append(total / weight)
    return means


def _line(
    curve: tuple[list[int], list[float]],
    name: str,
    colour: str,
    *,
    markers: bool = False,
    dash: str = "solid",
    width: float = 2,
    **more: Any,
) -> Trace:
    steps, values = curve
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers or len(steps) == 1 else "lines",
        "x": steps,
        "y": values,
        "name": name,
        "line": {"color": colour, "width": width, "dash": dash},
        "marker": {"size": 5},
        **more,
    }


def _over_steps(log: RunLog, title: str, form: str) -> dict[str, Any]:
    return {
        "hovermode": "x unified",
        "xaxis": {
            "title": {"text": "training step"},
            "tickformat": ",d",
            "hoverformat": ",d",
            **({"dtick": 1} if log.step < 10 else {}),
            "unifiedhovertitle": {"text": "step %{x:,}"},
        },
        "yaxis": {"title": {"text": title}, "hoverformat": form},
    }


def _group(log: RunLog) -> str:
    return str(log.config.get("metrics", {}).get("group") or "group")


def _without_one(log: RunLog) -> str:
    """What the last evaluation left out of GAUC."""
    share = (log.evaluations[-1].get("ungrouped") if log.evaluations else None) or 0.0
    return f"; {share:.2%} of the evaluated rows have none and are left out" if share else ""
