"""Pictures of the newest evaluation: the reliability diagram, and AUC by slice."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from rankmixer.launch.charts.figures import Figure, Trace, colours, small
from rankmixer.launch.runs.run_log import Record, RunLog

Z = 1.96  # of a 95 % interval


def reliability(log: RunLog) -> list[Figure]:
    """Observed against predicted rates: of the test rows, else of the newest evaluation."""
    source, where = (
        (log.finish, "test rows, best checkpoint")
        if log.finish and "reliability" in log.finish
        else (
            log.judged,
            f"evaluation at step {log.judged['step']:,}" if log.judged else "",
        )
    )
    found = (source or {}).get("reliability", {})
    data: list[Trace] = []
    for colour, (task, bins) in zip(colours(len(found)), found.items(), strict=True):
        bins = [bin for bin in bins if bin["prediction"] is not None and bin["observed"] is not None]
        if not bins:
            continue
        low, high = zip(*(_interval(bin["observed"], bin["rows"]) for bin in bins), strict=True)
        observed = [bin["observed"] for bin in bins]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escape(task),
                "x": [bin["prediction"] for bin in bins],
                "y": observed,
                "customdata": [[bin["rows"], one, other] for bin, one, other in zip(bins, low, high, strict=True)],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [top - middle for top, middle in zip(high, observed, strict=True)],
                    "arrayminus": [middle - bottom for bottom, middle in zip(low, observed, strict=True)],
                    "thickness": 1,
                    "width": 0,
                },
                "line": {"color": colour, "width": 1},
                "marker": {"color": colour, "size": 6},
                "hovertemplate": "predicted %{x:.2%}<br>observed %{y:.2%} (95 %: %{customdata[1]:.2%} to "
                "%{customdata[2]:.2%})<br>%{customdata[0]:,} rows",
            }
        )
    if not data:
        return []
    most = max(max(*trace["x"], *trace["y"]) for trace in data)
    ideal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, most],
        "y": [0, most],
        "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    layout = {
        "hovermode": "closest",
        "showlegend": len(data) > 1,
        "xaxis": {
            "title": {"text": "predicted rate"},
            "tickformat": ".0%" if most > 0.2 else "",
            "rangemode": "tozero",
        },
        "yaxis": {"title": {"text": "observed rate"}, "tickformat": ".0%" if most > 0.2 else "", "rangemode": "tozero"},
    }
    note = (
        f"{where[:1].upper()}{where[1:]}. Bins of about equal weight, 95 % intervals; "
        "on the dotted line predictions are true."
    )
    return [Figure("Reliability", note, [ideal, *data], layout, 340)]


def slices(log: RunLog) -> list[Figure]:
    """AUC by value of each column of metrics.slices."""
    figures = []
    judged: Record = log.judged or {}
    for column, found in judged.get("slices", {}).items():
        entries = [(_value(entry["value"]), entry) for entry in found["values"]]
        if found["other"]:
            entries.append(("all others", found["other"]))
        entries.reverse()  # plotly draws from the bottom up
        data: list[Trace] = []
        rules = []
        for colour, task in zip(colours(len(log.tasks)), log.tasks, strict=True):
            prefix = f"{task}/" if len(log.tasks) > 1 else ""
            data.append(_dots(entries, prefix, escape(task), colour))
            if judged.get(f"{prefix}auc") is not None:
                rules.append(_rule("x", judged[f"{prefix}auc"], colour))
        layout = {
            "hovermode": "closest",
            "showlegend": len(data) > 1,
            "shapes": rules,
            "xaxis": {"title": {"text": "AUC"}, "tickformat": ".3f"},
            "yaxis": {
                "tickvals": list(range(len(entries))),
                "ticktext": [f"{name} {small(entry['rows'])}" for name, entry in entries],
                "range": [-0.7, len(entries) - 0.3],
                "showgrid": True,
            },
        }
        note = f"Evaluation at step {judged['step']:,}. Dotted: all rows. The dot grows with the rows of the value."
        figures.append(Figure(f"AUC by {column}", note, data, layout, 110 + 22 * len(entries)))
    return figures


def _dots(entries: list[tuple[str, Record]], prefix: str, name: str, colour: str) -> Trace:
    most = max(entry["rows"] for _, entry in entries)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [entry[f"{prefix}auc"] for _, entry in entries],
        "y": list(range(len(entries))),
        "marker": {
            "color": colour,
            "size": [5 + 8 * math.sqrt(entry["rows"] / most) for _, entry in entries],
            "opacity": 1,
            "line": {"width": 0},
        },
        "customdata": [
            [value, entry["rows"], _shown(entry[f"{prefix}ne"]), _shown(entry[f"{prefix}calibration"])]
            for value, entry in entries
        ],
        "hovertemplate": "<b>%{customdata[0]}</b><br>AUC %{x:.4f}<br>NE %{customdata[2]}<br>"
        "calibration %{customdata[3]}<br>%{customdata[1]:,} rows<extra></extra>",
    }


def _rule(axis: str, value: float, colour: str) -> dict[str, Any]:
    ends = {"x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "paper"} if axis == "x" else {}
    return {"type": "line", "line": {"color": colour, "width": 1, "dash": "dot"}, "layer": "below", **ends}


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def _value(value: Any) -> str:
    """The name of a slice, short enough for an axis."""
    text = "null" if value is None else str(value) or "(empty)"
    return escape(text if len(text) <= 24 else f"{text[:23]}…")


def _interval(rate: float, rows: int) -> tuple[float, float]:
    """Wilson's interval of an observed rate."""
    if not rows:
        return 0.0, 1.0
    centre = (rate + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    half = Z / (1 + Z**2 / rows) * math.sqrt(max(0.0, rate * (1 - rate) / rows + Z**2 / (4 * rows**2)))
    return min(rate, centre - half), max(rate, centre + half)
