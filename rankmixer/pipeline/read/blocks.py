"""The row groups of an epoch -> blocks of a rank's rows, in the order of training; what is damaged becomes gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import pyarrow as pa

from rankmixer.pipeline.base.errors import DamagedError
from rankmixer.pipeline.encode.rows import Place, RawRows
from rankmixer.pipeline.files.files import ParquetFile, RowGroup
from rankmixer.pipeline.read.batch import Block
from rankmixer.pipeline.read.block import BlockBuilder, empty_block
from rankmixer.pipeline.read.buffers import Buffers, Memory
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.gaps import rows_left, spread
from rankmixer.pipeline.read.order import Part, Window, permutation, windows
from rankmixer.pipeline.read.sampling import Sampler

LOST = "row group: cannot be read -> row dropped"
Prepared = tuple[Block, Counter[str]]


class BlockReader:
    """Makes blocks of whole windows, or of pieces of a giant row group.

    Args:
        dataset: what to read.
        shuffle, seed, window_rows: as of a BatchReader.
        sampler: which rows are left out, if any.
    """

    def __init__(
        self, dataset: ParquetDataset, shuffle: bool, seed: int, window_rows: int, sampler: Sampler | None
    ) -> None:
        self.dataset = dataset
        self.damaged: dict[tuple[str, int], str] = {}
        """(file, row group) -> why it cannot be read; met so far, and set aside."""
        self._shuffle = shuffle
        self._seed = seed
        self._window_rows = window_rows
        self._sampler = sampler
        self._groups = dataset.files.row_groups
        self._sizes = [group.num_rows for group in self._groups] if sampler is None else sampler.sizes
        self.num_rows = sum(self._sizes)
        """Rows of an epoch."""

    def calls(self, epoch: int, part: Part) -> Iterator[Callable[[], Prepared]]:
        """What to call for each block of this rank's rows, in order; in any threads."""
        memory = Memory(Buffers(), Buffers())
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
