"""Batches of a rank, in the order of training, prepared ahead in threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from functools import partial
from inspect import GEN_RUNNING, getgeneratorstate
from itertools import repeat

import numpy as np
import torch

from rankmixer.pipeline.base.prefetch import prefetch
from rankmixer.pipeline.read.batch import Batch, Empty, Piece, assemble, without_the_rest
from rankmixer.pipeline.read.block import empty_block
from rankmixer.pipeline.read.blocks import BlockReader
from rankmixer.pipeline.read.buffers import Buffers
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.order import Part
from rankmixer.pipeline.read.sampling import Sampler, Sampling

BATCHES_AHEAD = 4
_NUMPY = {torch.int64: np.int64, torch.int32: np.int32, torch.float32: np.float32}


class BatchReader:
    """Reads a rank's part of every batch; all ranks take the same number of steps.

    The order of the rows depends on the files, seed, epoch and `window_rows` alone; the position (epoch, row) therefore
    means the same for any number of ranks and threads.

    Args:
        dataset: what to read.
        batch_size: G, of all ranks together.
        rank: which part of every batch is read here.
        world_size: how many parts there are.
        shuffle: permute row groups, then rows inside windows; otherwise the order of the files.
        seed: of the order.
        window_rows: rows of a window at least; without shuffling a giant row group is decoded in pieces of this size.
        threads: windows prepared at a time.
        pin: put batches into pinned memory.
        sampling: leave rows out; only with shuffle.

    Raises:
        ValueError: a batch size that the ranks do not divide, and other numbers that cannot be; no row is left.
    """

    def __init__(
        self,
        dataset: ParquetDataset,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        shuffle: bool = True,
        seed: int = 0,
        window_rows: int = 262_144,
        threads: int = 2,
        pin: bool = False,
        sampling: Sampling | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("world_size", world_size, 1),
            ("window_rows", window_rows, 1),
            ("threads", threads, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: found {value}; expected at least {least}")
        if batch_size % world_size:
            below, above = batch_size // world_size * world_size, -(-batch_size // world_size) * world_size
            near = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"batch_size: found {batch_size}, for all ranks together; expected a multiple of the "
                f"{world_size} ranks, such as {near}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: found {rank}; expected 0 to {world_size - 1}")
        if dataset.schema.to_learn:
            asking = ", ".join(dataset.schema.to_learn)
            raise ValueError(f"features {asking}: found something still to be learnt; call pipeline.learn first")
        self.dataset = dataset
        self.batch_size = batch_size
        self.mended: Counter[str] = Counter()
        """What the schema's policies mended on this rank, in the batches handed out so far."""
        self._rank = rank
        self._world_size = world_size
        self._threads = threads
        self._pin = pin
        assert shuffle or sampling is None, "rows are left out of whole windows"
        self._sampler = None if sampling is None else Sampler(dataset, sampling, seed)
        self._blocks = BlockReader(dataset, shuffle, seed, window_rows, self._sampler)
        self.damaged = self._blocks.damaged
        """(file, row group) -> why it cannot be read; met on this rank so far, and set aside."""
        self.num_rows = self._blocks.num_rows
        """Rows of an epoch."""

    @property
    def sampling_matters(self) -> bool:
        """False where `sampling` cannot leave out a row."""
        return self._sampler is None or self._sampler.may_leave_out

    def steps(self, row: int = 0) -> int:
        """Steps from `row` to the end of the epoch; the last may be partly padding."""
        return -(-(self.num_rows - row) // self.batch_size)

    def next_position(self, epoch: int, row: int, steps: int) -> tuple[int, int]:
        """(epoch, row) after `steps` steps of an epoch that began at `row`."""
        row += steps * self.batch_size
        return (epoch, row) if row < self.num_rows else (epoch + 1, 0)

    def epoch(self, epoch: int = 0, row: int = 0, steps: int | None = None) -> Generator[Batch, None, None]:
        """The batches of an epoch from `row` on, all or the first `steps`; closing the iterator stops its threads.

        Raises:
            ValueError: at once, for a position outside the epoch.
            DataError: in place of the batch that holds the value.
        """
        if not 0 <= row < self.num_rows:
            raise ValueError(
                f"row: found {row}; expected a position from 0 to {self.num_rows - 1}, the rows of the data"
            )
        most = self.steps(row)
        if steps is not None and not 0 <= steps <= most:
            raise ValueError(f"steps: found {steps}; expected at most the {most} that are left in the epoch")
        steps = most if steps is None else steps
        end = min(row + steps * self.batch_size, self.num_rows)
        return self._ahead(epoch, Part(row, end, steps, self.batch_size, self._rank, self._world_size))

    def _ahead(self, epoch: int, part: Part) -> Generator[Batch, None, None]:
        batches = self._batches(epoch, part)
        calls = repeat(partial(next, batches), part.steps)
        ahead = prefetch(calls, 1, BATCHES_AHEAD, self.dataset.files.watch.overdue)
        try:
            for batch, mended in ahead:
                self.mended.update(mended)
                yield batch
        finally:
            ahead.close()
            if getgeneratorstate(batches) != GEN_RUNNING:  # in a thread that waits for a read which will not end
                batches.close()

    def _batches(self, epoch: int, part: Part) -> Generator[tuple[Batch, Counter[str]], None, None]:
        schema, memory = self.dataset.schema, Buffers()
        overdue = self.dataset.files.watch.overdue
        blocks = prefetch(self._blocks.calls(epoch, part), self._threads, self._threads, overdue)
        block, at = empty_block(self.dataset), 0
        try:
            for step in range(part.steps):
                pieces: list[Piece] = []
                mended: Counter[str] = Counter()
                wanted = part.rows(step)
                while wanted:
                    if at == len(block):
                        if pieces:
                            pieces[-1] = without_the_rest(*pieces[-1])
                        del block  # before another one is begun, which finds its memory free
                        block, news = next(blocks)
                        mended += news
                        at = 0
                    stop = min(at + wanted, len(block))
                    pieces.append((block, at, stop))
                    wanted -= stop - at
                    at = stop
                yield (
                    assemble(
                        schema.sparse_features,
                        pieces or [(block, at, at)],
                        part.local,
                        schema.is_weighted,
                        self._empty(memory),
                    ),
                    mended,
                )
        finally:
            blocks.close()

    def _empty(self, memory: Buffers) -> Empty:
        """Makes the tensors of a batch: of memory that is used again, pinned by torch or our own."""
        if self._pin:
            return partial(torch.empty, pin_memory=True)
        arena = memory.arena()
        return lambda shape, *, dtype: torch.from_numpy(arena.empty(shape, _NUMPY[dtype]))
