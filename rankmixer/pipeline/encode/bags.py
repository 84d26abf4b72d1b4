"""Bags of ids, one a row: joined and gathered by whole columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
_CHUNK = 1 << 14  # rows whose temporaries stay in the cache


@dataclass(frozen=True)
class Bags:
    """Bag i holds values[offsets[i]:offsets[i + 1]]; without offsets every bag holds one value.

    Row i of the column has bag index[i]; without an index it has bag i. Values are signed integers, the ids, or float32
    weights.
    """

    values: np.ndarray
    offsets: np.ndarray | None = None
    index: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64: the values in each bag."""
        return np.ones(len(self), np.int64) if self.offsets is None else np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1


def join(parts: Sequence[Bags], empty: Empty = np.empty, dtype: np.dtype | None = None) -> Bags:
    """The rows of one part after those of the other.

    `empty` makes the array for the values; with a `dtype` they become of it.

    >>> join([Bags(np.array([5, 6]), np.array([0, 2])), Bags(np.array([7]), np.array([0, 1, 1]), np.array([1, 0]))])
    Bags(values=array([5, 6, 7]), offsets=array([0, 2, 3, 3]), index=array([0, 2, 1]))
    """
    dtype = dtype or np.result_type(*(part.values for part in parts))
    if len(parts) == 1 and parts[0].values.dtype == dtype:
        return parts[0]
    values = empty((sum(len(part.values) for part in parts),), dtype)
    np.concatenate([part.values for part in parts], out=values, casting="unsafe")
    offsets = index = None
    if parts[0].offsets is not None:
        shifts = np.cumsum([0] + [len(part.values) for part in parts])
        shifted = [part.offsets[1:] + shift for part, shift in zip(parts, shifts, strict=False)]  # type: ignore[index]
        offsets = np.concatenate([np.zeros(1, np.int64), *shifted])
    if any(part.index is not None for part in parts):
        shifts = np.cumsum([0] + [len(part) for part in parts])
        indices = [np.arange(len(part)) if part.index is None else part.index for part in parts]
        index = np.concatenate([index + shift for index, shift in zip(indices, shifts, strict=False)])
    return Bags(values, offsets, index)


def take(bags: Bags, rows: np.ndarray | None, empty: Empty = np.empty) -> Bags:
    """The bags of these rows in this order, without an index; None stands for all rows as they are.

    `empty` makes the arrays for values and offsets.

    >>> take(Bags(np.array([5, 6, 7]), np.array([0, 2, 2, 3])), np.array([2, 1, 0, 2]))
    Bags(values=array([7, 5, 6, 7]), offsets=array([0, 1, 1, 3, 4]), index=None)
    """
    if bags.index is not None:
        rows = bags.index if rows is None else bags.index.take(rows)
    if rows is None:
        return bags
    if bags.offsets is None:
        values = empty((len(rows),), bags.values.dtype)
        return Bags(np.take(bags.values, rows, out=values, mode="clip"))  # "raise" would copy `out`
    lengths = bags.lengths.take(rows)
    offsets = empty((len(rows) + 1,), np.dtype(np.int64))
    offsets[0] = 0
    np.cumsum(lengths, out=offsets[1:])
    shifts = bags.offsets.take(rows) - offsets[:-1]
    values = empty((int(offsets[-1]),), bags.values.dtype)
    for start in range(0, len(rows), _CHUNK):
        stop = min(start + _CHUNK, len(rows))
        chunk = slice(offsets[start], offsets[stop])
        places = np.repeat(shifts[start:stop], lengths[start:stop])
        places += np.arange(chunk.start, chunk.stop)
        np.take(bags.values, places, out=values[chunk], mode="clip")
    return Bags(values, offsets)


def scatter(parts: Sequence[Bags], places: np.ndarray, dtype: np.dtype, empty: Empty = np.empty) -> Bags:
    """All bags of all parts, that of row i (counted through the parts) at places[i]; values become `dtype`.

    Reading in order and writing out of order is faster than `take`, which does the reverse, and the parts need no join.

    >>> parts = [Bags(np.array([5, 6]), np.array([0, 2])), Bags(np.array([7]), np.array([0, 1]))]
    >>> scatter(parts, np.array([1, 0]), np.dtype(np.int8))
    Bags(values=array([7, 5, 6], dtype=int8), offsets=array([0, 1, 3]), index=None)
    """
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = empty((len(places) + 1,), np.dtype(np.int64))
    offsets[0] = 0
    offsets[1:][places] = lengths
    np.cumsum(offsets, out=offsets)
    begins = offsets.take(places)
    values = empty((int(offsets[-1]),), dtype)
    ramp = np.empty(0, np.int64)
    row = 0
    for part in parts:
        assert part.offsets is not None
        for start in range(0, len(part), _CHUNK):
            stop = min(start + _CHUNK, len(part))
            rows = slice(row, row + stop - start)
            chunk = slice(part.offsets[start], part.offsets[stop])
            if len(ramp) < chunk.stop - chunk.start:
                ramp = np.arange(2 * (chunk.stop - chunk.start))
            to = np.repeat(begins[rows] - (part.offsets[start:stop] - chunk.start), lengths[rows])
            to += ramp[: len(to)]
            values[to] = part.values[chunk].astype(dtype, copy=False)
            row = rows.stop
    return Bags(values, offsets)


def keep(bags: Bags, kept: np.ndarray) -> Bags:
    """Only the values where `kept` (a mask of them) is true; the bags get shorter.

    >>> keep(Bags(np.array([5, 6, 7])), np.array([True, False, True]))
    Bags(values=array([5, 7]), offsets=array([0, 1, 1, 2]), index=None)
    """
    assert bags.index is None
    before = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept, out=before[1:])
    return Bags(bags.values[kept], before if bags.offsets is None else before.take(bags.offsets))


def within(offsets: np.ndarray, most: int, end: Literal["last", "first"]) -> np.ndarray | None:
    """A mask of the values that stand among the `most` last or first of their bag; None if all do.

    >>> within(np.array([0, 3, 4]), 2, "last")
    array([False,  True,  True,  True])
    """
    excess = np.diff(offsets) - most
    long = np.flatnonzero(excess > 0)
    if not long.size:
        return None
    # What goes is one piece of each long bag: 1 where it begins, -1 where it ends.
    begins = offsets[long] if end == "last" else offsets[long] + most
    edges = np.zeros(int(offsets[-1]) + 1, np.int8)
    edges[begins] += 1
    edges[begins + excess[long]] -= 1
    return np.cumsum(edges[:-1], dtype=np.int8) == 0
