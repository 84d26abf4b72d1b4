"""How far two profiles are apart, column by column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rankmixer.pipeline.profile.data_profile import DataProfile
from rankmixer.pipeline.profile.id_profile import IdProfile
from rankmixer.pipeline.profile.number_profile import LabelProfile, NumberProfile, departs, z_score

FAR = 0.1  # a Jensen-Shannon distance, or a share of lookups, from which on a column has drifted
SURE = 3.0  # times what chance alone would show
EDGES = 16  # quantiles between which numbers are compared


def drift(first: DataProfile, second: DataProfile) -> dict[str, Any]:
    """What has changed from `first` (read with `other=second`) to `second`; docs/data.md explains the keys."""
    return {
        "ids": {name: _ids(first.ids[name], second.ids[name]) for name in first.ids},
        "numbers": {name: _numbers(first.numbers[name], second.numbers[name]) for name in first.numbers},
        "labels": {name: _labels(first.labels[name], second.labels[name]) for name in first.labels},
    }


def js_distance(first: np.ndarray, second: np.ndarray) -> tuple[float | None, float | None]:
    """Jensen-Shannon distance of two histograms, and what chance alone would show if nothing had changed.

    The distance is the root of the divergence in bits: 0 for equal shares, 1 where no bin is in both. By chance the
    divergence is about (bins - 1) / (8 ln 2) * (1 / n + 1 / m) for n and m independent draws. None without a draw.

    >>> js_distance(np.array([3, 3]), np.array([10, 10]))[0], js_distance(np.array([3, 0]), np.array([0, 9]))[0]
    (0.0, 1.0)
    """
    n, m = int(first.sum()), int(second.sum())
    if not n or not m:
        return None, None
    occupied = (first + second) > 0
    p, q = first[occupied] / n, second[occupied] / m
    middle = (p + q) / 2
    bits = 0.0
    for shares in (p, q):
        some = shares > 0
        bits += float(shares[some] @ np.log2(shares[some] / middle[some])) / 2
    chance = (int(occupied.sum()) - 1) / (8 * math.log(2)) * (1 / n + 1 / m)
    return math.sqrt(min(max(bits, 0.0), 1.0)), math.sqrt(chance)


def _far(distance: float | None, chance: float | None) -> bool:
    return distance is not None and chance is not None and distance > max(FAR, SURE * chance)


def _ids(first: IdProfile, second: IdProfile) -> dict[str, Any]:
    distance, chance = js_distance(first.counts.bins, second.counts.bins)
    unseen = error = None
    if second.counts.lookups:
        assert first.watch is not None
        heavy, light, _ = second.counts.strata()
        seen_nowhere = (first.watch.unseen(stratum.keys) for stratum in (heavy, light))
        unseen, error = second.counts.share(*seen_nowhere)
    return {
        "js_distance": distance,
        "js_by_chance": chance,
        "unseen": unseen,
        "unseen_error": error,
        "drifted": _far(distance, chance) or (unseen is not None and unseen > FAR + SURE * (error or 0.0)),
    }


def _numbers(first: NumberProfile, second: NumberProfile) -> dict[str, Any]:
    one, two = first.sample, second.sample
    finite = one[np.isfinite(one)]
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, EDGES), method="inverted_cdf")) if len(finite) else finite
    distance, chance = js_distance(_histogram(one, edges), _histogram(two, edges))
    a, b = first.moments, second.moments
    shift = (b.mean - a.mean) / a.std if a.count and b.count and a.std > 0 else math.nan
    return {
        "js_distance": distance,
        "js_by_chance": chance,
        "mean_shift": shift if math.isfinite(shift) else None,
        "drifted": _far(distance, chance),
    }


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts below, at and between the edges; the last is of what is null or NaN."""
    bins = np.searchsorted(edges, values, side="left") + np.searchsorted(edges, values, side="right")
    bins[np.isnan(values)] = 2 * len(edges) + 1
    return np.bincount(bins, minlength=2 * len(edges) + 2)


def _labels(first: LabelProfile, second: LabelProfile) -> dict[str, Any]:
    rows = first.rows + second.rows
    z = 0.0
    if first.rows and second.rows:
        variance = (first.variance * first.rows + second.variance * second.rows) / rows
        z = z_score(second.rate - first.rate, variance * (1 / first.rows + 1 / second.rows))
    return {
        "rate": first.rate if first.rows else None,
        "against": second.rate if second.rows else None,
        "z": z,
        "drifted": departs(second.rate, first.rate, z),
    }
