"""Which rows of a table train, which evaluate and which test: drawn at random, or by time."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from rankmixer.pipeline.encode.time_parts import NO_TIME, microseconds

PARTS = ("train", "validation", "test")  # eight tenths, a tenth, a tenth
SAMPLE = 1 << 18


class RandomSplit:
    """Of each ten rows that follow one another, one evaluates and one tests; which ones is drawn.

    >>> split = RandomSplit()
    >>> parts = np.concatenate([split.parts(pa.record_batch({"x": [0] * rows})) for rows in (3, 17)])
    >>> np.bincount(parts[:10]).tolist(), np.bincount(parts[10:]).tolist()
    ([8, 1, 1], [8, 1, 1])
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._ahead = np.empty(0, np.int8)

    def parts(self, batch: pa.RecordBatch) -> np.ndarray:
        """(N,) int8: the index in PARTS of each row of the batches in their order."""
        tens = -(-max(len(batch) - len(self._ahead), 0) // 10)
        order = np.repeat(np.array([[0] * 8 + [1, 2]], np.int8), tens, axis=0)
        drawn = np.concatenate([self._ahead, self._random.permuted(order, axis=1).ravel()])
        parts, self._ahead = drawn[: len(batch)], drawn[len(batch) :]
        return parts


class TimeSplit:
    """The newest tenth of the rows tests, the tenth before it evaluates; rows without a time train.

    Where the tenths begin is exact for up to 262,144 rows; of more it is that of so many, drawn at random.

    Args:
        column: timestamps, dates, or integers that count the time since 1970 in `unit`.
        times: all rows of it, in pieces.

    Raises:
        ValueError: fewer than three different times, or nearly all rows at one.
    """

    def __init__(self, column: str, unit: str | None, times: Iterable[pa.Array]) -> None:
        self._column, self._unit = column, unit
        random = np.random.default_rng(0)
        keys, kept = np.empty(0), np.empty(0, np.int64)
        for piece in times:
            micros, _ = microseconds(piece, unit)
            micros = micros[micros != NO_TIME]
            keys, kept = np.concatenate([keys, random.random(len(micros))]), np.concatenate([kept, micros])
            if len(keys) > SAMPLE:
                least = np.argpartition(keys, SAMPLE)[:SAMPLE]
                keys, kept = keys[least], kept[least]
        ordered = np.sort(kept)
        self._evaluates, self._tests = ordered[len(ordered) * 8 // 10], ordered[len(ordered) * 9 // 10]
        if not ordered[0] < self._evaluates < self._tests:
            raise ValueError(
                f"column {column!r} does not tell old rows from new: too many have the same time; leave out --time"
            )

    def parts(self, batch: pa.RecordBatch) -> np.ndarray:
        """(N,) int8: the index in PARTS of each row."""
        micros, _ = microseconds(batch[self._column], self._unit)
        return ((micros >= self._evaluates).astype(np.int8) + (micros >= self._tests)).astype(np.int8)

    @property
    def boundaries(self) -> tuple[str, str]:
        """When the rows that evaluate begin, and those that test."""
        first, second = (np.datetime64(int(at), "us").astype("datetime64[s]") for at in (self._evaluates, self._tests))
        return str(first).replace("T", " "), str(second).replace("T", " ")
