"""Batches of a rank, in the order of training, prepared ahead in threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import repeat

import numpy as np

from pipeline.batch import Batch, Block, Piece, assemble
from pipeline.block import BlockBuilder, empty_block
from pipeline.buffers import Buffers
from pipeline.dataset import ParquetDataset
from pipeline.decode import Read
from pipeline.files import ParquetFile, RowGroup
from pipeline.order import Part, Window, permutation, windows
from pipeline.prefetch import prefetch
from pipeline.rows import Place, RawRows

BATCHES_AHEAD = 4
Prepared = tuple[Block, Counter[str]]


class BatchReader:
    """Reads a rank's part of every batch; all ranks take the same number of steps.

    The order of the rows depends on the files, seed, epoch and `window_rows` alone; the position (epoch, row) therefore
    means the same for any number of ranks and threads.

    Args:
        dataset: what to read.
        batch_size: G, of all ranks together.
        rank, world_size: which part of every batch is read here.
        shuffle: permute row groups, then rows inside windows; otherwise the order of the files.
        seed: of the order.
        window_rows: rows of a window at least; without shuffling a giant row group is decoded in pieces of this size.
        threads: windows prepared at a time.
        pin: put batches into pinned memory.

    Raises:
        ValueError: a batch size that the ranks do not divide, and other numbers that cannot be.
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
        self.num_rows = dataset.files.num_rows
        self.mended: Counter[str] = Counter()
        """What the schema's policies mended on this rank, in the batches handed out so far."""
        self._rank = rank
        self._world_size = world_size
        self._shuffle = shuffle
        self._seed = seed
        self._window_rows = window_rows
        self._threads = threads
        self._pin = pin
        self._groups = dataset.files.row_groups

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
        ahead = prefetch(repeat(partial(next, batches), part.steps), threads=1, ahead=BATCHES_AHEAD)
        try:
            for batch, mended in ahead:
                self.mended.update(mended)
                yield batch
        finally:
            ahead.close()
            batches.close()

    def _batches(self, epoch: int, part: Part) -> Generator[tuple[Batch, Counter[str]], None, None]:
        schema, buffers = self.dataset.schema, Buffers()
        blocks = prefetch(self._blocks(epoch, part, buffers), self._threads, ahead=self._threads)
        block, at = empty_block(self.dataset), 0
        try:
            for step in range(part.steps):
                pieces: list[Piece] = [(block, at, at)]
                mended: Counter[str] = Counter()
                finished: list[Block] = []
                wanted = part.rows(step)
                while wanted:
                    if at == len(block):
                        finished.append(block)
                        block, news = next(blocks)
                        mended += news
                        at = 0
                    stop = min(at + wanted, len(block))
                    pieces.append((block, at, stop))
                    wanted -= stop - at
                    at = stop
                batch = assemble(schema.sparse_features, pieces, part.local, schema.is_weighted)
                for spent in finished:
                    buffers.give_back(spent.memory)
                yield batch.pin_memory() if self._pin else batch, mended
        finally:
            blocks.close()

    def _blocks(self, epoch: int, part: Part, buffers: Buffers) -> Iterator[Callable[[], Prepared]]:
        """What to call for each block of this rank's rows, in order."""
        sizes = [group.num_rows for group in self._groups]
        for window in windows(sizes, self._window_rows, self._seed, epoch, self._shuffle):
            if window.start >= part.end:
                return
            if not self._shuffle and window.num_rows > 2 * self._window_rows and len(window.row_groups) == 1:
                yield from self._streamed(self._groups[window.row_groups[0]], window.start, part, buffers)
            elif slices := part.slices(window.start, window.start + window.num_rows):
                yield partial(self._decoded, window, epoch, slices, buffers)

    def _decoded(self, window: Window, epoch: int, slices: list[slice], buffers: Buffers) -> Prepared:
        """Decode the row groups of a window and make this rank's rows of it a block."""
        order = permutation(window, self._seed, epoch, self._shuffle)
        places, reads = [], []
        with ExitStack() as stack:
            for group in (self._groups[number] for number in window.row_groups):
                file = self._file(group)
                places.append(Place(file.path, group.index, group.first_row, group.num_rows))
                reads.append(self.dataset.decoder.open(file, group.index, group.num_rows, stack))
            return self._build(places, reads, np.concatenate([order[here] for here in slices]), buffers)

    def _streamed(self, group: RowGroup, start: int, part: Part, buffers: Buffers) -> Iterator[Callable[[], Prepared]]:
        """A giant row group, piece by piece, so that memory stays bounded."""
        file, first_row = self._file(group), group.first_row
        for piece in self.dataset.decoder.stream(file, group.index, self._window_rows):
            if slices := part.slices(start, start + len(piece)):
                place = Place(file.path, group.index, first_row, len(piece))
                columns = {name: [piece[name]] for name in piece.schema.names}
                rows = np.concatenate([np.arange(here.start, here.stop) for here in slices])
                yield partial(self._build, [place], [columns.pop], rows, buffers)
            start += len(piece)
            first_row += len(piece)
            if start >= part.end:
                return

    def _build(self, places: list[Place], reads: list[Read], rows: np.ndarray, buffers: Buffers) -> Prepared:
        everything = not self._shuffle and len(rows) == sum(place.num_rows for place in places)
        builder = BlockBuilder(self.dataset, RawRows(places, reads, None if everything else rows), buffers)
        return builder.build(), builder.mended

    def _file(self, group: RowGroup) -> ParquetFile:
        return self.dataset.files.files[group.file]
