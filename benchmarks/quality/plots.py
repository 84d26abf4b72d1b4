"""Two pictures of the suite of heads: AUC by architecture, and by active ratio."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.paired import mean_interval
from benchmarks.quality.arms import RATIOS, ROUTINGS, moe_name
from benchmarks.quality.tables import Study


def draw(study: Study, directory: Path) -> list[Path]:
    """Write the pictures for which there are runs; their paths."""
    written = []
    for name, figure in (("quality_head_auc", architectures(study)), ("quality_head_moe", active_ratios(study))):
        if figure is not None:
            written.append(directory / f"{name}.png")
            figure.savefig(written[-1], dpi=90)
    return written


def architectures(study: Study) -> Figure | None:
    """Test AUC of every architecture, with the 95 % interval of its mean over the seeds."""
    found = [(arm.name, auc) for arm in study.arms if arm.group == "architectures" and (auc := study.auc(arm, "test"))]
    if not found:
        return None
    found.sort(key=lambda pair: statistics.mean(pair[1]))
    figure = Figure(figsize=(7, 0.4 * len(found) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for height, (_, auc) in enumerate(found):
        mean, half = mean_interval(auc)
        axes.errorbar(mean, height, xerr=half if math.isfinite(half) else 0, fmt="o", color="tab:blue", capsize=3)
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.set_xlabel(f"test AUC, {len(study.seeds)} seeds, equal dense parameters")
    axes.grid(axis="x", alpha=0.3)
    return figure


def active_ratios(study: Study) -> Figure | None:
    """AUC of the served path against the budget, by routing, on validation and test rows; the dense base as a line."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    drawn = False
    for axes, part in zip(panels, ("validation", "test"), strict=True):
        for offset, routing in enumerate(ROUTINGS):
            arms = {ratio: study.named(moe_name(routing, ratio)) for ratio in sorted(RATIOS)}
            values = {ratio: auc for ratio, arm in arms.items() if arm and (auc := study.auc(arm, part))}
            if values:
                means, halves = zip(*map(mean_interval, values.values()), strict=True)
                bars = [half if math.isfinite(half) else 0.0 for half in halves]
                places = [ratio * 1.03 ** (offset - 2) for ratio in values]
                axes.errorbar(places, means, yerr=bars, fmt="o-", color=f"C{offset}", capsize=3, label=routing)
                drawn = True
        dense = study.auc(study.arms[0], part)
        if dense:
            best = max(dense) if part == "validation" else statistics.mean(dense)
            axes.axhline(best, color="black", linestyle=":", label="dense")
        axes.set_xscale("log", base=2)
        axes.set_xticks(RATIOS, [f"1/{round(1 / ratio)}" for ratio in RATIOS])
        axes.set_xlabel("budget of active experts")
        axes.set_ylabel(f"{part} AUC of the served path")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    return figure if drawn else None
