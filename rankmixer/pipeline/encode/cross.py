"""Crosses: ids of several features of a row -> one id, by hashing.

id = XXH64(8 little-endian bytes of each id, one after the other, in the order of `of`, seed) mod buckets
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankmixer.pipeline.encode.bags import Bags
from rankmixer.pipeline.encode.hashing import hash_rows, into_buckets
from rankmixer.pipeline.schema.features import Cross


def crossed(parts: Sequence[Bags], feature: Cross) -> Bags:
    """The bags of a cross: one id a row, none where a part has none.

    Args:
        parts: bags of at most one id, in the order of `feature.of`, without an index.

    >>> users, hours = Bags(np.array([3, 7]), np.array([0, 1, 1, 2])), Bags(np.array([23, 0, 0]))
    >>> crossed([users, hours], Cross(kind="cross", of=("user", "hour"), buckets=100, dim=4))
    Bags(values=array([33, 16], dtype=int32), offsets=array([0, 1, 1, 2]), index=None)
    """
    present_N = np.logical_and.reduce([part.lengths == 1 for part in parts])
    ids_NK = np.stack([_present(part, present_N) for part in parts], axis=1)
    hashes = into_buckets(hash_rows(ids_NK, feature.seed), feature.buckets)
    values = hashes.astype(np.int32 if feature.buckets <= np.iinfo(np.int32).max else np.int64)
    if present_N.all():
        return Bags(values)
    return Bags(values, np.concatenate([[0], np.cumsum(present_N)]))


def _present(part: Bags, present_N: np.ndarray) -> np.ndarray:
    """The ids of the rows where all parts have one."""
    rows = np.flatnonzero(present_N)
    return part.values.take(rows if part.offsets is None else part.offsets.take(rows))
