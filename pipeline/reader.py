"""Batches of a rank, in the order of training, prepared ahead in threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from inspect import GEN_RUNNING, getgeneratorstate
from itertools import repeat

import numpy as np
import pyarrow as pa
import torch

from pipeline.batch import Batch, Block, Empty, Piece, assemble, without_the_rest
from pipeline.block import BlockBuilder, empty_block
from pipeline.buffers import Buffers, Memory
from pipeline.dataset import ParquetDataset
from pipeline.errors import DamagedError
from pipeline.files import ParquetFile, RowGroup
from pipeline.gaps import rows_left, spread
from pipeline.order import Part, Window, permutation, windows
from pipeline.prefetch import prefetch
from pipeline.rows import Place, RawRows
from pipeline.sampling import Sampler, Sampling

BATCHES_AHEAD = 4
LOST = "row group: cannot be read -> row dropped"
_NUMPY = {torch.int64: np.int64, torch.int32: np.int32, torch.float32: np.float32}
Prepared = tuple[Block, Counter[str]]


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
            raise ValueError(f"features {asking}: found something still to be learnt; call pipeline.learn.learn first")
        self.dataset = dataset
        self.batch_size = batch_size
        self.mended: Counter[str] = Counter()
        """What the schema's policies mended on this rank, in the batches handed out so far."""
        self.damaged: dict[tuple[str, int], str] = {}
        """(file, row group) -> why it cannot be read; met on this rank so far, and set aside."""
        self._rank = rank
        self._world_size = world_size
        self._shuffle = shuffle
        self._seed = seed
        self._window_rows = window_rows
        self._threads = threads
        self._pin = pin
        self._groups = dataset.files.row_groups
        self._sizes = [group.num_rows for group in self._groups]
        self._sampler: Sampler | None = None
        if sampling is not None:
            assert shuffle, "rows are left out of whole windows"
            self._sampler = Sampler(dataset, sampling, seed)
            self._sizes = self._sampler.sizes
        self.num_rows = sum(self._sizes)
        """Rows of an epoch."""

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
        calls, overdue = self._blocks(epoch, part, Memory(Buffers(), Buffers())), self.dataset.files.watch.overdue
        blocks = prefetch(calls, self._threads, self._threads, overdue)
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

    def _blocks(self, epoch: int, part: Part, memory: Memory) -> Iterator[Callable[[], Prepared]]:
        """What to call for each block of this rank's rows, in order."""
        for window in windows(self._sizes, self._window_rows, self._seed, epoch, self._shuffle):
            if window.start >= part.end:
                return
            if not self._shuffle and window.num_rows > 2 * self._window_rows and len(window.row_groups) == 1:
                yield from self._streamed(self._groups[window.row_groups[0]], window.start, part, memory)
            elif slices := part.slices(window.start, window.start + window.num_rows):
                yield partial(self._decoded, window, epoch, slices, memory)

    def _decoded(self, window: Window, epoch: int, slices: list[slice], memory: Memory) -> Prepared:
        """Decode the row groups of a window and make this rank's rows of it a block."""
        order = permutation(window, self._seed, epoch, self._shuffle)
        rows = order[slices[0]] if len(slices) == 1 else np.concatenate([order[here] for here in slices])
        lost: set[int] = set()
        while True:
            try:
                return self._together(window.row_groups, lost, epoch, rows, memory)
            except DamagedError as error:
                self._set_aside(error)
                there = (error.file, error.row_group)
                groups = ((number, self._groups[number]) for number in window.row_groups)
                lost |= {number for number, group in groups if (self._file(group).path, group.index) == there}

    def _together(
        self, numbers: Sequence[int], lost: set[int], epoch: int, rows: np.ndarray, memory: Memory
    ) -> Prepared:
        """A block of rows counted through what an epoch has of the row groups; those of lost ones are gaps."""
        if lost:
            present, rows = rows_left([self._sizes[number] for number in numbers], {*map(numbers.index, lost)}, rows)
            if not len(rows):
                return self._gap(len(present))
        left = [number for number in numbers if number not in lost]
        places, reads = [], []
        with ExitStack() as stack:
            for group in (self._groups[number] for number in left):
                file = self._file(group)
                places.append(Place(file.path, group.index, group.first_row, group.num_rows))
                reads.append(self.dataset.decoder.open(file, group.index, group.num_rows, stack))
            raw = RawRows(places, reads, None)
            if self._sampler is not None:
                raw.rows = self._sampler.choose(raw, left, epoch)[rows]
            elif self._shuffle or len(rows) < len(raw):
                raw.rows = rows
            block, mended = self._build(raw, memory)
        if lost:
            return spread(block, present), mended + Counter({LOST: int((~present).sum())})
        return block, mended

    def _streamed(self, group: RowGroup, start: int, part: Part, memory: Memory) -> Iterator[Callable[[], Prepared]]:
        """A giant row group, piece by piece, so that memory stays bounded; from a piece that is damaged on, a gap."""
        file, first_row, end = self._file(group), group.first_row, start + group.num_rows
        try:
            for piece in self.dataset.decoder.stream(file, group.index, self._window_rows):
                if slices := part.slices(start, start + len(piece)):
                    place = Place(file.path, group.index, first_row, len(piece))
                    rows = np.concatenate([np.arange(here.start, here.stop) for here in slices])
                    yield partial(self._piece, place, piece, rows, memory)
                start += len(piece)
                first_row += len(piece)
                if start >= part.end:
                    return
        except DamagedError as error:
            self._set_aside(error)
            rest = sum(here.stop - here.start for here in part.slices(start, end))
            yield partial(self._gap, rest)

    def _piece(self, place: Place, piece: pa.RecordBatch, rows: np.ndarray, memory: Memory) -> Prepared:
        columns = {name: [piece[name]] for name in piece.schema.names}
        try:
            everything = len(rows) == place.num_rows
            return self._build(RawRows([place], [columns.pop], None if everything else rows), memory)
        except DamagedError as error:
            self._set_aside(error)
            return self._gap(len(rows))

    def _gap(self, rows: int) -> Prepared:
        return spread(empty_block(self.dataset), np.zeros(rows, np.bool_)), Counter({LOST: rows})

    def _set_aside(self, error: DamagedError) -> None:
        """Remember a row group that counts for nothing; a prediction is not made up for rows that cannot be read."""
        if not (self.dataset.skips and self.dataset.labels):
            raise error
        self.damaged[error.file, error.row_group] = str(error)

    def _build(self, raw: RawRows, memory: Memory) -> Prepared:
        builder = BlockBuilder(self.dataset, raw, memory)
        block = builder.build()
        return block if self._sampler is None else self._sampler.weighed(block), builder.mended

    def _file(self, group: RowGroup) -> ParquetFile:
        return self.dataset.files.files[group.file]
