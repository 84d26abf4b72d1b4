"""What a chart of a run's report is, for plotly.js: plain dicts, made without importing plotly.

Colours are names of the page's style sheet, `var(--c0)`: the page puts in those of its light or its dark scheme. What a
user has named is escaped, for plotly.js reads tags in text.
"""

from __future__ import annotations

from html import escape
from typing import Any, NamedTuple

Trace = dict[str, Any]


class Figure(NamedTuple):
    """A chart: `title` and `note` stand in the page around it; `height` in pixels."""

    title: str
    note: str
    data: list[Trace]
    layout: dict[str, Any]
    height: int = 260


def colours(count: int) -> list[str]:
    """So many, the same for a task in all charts.

    >>> colours(2)
    ['var(--c0)', 'var(--c1)']
    """
    return [f"var(--c{number % 6})" for number in range(count)]


def small(text: object) -> str:
    """A remark beside the label of an axis."""
    shown = f"{text:,}" if isinstance(text, int) else escape(str(text))
    return f'<span style="font-size:10px;opacity:.65">{shown}</span>'
