"""Lengths of time and timezones as the schema writes them."""

from __future__ import annotations

import difflib
import re
import zoneinfo
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_LENGTH = r"(\d+(?:\.\d+)?) ?(s|min|h|d)"


def seconds(value: Any) -> Any:
    """A length of time in seconds; what is no text is left for others to judge.

    Raises:
        ValueError: text that is not a number and one of s, min, h and d.

    >>> seconds("90s"), seconds("1.5h"), seconds("7d")
    (90.0, 5400.0, 604800.0)
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(_LENGTH, value)
    if match is None:
        raise ValueError("expected a length of time such as 30s, 5min, 1h or 7d, or seconds as a number")
    return float(match[1]) * _UNITS[match[2]]


Seconds = Annotated[
    float,
    Field(allow_inf_nan=False),
    BeforeValidator(seconds),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{_LENGTH}$"}]}),
]


def check_timezone(name: str) -> None:
    """Refuse what the timezone database does not have.

    Raises:
        ValueError: says which name is near.
    """
    try:
        pc.hour(pa.array([0], pa.timestamp("s", name)))
    except pa.ArrowInvalid:
        near = difflib.get_close_matches(name, zoneinfo.available_timezones(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "expected a name such as Europe/Oslo"
        raise ValueError(f"timezone {name!r} is unknown; {hint}") from None
