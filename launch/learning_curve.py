"""The learning curve of a run, drawn from its log: loss and AUC over training steps, as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.journal import LOG, read_log

Curve = list[tuple[int, float]]  # (step, value)
SMOOTHING = 0.8  # weight of the past in the running mean of the training loss


def plot(run_directory: str, out_png: str) -> None:
    """Draw training loss, evaluation log loss and AUC over steps into `out_png`, and the test AUC if there is one.

    Reads `log.jsonl`: "loss" in lines of kind "train", "logloss" and "auc" (of several tasks "task/auc") of kind
    "evaluate", "test_auc" of kind "finish".

    Raises:
        ValueError: the log has no training loss.
        FileNotFoundError: the directory has no log.
    """
    lines = read_log(run_directory)
    training = curves(lines, "train", "loss")
    if "loss" not in training:
        raise ValueError(
            f"{Path(run_directory, LOG)}: no finite 'loss' in a line of kind 'train' (found {len(lines)} lines in all);"
            " train for some steps first"
        )
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, auc_axes = figure.subplots(2, 1, sharex=True)
    _draw_loss(loss_axes, training["loss"], curves(lines, "evaluate", "logloss"))
    _draw_auc(auc_axes, curves(lines, "evaluate", "auc"), curves(lines, "finish", "auc", prefix="test_"))
    loss_axes.set_title(Path(run_directory).resolve().name)
    unfinished = Path(f"{out_png}.tmp")
    try:
        figure.savefig(unfinished, format="png")
        unfinished.replace(out_png)
    finally:
        unfinished.unlink(missing_ok=True)


def curves(lines: list[dict[str, Any]], kind: str, metric: str, prefix: str = "") -> dict[str, Curve]:
    """The points of `metric` in the lines of `kind`, by name ("auc", "click/auc"); values that are null are left out.

    >>> curves([{"kind": "evaluate", "step": 5, "click/auc": 0.7, "buy/auc": None}], "evaluate", "auc")
    {'click/auc': [(5, 0.7)]}
    """
    found: dict[str, Curve] = {}
    for line in lines:
        for key, value in line.items():
            name = key.removeprefix(prefix)
            if line["kind"] == kind and key.startswith(prefix) and name.split("/")[-1] == metric and value is not None:
                found.setdefault(name, []).append((line["step"], value))
    return found


def _draw_loss(axes: Axes, training: Curve, evaluations: dict[str, Curve]) -> None:
    steps, losses = zip(*training, strict=True)
    means, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
        means.append(total / weight)
    axes.plot(steps, losses, color="C0", alpha=0.3, linewidth=0.8)
    axes.plot(steps, means, color="C0", label="training loss (faint) and its running mean")
    for index, (name, curve) in enumerate(evaluations.items(), start=1):
        axes.plot(*zip(*curve, strict=True), color=f"C{index}", marker="o", markersize=3, label=f"evaluation {name}")
    axes.set_ylabel("loss")
    _finish(axes)


def _draw_auc(axes: Axes, evaluations: dict[str, Curve], tests: dict[str, Curve]) -> None:
    for index, name in enumerate(dict.fromkeys([*evaluations, *tests]), start=1):
        if name in evaluations:
            curve = evaluations[name]
            label = f"evaluation {name}, best {max(value for _, value in curve):.4f}"
            axes.plot(*zip(*curve, strict=True), color=f"C{index}", marker="o", markersize=3, label=label)
        if name in tests:
            value = tests[name][-1][1]
            axes.axhline(value, color=f"C{index}", linestyle="--", label=f"test {name} {value:.4f}")
    axes.set_ylabel("AUC")
    axes.set_xlabel("training step")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "no evaluation in the log", ha="center", va="center", transform=axes.transAxes)
