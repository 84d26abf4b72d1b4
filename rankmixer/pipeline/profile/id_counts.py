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

from dataclasses import dataclass, field

import numpy as np

from rankmixer.pipeline.profile.key_counts import Counts, KeySpace, counted, merged

CAPACITY = 131_072
BINS = 256  # of keys, for drift


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

    @property
    def known(self) -> Counts:
        """The heavy ids, with counts within a tenth; up to the capacity all ids."""
        if self.heavy is None:
            return self.sample
        # Which of equally heavy ids stay in the list depends on their keys, on which a stratum must not depend.
        return self.heavy.at((self.heavy.misses * 10 <= self.heavy.counts) & (self.heavy.counts > self.heavy.missed))

    def strata(self) -> tuple[Counts, Counts, float]:
        """The heavy ids; the other ids of the sample; for how many each of those stands.

        Heavy counts that may miss something are raised by as much as those miss whose exact counts the sample has.
        """
        heavy = self.known
        if self.is_exact:
            return heavy, heavy.at(slice(0)), 1.0
        _, here, there = np.intersect1d(heavy.keys, self.sample.keys, assume_unique=True, return_indices=True)
        light = self.sample.at(np.delete(np.arange(len(self.sample.keys)), there))
        late = heavy.misses[here] > 0
        found, exact = int(heavy.counts[here][late].sum()), int(self.sample.counts[there][late].sum())
        heavy = heavy._replace(
            counts=np.where(heavy.misses > 0, heavy.counts * (exact / max(found, 1) or 1.0), heavy.counts)
        )
        return heavy, light, (self.lookups - float(heavy.counts.sum())) / max(int(light.counts.sum()), 1)

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
        return rate, share, error * 2**0.5  # ids collide in pairs, so that half as many are independent
