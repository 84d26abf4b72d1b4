"""What a command prints on stdout: tables for a person, or with `--json` one object for a machine."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text
from rich.theme import Theme

PIPED_WIDTH = 120  # columns where nobody says how many there are
THEME = Theme({"table.header": "bold cyan", "table.title": "bold"})


def show(found: Mapping[str, Any], *views: RenderableType, as_json: bool, ends_in_json: bool = False) -> None:
    """Print the views or, `as_json`, what they show as one JSON object on one line and nothing else.

    Colours and bold type are for terminals that take them (NO_COLOR is heeded); a pipe or a file gets plain text.

    Args:
        found: what the views show, complete.
        views: tables, and lines of text.
        as_json: the user said `--json`.
        ends_in_json: the line of JSON follows the views too.
    """
    if not as_json:
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
        console = Console(width=width, theme=THEME, markup=False, emoji=False)
        for view in views:
            if isinstance(view, str | Text):
                console.print(view if isinstance(view, Text) else Text(view), soft_wrap=True)
            else:
                console.print(view)
    if as_json or ends_in_json:
        print_result(found)


def print_result(result: Mapping[str, Any]) -> None:
    """Print one JSON object on a line; a number that is not defined or not finite is null."""
    print(json.dumps(_plain(result), allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    """The value as JSON has it.

    >>> _plain({"auc": math.nan, "slices": [("city", 1)]})
    {'auc': None, 'slices': [['city', 1]]}
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
