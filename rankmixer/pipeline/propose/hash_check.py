"""How many lookups would share a row if counted values were hashed, and buckets and a seed for which few do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rankmixer.pipeline.encode.hashing import hash_integers, hash_strings, into_buckets
from rankmixer.pipeline.schema.table_size import suggest_buckets

SMALL = 0.05  # a share of lookups that is small enough
SEEDS = 8
TABLE_BYTES = 1 << 28  # a table is not grown beyond this for the sake of fewer collisions


@dataclass(frozen=True)
class Hashed:
    """Buckets and seed, the share of lookups whose value shares its bucket with another, and what chance would give."""

    buckets: int
    seed: int
    shared: float
    expected: float


def choose_hash(values: pa.Array, counts: np.ndarray, distinct: int, lookups: int, dim: int) -> Hashed:
    """The fewest buckets, from four a value on, and the best of some seeds, for which a small share of lookups collide.

    Where a table of TABLE_BYTES does not suffice, the share is what it is.

    Args:
        values: (N,) the most frequent values, integers or strings.
        counts: (N,) how often each occurs.
        distinct: all different values, N or more.
        lookups: how often all of them occur.
    """
    buckets = suggest_buckets(distinct)
    while True:
        best = min((shared(values, counts, distinct, lookups, buckets, seed) for seed in range(SEEDS)), key=_share)
        if best.shared <= SMALL or 2 * buckets * dim * 4 > TABLE_BYTES:
            return best
        buckets *= 2


def shared(values: pa.Array, counts: np.ndarray, distinct: int, lookups: int, buckets: int, seed: int) -> Hashed:
    """Hash the values as training will. Values beyond those given are taken to collide as chance has it.

    >>> found = shared(pa.array(["mobile", "desktop", "tablet"]), np.array([5, 3, 2]), 3, 10, buckets=16, seed=0)
    >>> found.shared  # desktop and tablet share a bucket
    0.5
    """
    hashes = hash_integers(values.to_numpy(), seed) if pa.types.is_integer(values.type) else hash_strings(values, seed)
    bucket_N = into_buckets(hashes, buckets).astype(np.int64)
    _, place_N, held = np.unique(bucket_N, return_inverse=True, return_counts=True)
    given = float(counts[held[place_N] > 1].sum())
    free = float(counts.sum()) - given
    by_tail = 1 - (1 - 1 / buckets) ** max(distinct - len(values), 0)
    expected = 1 - (1 - 1 / buckets) ** max(distinct - 1, 0)
    tail = lookups - float(counts.sum())
    return Hashed(buckets, seed, (given + free * by_tail + tail * expected) / lookups, expected)


def _share(hashed: Hashed) -> float:
    return hashed.shared
