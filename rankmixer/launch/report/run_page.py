"""`report.html`: a run on one page that needs nothing else."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from rankmixer.launch.charts.curve_figures import quality, speed
from rankmixer.launch.charts.figures import Figure
from rankmixer.launch.charts.judged_figures import reliability, slices
from rankmixer.launch.charts.placement_figures import experts, placement
from rankmixer.launch.report.run_sections import configuration, events, header, metrics, name_of, section, when
from rankmixer.launch.runs.run_log import RunLog
from rankmixer.pipeline.journal.journal import LOG

PAGE = "report.html"
SHARE = 0.02  # of the time that writing the page may take, when evaluations follow each other fast


class RunPage:
    """Keeps `report.html` of a run up to date.

    The page holds plotly.js, nearly 5 MB, so that it can be opened anywhere. It is read from the disk once and
    written with every refresh: tens of milliseconds. What else a refresh costs does not grow with the length of the
    run, for the log is read from where the last refresh stood.

    Args:
        directory: of the run, which has a log.
    """

    def __init__(self, directory: str) -> None:
        self._log = RunLog(directory)
        self._path = Path(directory, PAGE)
        self._rest_until = 0.0

    def refresh(self, *, has_ended: bool = False) -> None:
        """Write the page, beside its place first. Does nothing shortly after a refresh that took long.

        Args:
            has_ended: nothing more will come: say so, whatever the log's last record is.

        Raises:
            OSError: the disk fails.
            ValueError: the directory has no log.
        """
        start = time.monotonic()
        if start < self._rest_until and not has_ended:
            return
        write_page(self._log.read(), "stopped" if has_ended else None)
        now = time.monotonic()
        self._rest_until = now + (now - start) / SHARE


def write_page(log: RunLog, silent_state: str | None = None) -> Path:
    """Write the page of a run as its log stands; return its path.

    Args:
        log: of the run, read.
        silent_state: what a run is that has neither finished nor diverged; None: what its last record's age says.
    """
    path = Path(log.directory, PAGE)
    unfinished = path.with_name(f".{PAGE}.tmp")
    try:
        unfinished.write_text(page(log, silent_state), encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def page(log: RunLog, silent_state: str | None = None) -> str:
    """The page as HTML."""
    state = log.state()
    if silent_state is not None and state == "running":
        state = silent_state
    charts = Charts()
    sections = [
        header(log, state),
        f'<div class="pair">{section("Metrics", metrics(log))}{section("What happened", events(log))}</div>',
        section("Quality", charts.grid(quality(log), "grid aligned")),
        section("Calibration and slices", charts.grid([*reliability(log), *slices(log)], "packed")),
        section("Speed", charts.grid(speed(log), "grid three aligned")),
        section("Experts", charts.grid(experts(log))),
        section("Placement", charts.grid(placement(log))),
        section("Configuration", configuration(log)),
    ]
    parts = {
        "title": escape(f"{name_of(log)}: {state}"),
        "body": "\n".join(sections),
        "footer": f"Written {when(time.time())} from {escape(os.path.join(log.directory, LOG))}.",
        # A tag inside a string would end the element.
        "figures": json.dumps(charts.specifications, allow_nan=False).replace("<", "\\u003c"),
        "plotly": _plotly(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _template())


@cache
def _template() -> str:
    return files("rankmixer.launch.report").joinpath("run_page.html").read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    return files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")


class Charts:
    """The charts of a page: a place in the HTML for each, and what plotly.js draws there."""

    def __init__(self) -> None:
        self.specifications: list[dict[str, Any]] = []

    def grid(self, figures: Sequence[Figure], arrangement: str = "grid") -> str:
        """Places for some charts, in the columns of a class of the style sheet."""
        return f'<div class="{arrangement}">{"".join(map(self._place, figures))}</div>' if figures else ""

    def _place(self, figure: Figure) -> str:
        name = f"chart-{len(self.specifications)}"
        self.specifications.append({"id": name, "data": figure.data, "layout": figure.layout})
        note = f"<p>{escape(figure.note)}</p>" if figure.note else ""
        return (
            f"<figure><figcaption><h3>{escape(figure.title)}</h3>{note}</figcaption>"
            f'<div class="chart" id="{name}" style="height:{figure.height}px"></div></figure>'
        )
