"""The order of an epoch's rows: a pure function of the row groups, the seed and the epoch.

Row groups are permuted, consecutive ones form windows of about `window_rows` rows, and rows are permuted inside
windows. Without shuffling the order is that of the files. Ranks, threads and batch size have no part in it: step s of
an epoch that began at `row` takes positions [row + s * G, row + (s + 1) * G), and rank r of W its slice of G / W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FILE_ORDER_ROWS = 32_768


class Window(NamedTuple):
    """Consecutive rows of an epoch's order: where they start, how many, and the row groups that hold them.

    The row groups are in file order: rows are permuted over the whole window, so theirs makes no difference.
    """

    number: int
    start: int
    num_rows: int
    row_groups: tuple[int, ...]


def windows(sizes: Sequence[int], window_rows: int, seed: int, epoch: int, shuffle: bool) -> list[Window]:
    """Cut an epoch into windows.

    Args:
        sizes: rows of each row group, in file order.
        window_rows: a window holds as nearly as many as whole row groups allow, and at least half of them, if the
            data does. Without shuffling no row has to meet another: windows are as small as pays, and a row group of
            more than twice as many rows stands alone.

    >>> windows([4, 4, 4], window_rows=7, seed=0, epoch=0, shuffle=False)
    [Window(number=0, start=0, num_rows=8, row_groups=(0, 1)), Window(number=1, start=8, num_rows=4, row_groups=(2,))]
    >>> windows([4, 4, 4], window_rows=9, seed=0, epoch=0, shuffle=True)
    [Window(number=0, start=0, num_rows=12, row_groups=(0, 1, 2))]
    """
    order = _generator(seed, epoch).permutation(len(sizes)) if shuffle else np.arange(len(sizes))
    enough = window_rows if shuffle else min(window_rows, FILE_ORDER_ROWS)
    contents: list[list[int]] = []
    held = 0
    for group in order.tolist():
        # Another row group only if that brings the window nearer to its size: memory is that of the largest one.
        is_full = 2 * held >= enough and 2 * held + sizes[group] > 2 * enough
        if not contents or is_full or (not shuffle and sizes[group] > 2 * window_rows):
            contents.append([])
            held = 0
        contents[-1].append(group)
        held += sizes[group]
    if shuffle and 2 * held < enough and len(contents) > 1:
        last = contents.pop()
        contents[-1] += last
    cut, start = [], 0
    for number, groups in enumerate(contents):
        num_rows = sum(sizes[group] for group in groups)
        cut.append(Window(number, start, num_rows, tuple(sorted(groups))))
        start += num_rows
    return cut


def permutation(window: Window, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """(N,) int64: the rows of the window (numbered through its row groups) in the order of the epoch."""
    if not shuffle:
        return np.arange(window.num_rows)
    return _generator(seed, epoch, window.number).permutation(window.num_rows)


class Part(NamedTuple):
    """The part of one rank in some steps of an epoch: step s takes `batch_size` positions from row + s * batch_size on.

    >>> part = Part(row=2, end=9, steps=2, batch_size=4, rank=1, world_size=2)  # batches at 2 and 6, the last not full
    >>> part.slices(start=0, stop=10), part.rows(step=0), part.rows(step=1)
    ([slice(4, 6, None), slice(8, 9, None)], 2, 1)
    """

    row: int
    end: int
    steps: int
    batch_size: int
    rank: int
    world_size: int

    @property
    def local(self) -> int:
        """Rows of this rank in a batch, padding included."""
        return self.batch_size // self.world_size

    def rows(self, step: int) -> int:
        """How many of them are rows of the data."""
        return max(0, min(self.local, self.end - self._begin(step)))

    def slices(self, start: int, stop: int) -> list[slice]:
        """Where this rank's rows lie between two positions, relative to the first; neighbours are joined."""
        stop = min(stop, self.end)
        slices: list[slice] = []
        for step in range(max(0, (start - self.row) // self.batch_size), self.steps):
            begin = self._begin(step)
            if begin >= stop:
                break
            if begin + self.local > start:
                here = slice(max(begin, start) - start, min(begin + self.local, stop) - start)
                if slices and slices[-1].stop == here.start:
                    here = slice(slices.pop().start, here.stop)
                slices.append(here)
        return slices

    def _begin(self, step: int) -> int:
        return self.row + step * self.batch_size + self.rank * self.local


def _generator(seed: int, epoch: int, *window: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch], spawn_key=window)))
