"""How often every id occurs, in bounded memory: exactly up to `CAPACITY` ids, beyond it by a sample and the heaviest.

Every id has a key, spread evenly over the whole numbers below `KeySpace.size` because it comes from a hash. Beyond
`CAPACITY` distinct ids two lists of that length are kept, and both merge:

- the sample: the ids with the smallest keys, each with its exact count, for it was there from its first occurrence on.
  With the key `limit` where it ends it gives the number of distinct ids with a standard error of 1 / sqrt(CAPACITY)
  (Bar-Yossef and others, "Counting distinct elements in a data stream", 2002: bottom-k).
- the heaviest: Space-Saving (Metwally and others, 2005) by whole chunks. A count may miss what came before the id was
  noted, never more than lookups / CAPACITY, and nothing where the id was never driven out.

What is said of lookups needs both: under Zipf's law a sample of ids alone misses the few that hold most lookups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipeline.hashing import hash_integers

CAPACITY = 131_072
BINS = 256  # of keys, for drift
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


@dataclass
class IdCounts:
    """Counts of the ids of one feature or of one table; `add` merges what another has seen.

    >>> counts = IdCounts(KeySpace(10))
    >>> counts.add_keys(np.array([4, 9, 4]))
    >>> counts.lookups, counts.distinct, counts.is_exact
    (3, 2.0, True)
    >>> counts.share_of_top(1), counts.ids_to_cover(0.9)
    (0.6666666666666666, 2)
    """

    space: KeySpace
    capacity: int = CAPACITY
    lookups: int = 0
    sample: Counts = field(default_factory=lambda: counted(np.empty(0, np.int64)))
    heavy: Counts | None = None
    bins: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def __post_init__(self) -> None:
        self.limit = self.space.size  # all ids with a smaller key are in the sample

    def add_keys(self, keys: np.ndarray, times: np.ndarray | None = None) -> None:
        """Add lookups of ids by their keys."""
        part = IdCounts(self.space, self.capacity, sample=counted(keys, times))
        part.lookups = int(part.sample.counts.sum())
        bins = part.sample.keys // (self.space.size // BINS + 1)
        part.bins = np.bincount(bins, part.sample.counts, BINS).astype(np.int64)
        self.add(part)

    def add(self, other: IdCounts) -> None:
        """Add all that `other`, of an equal space, has counted."""
        self.lookups += other.lookups
        self.bins = self.bins + other.bins
        limit = min(self.limit, other.limit)
        parts = [part.sample.at(slice(np.searchsorted(part.sample.keys, limit))) for part in (self, other)]
        sample = merged(parts)
        if len(sample.keys) > self.capacity or self.heavy is not None or other.heavy is not None:
            both = merged([part.sample if part.heavy is None else part.heavy for part in (self, other)])
            self.heavy = both.heaviest(self.capacity)
        if len(sample.keys) > self.capacity:
            limit = int(sample.keys[self.capacity])
            sample = sample.at(slice(self.capacity))
        self.sample, self.limit = sample, limit

    @property
    def is_exact(self) -> bool:
        return self.heavy is None

    @property
    def sampled(self) -> float:
        """The share of all ids that is in the sample."""
        return self.limit / self.space.size

    @property
    def distinct(self) -> float:
        """Distinct ids, with a relative standard error of `distinct_error`."""
        return len(self.sample.keys) / self.sampled

    @property
    def distinct_error(self) -> float:
        return 0.0 if self.is_exact else len(self.sample.keys) ** -0.5

    @property
    def top_error(self) -> float:
        """What the share of one id may miss at most."""
        return 0.0 if self.heavy is None else self.heavy.missed / self.lookups

    def strata(self) -> tuple[Counts, Counts, float]:
        """Ids whose counts are known within a tenth; the other ids of the sample; for how many each of those stands."""
        if self.heavy is None:
            return self.sample, self.sample.at(slice(0)), 1.0
        # Which of equally heavy ids stay in the list depends on their keys, on which a stratum must not depend.
        heavy = self.heavy.at((self.heavy.misses * 10 <= self.heavy.counts) & (self.heavy.counts > self.heavy.missed))
        light = self.sample.at(~np.isin(self.sample.keys, heavy.keys))
        rest = self.lookups - int(heavy.counts.sum())
        return heavy, light, rest / max(int(light.counts.sum()), 1)

    def share(self, known: np.ndarray, of_light: np.ndarray) -> tuple[float, float]:
        """The share of lookups whose ids have a property, and its standard error.

        Args:
            known: (N,) for each heavy id of `strata`: 1 if it has it, 0 if not, or how likely.
            of_light: (M,) bool for each light id.
        """
        heavy, light, scale = self.strata()
        ratio = float(light.counts @ of_light) / max(int(light.counts.sum()), 1)
        spread = np.sqrt(((light.counts * (of_light - ratio)) ** 2).sum() * (1 - self.sampled))
        guessed = np.sqrt((heavy.counts**2 * known * (1 - known)).sum())
        lookups = max(self.lookups, 1)
        share = (float(heavy.counts @ known) + scale * float(light.counts @ of_light)) / lookups
        return share, float(np.hypot(scale * spread, guessed)) / lookups

    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        """From the heaviest id on: how many ids, and how many lookups they have; both begin with 0."""
        heavy, light, scale = self.strata()
        counts = np.concatenate([heavy.counts, light.counts])
        weights = np.repeat([1.0, scale], [len(heavy.counts), len(light.counts)])
        order = np.argsort(-counts, kind="stable")
        counts, weights = counts[order], weights[order]
        return np.append(0.0, np.cumsum(weights)), np.append(0.0, np.cumsum(weights * counts))

    def share_of_top(self, ids: int) -> float | None:
        """The share of lookups that the `ids` heaviest take; None without lookups."""
        number, lookups = self._curve()
        return float(np.interp(ids, number, lookups)) / self.lookups if self.lookups else None

    def ids_to_cover(self, share: float) -> int | None:
        """How many ids, the heaviest first, it takes to cover this share of the lookups; None without lookups."""
        number, lookups = self._curve()
        if not self.lookups:
            return None
        at = int(np.searchsorted(lookups, share * self.lookups * (1 - 1e-12)))
        return round(float(number[min(at, len(number) - 1)]))

    def colliding(self) -> tuple[float, float, float] | None:
        """Shares of ids and of lookups whose bucket another id has too, and the standard error of the latter.

        Measured in the buckets that are wholly in the sample; a heavy id elsewhere is taken to collide as often as
        ids do. None where there is no such bucket, or no id.
        """
        whole = self.limit if self.is_exact else self.limit // self.space.per_bucket * self.space.per_bucket
        inside = self.sample.at(slice(np.searchsorted(self.sample.keys, whole)))
        if self.space.buckets is None or not len(inside.keys):
            return None
        _, inverse, ids = np.unique(self.space.buckets_of(inside.keys), return_inverse=True, return_counts=True)
        shares = ids[inverse] > 1
        heavy, light, _ = self.strata()
        rate = float(shares.mean())
        known, of_light = np.full(len(heavy.keys), rate), np.full(len(light.keys), rate)
        for stratum, values in ((heavy, known), (light, of_light)):
            _, here, there = np.intersect1d(stratum.keys, inside.keys, assume_unique=True, return_indices=True)
            values[here] = shares[there]
        share, error = self.share(known, of_light)
        return rate, share, error
