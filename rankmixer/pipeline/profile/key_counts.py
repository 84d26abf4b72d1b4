"""Keys of ids, and lists of counts by key that merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rankmixer.pipeline.encode.hashing import hash_integers

WIDE = 1 << 62  # ids that are hashes stay below this, so that they are positive int64


@dataclass(frozen=True)
class KeySpace:
    """Keys of ids. With `buckets` they are sorted by the bucket, so that a sample holds whole buckets.

    Args:
        buckets: those of the feature's hash; None for ids that are row numbers.

    >>> space = KeySpace(buckets=10)
    >>> wide_ids = np.array([7, 17, 3])  # the hash modulo `wide`, which is a multiple of `buckets`
    >>> space.buckets_of(space.keys(wide_ids))
    array([7, 7, 3])
    """

    buckets: int | None = None

    @property
    def per_bucket(self) -> int:
        return WIDE // (self.buckets or 1)

    @property
    def size(self) -> int:
        """Keys are below this; so are the ids of a feature whose `buckets` are set to it."""
        return self.per_bucket * (self.buckets or 1)

    def keys(self, ids: np.ndarray) -> np.ndarray:
        """(N,) int64 -> (N,) int64, one to one."""
        if self.buckets is None:
            return (hash_integers(ids) >> np.uint64(2)).view(np.int64)
        quotients = ids // self.buckets
        return (ids - quotients * self.buckets) * self.per_bucket + quotients

    def buckets_of(self, keys: np.ndarray) -> np.ndarray:
        return keys // self.per_bucket


class Counts(NamedTuple):
    """Keys in increasing order, their counts, and how much each count may miss; an absent id may have `missed`."""

    keys: np.ndarray
    counts: np.ndarray
    misses: np.ndarray
    missed: int = 0

    def at(self, chosen: np.ndarray | slice) -> Counts:
        return Counts(self.keys[chosen], self.counts[chosen], self.misses[chosen], self.missed)

    def heaviest(self, most: int) -> Counts:
        """At most so many, by what each may have at most, then by the key; the heaviest of the others is `missed`."""
        if len(self.keys) <= most:
            return self
        bounds, rank = self.counts + self.misses, len(self.keys) - most
        missed, least = np.partition(bounds, [rank - 1, rank])[rank - 1 : rank + 1]
        chosen = bounds > least
        chosen[np.flatnonzero(bounds == least)[: most - np.count_nonzero(chosen)]] = True
        return self.at(chosen)._replace(missed=max(self.missed, int(missed)))


def counted(keys: np.ndarray, times: np.ndarray | None = None) -> Counts:
    """Count keys, each once or so many times.

    >>> counted(np.array([5, 3, 5]), np.array([1, 2, 4]))[:2]
    (array([3, 5]), array([2, 5]))
    """
    if times is None:
        keys, counts = np.unique(keys, return_counts=True)
    else:
        keys, inverse = np.unique(keys[times > 0], return_inverse=True)
        counts = np.bincount(inverse, times[times > 0], len(keys)).astype(np.int64)
    return Counts(keys, counts, np.zeros_like(counts))


def merged(parts: Sequence[Counts]) -> Counts:
    """The sums; where a part lacks an id, its count there may be what the part has missed."""
    keys = np.concatenate([part.keys for part in parts])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    known = np.concatenate([part.missed - part.misses for part in parts])
    counts, known = (
        np.add.reduceat(values[order], starts) if len(keys) else values
        for values in (np.concatenate([part.counts for part in parts]), known)
    )
    missed = sum(part.missed for part in parts)
    return Counts(keys[starts], counts, missed - known, missed)
