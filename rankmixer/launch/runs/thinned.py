"""Curves of any length in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]


class Thinned:
    """Means of consecutive records, fewer than twice `limit`.

    >>> thinned = Thinned(limit=2)
    >>> for step in range(1, 9):
    ...     thinned.add({"step": step, "loss": 1.0 / step})
    >>> [(point["step"], round(point["loss"], 3)) for point in thinned.points()]
    [(4, 0.521), (8, 0.159)]
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._count = limit, 1
        self._points: list[Record] = []
        self._waiting: list[Record] = []

    def add(self, record: Record) -> None:
        """Take a record; its numbers are kept, "step" as the last one of the mean."""
        self._waiting.append({name: value for name, value in record.items() if type(value) in (int, float)})
        if len(self._waiting) == self._count:
            self._points.append(mean(self._waiting))
            self._waiting = []
        if len(self._points) == 2 * self._limit:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [mean(pair) for pair in pairs]
            self._count *= 2

    def points(self) -> list[Record]:
        """The means, the last one perhaps of fewer records."""
        return [*self._points, mean(self._waiting)] if self._waiting else list(self._points)


def mean(records: Sequence[Record]) -> Record:
    """The mean of every number, among the records that have it; the last "step".

    >>> mean([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 4.0, "mfu": 0.5}])
    {'step': 2, 'loss': 3.0, 'mfu': 0.5}
    """
    names = dict.fromkeys(name for record in records for name in record)
    means: Record = {}
    for name in names:
        values = [record[name] for record in records if name in record]
        means[name] = sum(values) / len(values)
    return {**means, "step": records[-1]["step"]}


def thin(records: list[Record], limit: int) -> list[Record]:
    """Every second record and the last, once there are twice `limit`."""
    return records if len(records) < 2 * limit else [*records[:-1:2], records[-1]]
