"""The parts of a run's page that are text: header, events, metrics, configuration. All that is not ours is escaped."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from rankmixer.launch.config.config import leaves
from rankmixer.launch.runs.run_events import SENTENCES, TROUBLE
from rankmixer.launch.runs.run_log import RunLog


def section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def header(log: RunLog, state: str) -> str:
    start = log.start
    facts = []
    if start:
        ranks, hosts = start.get("world_size", 1), start.get("hosts")
        facts.append(f"{ranks} rank{'s' * (ranks != 1)} on {hosts}")
        facts.append(f"{start.get('table_parameters', 0):,} parameters in tables, {start['dense_parameters']:,} dense")
        if log.starts > 1:
            facts.append(f"{log.starts - 1} restart{'s' * (log.starts > 2)}")
    begun = f"begun {when(log.first['time'], ago=False)}, " if log.first else ""
    said = f"last record {when(log.last['time'])}" if log.last else "no record yet"
    total = log.total_steps
    share = min(1.0, log.step / total) if total else 0.0
    bar = f'<div class="bar {state}"><i style="width:{share:.1%}"></i></div>'
    tiles = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'
        for name, value, note in _tiles(log, state)
    )
    return (
        f'<header><div class="top"><h1>{escape(name_of(log))}</h1><span class="state {state}">{state}</span></div>'
        f'<p class="facts">{escape(" · ".join(facts))}</p><p class="facts">{begun}{said}</p>{bar}'
        f'<div class="tiles">{tiles}</div></header>'
    )


def _tiles(log: RunLog, state: str) -> list[tuple[str, str, str]]:
    """Name, value and a note for the few numbers that matter most."""
    total = log.total_steps
    left = log.seconds_left
    tiles = [("step", f"{log.step:,}", f"of {total:,}" if total else "no last step")]
    columns = dict(log.metric_columns())
    for heading in ("test", "best evaluation"):
        if heading in columns:
            for metric in ("auc", "gauc", "ne") if len(log.tasks) == 1 else ("auc",):
                for task in log.tasks[:3]:
                    name = f"{task}/{metric}" if len(log.tasks) > 1 else metric
                    if columns[heading].get(name) is not None:
                        label = f"{metric.upper()}{f' of {task}' if len(log.tasks) > 1 else ''}"
                        where = (
                            "test rows"
                            if heading == "test"
                            else f"best evaluation, step {log.best['step']:,}"
                            if log.best
                            else ""
                        )
                        tiles.append((label, f"{columns[heading][name]:.4f}", where))
            break
    if log.last_step is not None:
        tiles.append(
            (
                "training loss",
                f"{log.last_step['loss']:.4f}" if log.last_step.get("loss") is not None else "undefined",
                "last record",
            )
        )
        if log.examples_per_second is not None:
            tiles.append(("examples/s", f"{log.examples_per_second:,.0f}", "median"))
    if state == "running" and left is not None:
        tiles.append(("time left", span(left), "at the present pace"))
    tiles.append(("time", span(log.seconds), "with evaluations"))
    if log.finish and log.finish.get("checkpoint"):
        tiles.append(
            (
                "best checkpoint",
                log.finish["checkpoint"].removeprefix("step-").lstrip("0") or "0",
                log.finish["checkpoint"],
            )
        )
    elif log.checkpoint is not None:
        tiles.append(("newest checkpoint", f"{log.checkpoint['step']:,}", str(log.checkpoint.get("name"))))
    return tiles


def events(log: RunLog) -> str:
    events = log.events.all()
    if len(events) <= 1 and not log.events.trouble():
        return ""
    rows = []
    for event in reversed(events):
        is_trouble = event["kind"] in TROUBLE or event["kind"] not in SENTENCES
        times = f" ({event['count']} times)" if event["count"] > 1 else ""
        rows.append(
            f'<tr><td class="when">{when(event["time"], ago=False)}</td><td class="when">step {event["step"]:,}</td>'
            f'<td class="text{" trouble" * (event["kind"] == "diverged")}">{"⚠ " * is_trouble}'
            f"{escape(event['sentence'])}{times}</td></tr>"
        )
    return f'<div class="card"><table class="events">{"".join(rows)}</table></div>'


def metrics(log: RunLog) -> str:
    columns = log.metric_columns()
    if not columns:
        return ""
    head = "".join(f'<th class="number">{heading}</th>' for heading, _ in columns)
    rows = [
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="number">{number(values.get(name))}</td>' for _, values in columns)
        + "</tr>"
        for name in log.metric_names()
    ]
    steps = "".join(
        f'<td class="number">{values["step"]:,}</td>' if "step" in values else "<td></td>" for _, values in columns
    )
    return (
        f'<div class="card"><table><tr><th></th>{head}</tr>{"".join(rows)}<tr><td>step</td>{steps}</tr></table></div>'
    )


def configuration(log: RunLog) -> str:
    config = log.config
    schema = config.pop("feature_schema", {})
    parts = []
    if config:
        rows = [
            f'<tr><td class="key">{escape(key)}</td><td class="value">{escape(_yaml(value))}</td></tr>'
            for key, value in leaves(config).items()
        ]
        parts.append(_details("Configuration", f"{len(rows)} keys", f"<table>{''.join(rows)}</table>", columns=True))
    features = schema.get("features", {})
    if features:
        rows = []
        for name, feature in features.items():
            given = {
                key: value for key, value in feature.items() if key != "kind" and value not in (None, [], {}, False)
            }
            told = ", ".join(f"{key} {_yaml(value)}" for key, value in given.items())
            rows.append(
                f'<tr><td class="key">{escape(name)}</td><td>{escape(str(feature.get("kind")))}</td>'
                f'<td class="value">{escape(told)}</td></tr>'
            )
        parts.append(
            _details(
                "Features",
                f"{len(features)}, labels: {escape(', '.join(log.tasks))}",
                f"<table>{''.join(rows)}</table>",
            )
        )
    versions = log.start.get("versions", {})
    if versions:
        rows = [
            f'<tr><td class="key">{escape(name)}</td><td class="value">{escape(version)}</td></tr>'
            for name, version in versions.items()
        ]
        told = f"torch {versions.get('torch')}, torchrec {versions.get('torchrec')}"
        parts.append(_details("Versions", escape(told), f"<table>{''.join(rows)}</table>"))
    return "".join(parts)


def _details(title: str, note: str, content: str, *, columns: bool = False) -> str:
    kind = ' class="columns"' * columns
    return f"<details><summary>{title} <span>{note}</span></summary><div{kind}>{content}</div></details>"


def name_of(log: RunLog) -> str:
    return Path(log.directory).resolve().name


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def when(seconds: float, ago: bool = True) -> str:
    at = datetime.fromtimestamp(seconds, UTC)
    mark = f' data-seconds="{seconds:.0f}"' if ago else ""
    return f'<time datetime="{at.isoformat(timespec="seconds")}"{mark}>{at:%Y-%m-%d %H:%M} UTC</time>'


def span(seconds: float) -> str:
    """A length of time, as people say it.

    >>> span(4.23), span(303), span(7390), span(200_000)
    ('4.2 s', '5 min', '2 h 3 min', '2 days 8 h')
    """
    if seconds < 59.5:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h"


def number(value: float | None) -> str:
    """A metric.

    >>> number(0.84567), number(14571.0), number(float("nan"))
    ('0.8457', '14,571', 'undefined')
    """
    if value is None or value != value:
        return "undefined"
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4f}"
