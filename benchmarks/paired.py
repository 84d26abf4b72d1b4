"""Differences of paired runs: a claim only where the interval excludes 0."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its 95 % interval, by Student's t."""

    mean: float
    low: float
    high: float

    @property
    def claim(self) -> str:
        """What may be said of the first of the two.

        >>> Difference(0.1, -0.1, 0.3).claim
        'no difference shown'
        """
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"

    def __str__(self) -> str:
        return f"{self.mean:+.5f} [{self.low:+.5f}, {self.high:+.5f}]"


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of `values` and half the width of its interval, infinite for fewer than two."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.inf
    factor = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return mean, factor * statistics.stdev(values) / math.sqrt(len(values))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Of `first - second`, value by value: the same seed in both, so what the seed does to both cancels.

    >>> paired_difference([0.90, 0.91, 0.92], [0.80, 0.82, 0.81]).claim
    'better'
    """
    mean, half = mean_interval([a - b for a, b in zip(first, second, strict=True)])
    return Difference(mean, mean - half, mean + half)
