"""Down-sampling of training rows: which are kept is a function of (seed, epoch), and what is kept weighs more."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from pydantic import Field

from rankmixer.pipeline.base.errors import DamagedError, data_error
from rankmixer.pipeline.encode.numeric import to_numpy
from rankmixer.pipeline.encode.rows import RawRows
from rankmixer.pipeline.files.decode import Decoder
from rankmixer.pipeline.files.files import RowGroup
from rankmixer.pipeline.read.batch import Block
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.schema.features import Strict

THREADS = 8
_ROUNDING, _CHOICE = 1 << 32, 1 << 33  # keep the draws apart from each other, and from those of windows


class Sampling(Strict):
    """Train on a share of the rows, others in every epoch.

    A row that might have been left out weighs 1 / keep: the loss is in expectation that of all rows, and scores are
    calibrated without a correction.
    """

    keep: float = Field(gt=0, le=1, description="share of the rows that is kept")
    negatives_of: str | None = Field(
        None, description="a label: only rows in which it is 0 are left out; None: any row may be"
    )

    def factors(self, labels_KN: np.ndarray, tasks: list[str]) -> np.ndarray:
        """(N,) float32: what the weights of kept rows are multiplied by.

        >>> Sampling(keep=0.25, negatives_of="click").factors(np.array([[0.0, 1.0, 0.0]]), ["click"])
        array([4., 1., 4.], dtype=float32)
        """
        if self.negatives_of is None:
            return np.full(labels_KN.shape[1], 1 / self.keep, np.float32)
        is_negative = labels_KN[tasks.index(self.negatives_of)] == 0
        return np.where(is_negative, np.float32(1 / self.keep), np.float32(1))


class Sampler:
    """Chooses the rows of an epoch. How many a row group gives does not depend on the epoch: positions stay exact.

    Of n rows that may be left out, keep * n are kept, rounded up or down by a draw for each row group: small row groups
    lose nothing on the average.

    Args:
        dataset: with labels; with `negatives_of` that column of every row group is read once, here.
        sampling: what to keep.
        seed: of the draws.

    Raises:
        DataError: the label cannot be read. If the dataset skips, a row group that is damaged there gives all its rows.
        ValueError: no row is left.
    """

    def __init__(self, dataset: ParquetDataset, sampling: Sampling, seed: int) -> None:
        self._dataset = dataset
        self._sampling = sampling
        self._seed = seed
        self._column: str | None = None
        groups = dataset.files.row_groups
        candidates = [group.num_rows for group in groups]
        if sampling.negatives_of is not None:
            self._column = dataset.schema.labels[sampling.negatives_of].column
            with ThreadPoolExecutor(THREADS, thread_name_prefix="prefetch") as pool:
                candidates = list(pool.map(self._count, groups))
        self._candidates = candidates
        self._kept = [
            int(sampling.keep * count + self._generator(0, _ROUNDING, group).random())
            for group, count in enumerate(candidates)
        ]
        self.sizes = [
            group.num_rows - count + kept for group, count, kept in zip(groups, candidates, self._kept, strict=True)
        ]
        """Rows that each row group gives in every epoch."""
        self.may_leave_out = any(candidates)
        """Whether there is a row that might be left out."""
        if not any(self.sizes):
            rows = dataset.files.num_rows
            raise ValueError(f"data.sample: keep {sampling.keep} leaves none of {rows} rows; keep more")

    def choose(self, raw: RawRows, groups: Sequence[int], epoch: int) -> np.ndarray:
        """(N,) int64: which rows of these row groups an epoch has, ascending.

        Args:
            raw: all rows of the row groups.
            groups: their numbers.

        Raises:
            DataError: a row group has not as many candidates as it had at the start.
        """
        sizes = [self._dataset.files.row_groups[group].num_rows for group in groups]
        may_go = self._is_candidate(raw) if self._column is not None else np.ones(sum(sizes), np.bool_)
        for group, part in zip(groups, np.split(may_go, np.cumsum(sizes)[:-1]), strict=True):
            candidates = np.flatnonzero(part)
            if len(candidates) != self._candidates[group]:
                self._changed(self._dataset.files.row_groups[group], len(candidates), self._candidates[group])
            left_out = len(candidates) - self._kept[group]
            part[:] = False
            part[self._generator(epoch, _CHOICE, group).choice(candidates, left_out, replace=False)] = True
        return np.flatnonzero(~may_go)

    def weighed(self, block: Block) -> Block:
        """The block with the weights of kept rows."""
        factors_N = self._sampling.factors(block.labels_KN, self._dataset.schema.tasks)
        return replace(block, weights_N=block.weights_N * factors_N)

    def _is_candidate(self, raw: RawRows) -> np.ndarray:
        assert self._column is not None
        return raw.numbers(self._column) == 0

    def _count(self, group: RowGroup) -> int:
        assert self._column is not None
        file = self._dataset.files.files[group.file]
        decoder = Decoder([self._column], set(), self._dataset.files.watch)
        try:
            with ExitStack() as stack:
                read = decoder.open(file, group.index, group.num_rows, stack)
                return sum(int((to_numpy(chunk) == 0).sum()) for chunk in read(self._column))
        except DamagedError:
            if self._dataset.skips:
                return 0
            raise

    def _changed(self, group: RowGroup, found: int, expected: int) -> None:
        raise data_error(
            self._dataset.files.files[group.file].path,
            row_group=group.index,
            column=self._column,
            found=f"{found} rows in which it is 0",
            expected=f"{expected}, as when the run started",
            do="Leave the files of a run as they are, and start it again.",
        )

    def _generator(self, epoch: int, use: int, group: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, epoch], spawn_key=(use, group))))
