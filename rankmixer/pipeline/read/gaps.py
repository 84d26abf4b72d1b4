"""Rows that cannot be read keep their places in the order, and count for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rankmixer.pipeline.encode.bags import Bags
from rankmixer.pipeline.read.batch import Block


def rows_left(sizes: Sequence[int], lost: set[int], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are left when some row groups are lost, and their numbers among the rows of the other groups.

    Args:
        sizes: rows of each row group.
        lost: positions of the lost ones in `sizes`.
        rows: (N,) rows counted through all groups.

    Returns:
        (N,) bool, and one number for each row that is left.

    >>> rows_left([2, 3, 2], {1}, np.array([6, 3, 0]))
    (array([ True, False,  True]), array([3, 0]))
    """
    starts = np.cumsum([0, *sizes])
    groups = np.searchsorted(starts, rows, side="right") - 1
    is_lost = np.isin(np.arange(len(sizes)), list(lost))
    lost_before = np.cumsum([0, *np.where(is_lost, sizes, 0)])
    present = ~is_lost[groups]
    return present, (rows - lost_before[groups])[present]


def spread(block: Block, present: np.ndarray) -> Block:
    """The rows of a block where `present` is true; elsewhere empty bags, zeros and weight 0, and null keys."""

    def widened(array: np.ndarray) -> np.ndarray:
        wide = np.zeros((*array.shape[:-1], len(present)), array.dtype)
        wide[..., present] = array
        return wide

    bags = []
    for some in block.bags:
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(widened(some.lengths))])
        bags.append(Bags(some.values, offsets))
    keys = None
    if block.keys is not None:
        places = pa.array(np.cumsum(present) - 1, mask=~present)
        keys = block.keys.take(places)
    dense_FN, labels_KN, weights_N = (widened(array) for array in (block.dense_FN, block.labels_KN, block.weights_N))
    return Block(bags, block.bag_weights, dense_FN, labels_KN, weights_N, keys)
