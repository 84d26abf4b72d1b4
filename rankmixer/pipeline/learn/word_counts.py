"""How often each value occurs, for more distinct values than fit into memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.encode.hashing import hash_integers, hash_strings

MEMORY_BYTES = 1 << 26  # merging them takes about four times as much
PARTS = 64
_ORDER = [("count", "descending"), ("value", "ascending")]
_BATCH = 1 << 12  # rows of each part that are Python objects at a time


class WordCounts:
    """Counts of values, all integers or all strings.

    Counts that outgrow the memory are spilled to files, parted by the hash of the value: at the end every part, a 64th
    of the distinct values, is summed and sorted by itself, and the sorted parts are merged as they are read.

    Args:
        folder: where to put files; whoever made it removes it.
        memory_bytes: of counts held in memory.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     counts = WordCounts(Path(folder))
    ...     counts.add(summed(pa.array(["b", "a", "c"]), np.array([2, 2, 1])))
    ...     counts.add(summed(pa.array(["c", "d"]), np.array([3, 1])))
    ...     list(counts.ordered(min_count=2)), (counts.distinct, counts.total)
    ([('c', 4), ('a', 2), ('b', 2)], (4, 9))
    """

    def __init__(self, folder: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._held: list[pa.Table] = []
        self._spilled: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self.total = 0
        """All occurrences."""
        self.distinct = 0
        """Different values; known once `ordered` has begun."""

    def add(self, counts: pa.Table) -> None:
        """Take up what `summed` has made of some values."""
        self.total += pc.sum(counts["count"]).as_py() or 0
        self._held.append(counts)
        if sum(table.nbytes for table in self._held) > self._memory_bytes:
            self._held = [_merged(self._held)]
            # Half full is as good as full: merging again and again would cost more than writing.
            if self._held[0].nbytes > self._memory_bytes / 2:
                self._spill()

    def ordered(self, min_count: int = 1) -> Iterator[tuple[int | str, int]]:
        """Values and their counts, the most frequent first, equally frequent ones by value.

        To be called once, or `heaviest`.
        """
        return heapq.merge(*map(_rows, self._parts(min_count)), key=lambda row: (-row[1], row[0]))

    def heaviest(self, most: int) -> pa.Table:
        """At most so many values and counts in the same order. To be called once, or `ordered`."""
        tables: list[pa.Table] = []
        for part in self._parts(1):
            tables.append(part.slice(0, most) if isinstance(part, pa.Table) else part.read_all().slice(0, most))
            if len(tables) > 1:
                tables = [pa.concat_tables(tables).sort_by(_ORDER).slice(0, most)]
        return tables[0] if tables else pa.table({"value": pa.array([], pa.int64()), "count": pa.array([], pa.int64())})

    def _parts(self, min_count: int) -> list[pa.Table] | list[pa.ipc.RecordBatchStreamReader]:
        if not self._spilled:
            return [self._sorted(self._held, min_count)] if self._held else []
        self._spill()
        return [self._sorted_file(part, min_count) for part in sorted(self._spilled)]

    def _spill(self) -> None:
        """Append what is held to the files of its parts."""
        if not self._held:
            return
        table = _merged(self._held).combine_chunks()
        values = table["value"].combine_chunks()
        hashes = hash_integers(values.to_numpy()) if pa.types.is_integer(values.type) else hash_strings(values)
        part_N = (hashes % np.uint64(PARTS)).astype(np.int64)
        table = table.take(pa.array(np.argsort(part_N, kind="stable")))
        ends = np.cumsum(np.bincount(part_N, minlength=PARTS))
        for part, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if stop > start:
                if part not in self._spilled:
                    self._spilled[part] = pa.ipc.new_stream(str(self._folder / f"part-{part}"), table.schema)
                self._spilled[part].write_table(table.slice(start, stop - start))
        self._held = []

    def _sorted_file(self, part: int, min_count: int) -> pa.ipc.RecordBatchStreamReader:
        self._spilled[part].close()
        path = self._folder / f"part-{part}"
        with pa.OSFile(str(path)) as file:
            table = self._sorted([pa.ipc.open_stream(file).read_all()], min_count)
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=_BATCH)
        return pa.ipc.open_stream(pa.OSFile(str(path)))

    def _sorted(self, tables: list[pa.Table], min_count: int) -> pa.Table:
        table = _merged(tables)
        self.distinct += len(table)
        table = table.filter(pc.greater_equal(table["count"], min_count))
        return table.sort_by(_ORDER)


def summed(values: pa.Array, counts: np.ndarray) -> pa.Table:
    """A table of `value` (int64 or large_string) and `count`, each value that occurs once.

    Args:
        values: (N,) integers or strings, without nulls.
        counts: (N,) how often each occurs; a value may stand several times, and occur 0 times.
    """
    wide = pa.int64() if pa.types.is_integer(values.type) else pa.large_string()
    return _merged(
        [pa.table({"value": values.cast(wide), "count": counts.astype(np.int64)}).filter(pc.field("count") > 0)]
    )


def _merged(tables: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(tables).group_by("value").aggregate([("count", "sum")])
    return table.rename_columns({"value": "value", "count_sum": "count"})


def _rows(batches: pa.Table | pa.ipc.RecordBatchStreamReader) -> Iterator[tuple[int | str, int]]:
    for batch in batches.to_batches(_BATCH) if isinstance(batches, pa.Table) else batches:
        yield from zip(batch["value"].to_pylist(), batch["count"].to_pylist(), strict=True)
