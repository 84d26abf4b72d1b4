"""What the schema leaves to the training rows: quantiles, and the mean and standard deviation to standardise with.

One pass over the columns concerned, in bounded memory, whose result depends on the files alone: not on threads, nor on
the number of ranks. Up to `MOST_ROWS` rows all are read; of more, row groups chosen by the hash of their number, for a
mean is as good from millions as from billions. Quantiles are exact for up to `SAMPLE` values; of more they are those of
the `SAMPLE` values whose row numbers have the smallest hashes, which is a random sample without replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from rankmixer.pipeline.base.errors import DamagedError
from rankmixer.pipeline.base.prefetch import prefetch
from rankmixer.pipeline.encode.hashing import hash_integers
from rankmixer.pipeline.encode.numeric import wanted
from rankmixer.pipeline.encode.rows import Place, RawRows, shown
from rankmixer.pipeline.encode.time_parts import ages
from rankmixer.pipeline.files.files import ParquetFiles, RowGroup
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.schema.features import Ids, Number, Time
from rankmixer.pipeline.schema.schema import Schema

MOST_ROWS = 1 << 24
SAMPLE = 1 << 18  # a boundary's share of rows then has a standard error of 0.1 percentage points at most
PIECE_ROWS = 1 << 17
THREADS = 2


def learn(
    schema: Schema,
    files: ParquetFiles | str | Sequence[str],
    *,
    most_rows: int = MOST_ROWS,
    sample: int = SAMPLE,
    **opening: Any,
) -> Schema:
    """The schema with numbers in place of all that it leaves to be learnt, and what kind of values is hashed.

    Args:
        files: the training files, or the paths, globs, directories or URLs to open.
        most_rows: read about so many rows at most, in whole row groups.
        sample: values that quantiles are taken of.
        opening: how files are opened, as ParquetDataset takes it. If it skips, damaged row groups are left out.

    Raises:
        ValueError: a feature with fewer than two different values, of which nothing can be learnt.
        DataError: a value that could not be trained on either.
    """
    hashed = {name: f for name, f in schema.features.items() if isinstance(f, Ids) and f.hashes and f.values is None}
    if not schema.to_learn and not hashed:
        return schema
    features = dict(schema.features)
    if hashed:
        dataset = ParquetDataset(files, Schema(features=hashed, labels=schema.labels), labels=False, **opening)
        files = dataset.files
        features |= dataset.schema_as_hashed().features
    if schema.to_learn:
        features |= _learnt(schema, files, most_rows, sample, opening)
    return Schema(features=features, labels=schema.labels, weight=schema.weight)


def _learnt(
    schema: Schema, files: ParquetFiles | str | Sequence[str], most_rows: int, sample: int, opening: dict[str, Any]
) -> dict[str, Number | Time]:
    """The features of which something was to be learnt, with it."""
    asked = Schema(features=dict(schema.to_learn), labels=schema.labels)
    dataset = ParquetDataset(files, asked, labels=False, **opening)
    summaries: dict[str, _Summary] = {name: _summary(feature, sample) for name, feature in schema.to_learn.items()}
    calls = (
        partial(_summarise, dataset, group, first_row, sample)
        for group, first_row in _chosen(dataset.files.row_groups, most_rows)
    )
    for found in prefetch(calls, THREADS, THREADS, dataset.files.watch.overdue):
        for name, summary in summaries.items():
            summary.merge(found[name])
    learnt = {}
    for name, feature in schema.to_learn.items():
        try:
            learnt[name] = feature.model_copy(update=summaries[name].learnt(feature))
        except ValueError as error:
            raise ValueError(f"features.{name}: cannot learn from {dataset.files.num_rows} rows: {error}") from None
    return learnt


class _Summary:
    """What is kept of the values seen so far."""

    def __init__(self) -> None:
        self.count, self.least, self.most = 0, np.inf, -np.inf

    def add(self, values: np.ndarray, rows: np.ndarray) -> None:
        """Take up (N,) float64, and the numbers of their rows."""
        if len(values):
            self.count += len(values)
            self.least, self.most = min(self.least, values.min()), max(self.most, values.max())

    def merge(self, other: Any) -> None:
        """Take up what another one has seen, as if it came after."""
        self.count += other.count
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def learnt(self, feature: Number | Time) -> dict[str, Any]:
        """The keys of the feature that are now known."""
        if self.least >= self.most:
            found = f"only the value {float(self.least)!r}" if self.count else "no value"
            raise ValueError(f"found {found}; expected two or more different ones; remove the feature")
        return {}


class _Moments(_Summary):
    """Mean and sum of squared deviations, put together as Chan, Golub and LeVeque do: no digits are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = self.squares = 0.0

    def add(self, values: np.ndarray, rows: np.ndarray) -> None:
        if len(values):
            mean = float(values.mean())
            with np.errstate(over="ignore"):  # infinite squares are refused in the end
                squares = float(np.square(values - mean).sum())
            self._join(len(values), mean, squares)
        super().add(values, rows)

    def merge(self, other: Any) -> None:
        self._join(other.count, other.mean, other.squares)
        super().merge(other)

    def _join(self, count: int, mean: float, squares: float) -> None:
        total = max(self.count + count, 1)
        difference = mean - self.mean
        self.mean += difference * count / total
        self.squares += squares + difference * difference * self.count * count / total

    def learnt(self, feature: Number | Time) -> dict[str, Any]:
        super().learnt(feature)
        std = (self.squares / self.count) ** 0.5
        if not 0 < std < np.inf:
            raise ValueError(f"found numbers from {self.least:g} to {self.most:g}, which cannot be squared; scale them")
        return {"standardise": (self.mean, std)}


class _Sample(_Summary):
    """The values whose row numbers have the smallest hashes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self.keys, self.values = np.empty(0, np.uint64), np.empty(0)

    def add(self, values: np.ndarray, rows: np.ndarray) -> None:
        super().add(values, rows)
        self._keep_least(hash_integers(rows), values)

    def merge(self, other: Any) -> None:
        super().merge(other)
        self._keep_least(other.keys, other.values)

    def _keep_least(self, keys: np.ndarray, values: np.ndarray) -> None:
        self.keys, self.values = np.concatenate([self.keys, keys]), np.concatenate([self.values, values])
        if len(self.keys) > self._size:
            kept = np.argpartition(self.keys, self._size)[: self._size]
            self.keys, self.values = self.keys[kept], self.values[kept]

    def learnt(self, feature: Number | Time) -> dict[str, Any]:
        super().learnt(feature)
        assert feature.quantiles is not None
        ordered = np.sort(self.values)
        ranks = np.arange(1, feature.quantiles) * len(ordered) // feature.quantiles
        # A value that fills several buckets gets one; a boundary at the least value would leave the bucket below empty.
        boundaries = np.unique(ordered[ranks])
        boundaries = boundaries[boundaries > ordered[0]]
        if not len(boundaries):  # more than all but one bucket's worth of rows have the least value
            boundaries = ordered[ordered > ordered[0]][:1] if ordered[-1] > ordered[0] else np.array([self.most])
        return {"boundaries": tuple(boundaries.tolist()), "quantiles": None}


def _summary(feature: Number | Time, sample: int) -> _Summary:
    return _Moments() if feature.quantiles is None else _Sample(sample)


def _chosen(groups: Sequence[RowGroup], most_rows: int) -> list[tuple[RowGroup, int]]:
    """Row groups of about `most_rows` rows together, with the number of their first row, in their order."""
    sizes = np.array([group.num_rows for group in groups])
    order = np.argsort(hash_integers(np.arange(len(groups))))
    before = np.cumsum(sizes[order]) - sizes[order]
    chosen = np.sort(order[before < most_rows])
    first_rows = np.cumsum(sizes) - sizes
    return [(groups[number], int(first_rows[number])) for number in chosen]


def _summarise(dataset: ParquetDataset, group: RowGroup, first_row: int, sample: int) -> dict[str, _Summary]:
    """Read a row group piece by piece."""
    features = dataset.schema.to_learn
    summaries = {name: _summary(feature, sample) for name, feature in features.items()}
    file, at = dataset.files.files[group.file], 0
    try:
        for piece in dataset.decoder.stream(file, group.index, PIECE_ROWS):
            columns = {name: [piece[name]] for name in piece.schema.names}
            place = Place(file.path, group.index, group.first_row + at, len(piece))
            raw = RawRows([place], [columns.__getitem__], None)
            rows = np.arange(first_row + at, first_row + at + len(piece))
            for name, feature in features.items():
                summaries[name].add(*_values(raw, feature, rows))
            at += len(piece)
    except DamagedError:
        if not dataset.skips:
            raise
        return {name: _summary(feature, sample) for name, feature in features.items()}
    return summaries


def _values(raw: RawRows, feature: Number | Time, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is standardised or put into buckets, float64, and the numbers of the rows that have it."""
    if isinstance(feature, Time):
        ages_N, known_N = ages(raw, feature)
        return ages_N[known_N] / 1e6, rows[known_N]
    values = raw.numbers(feature.column).astype(np.float64)
    missing = np.isnan(values)
    if feature.default is not None:
        values[missing] = feature.default
    if feature.transform == "log1p":
        with np.errstate(all="ignore"):
            np.log1p(values, out=values)
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        row = int(wrong[0])
        expected, do = wanted(feature, bool(missing[row]))
        raise raw.error(row, feature.column, shown(raw.value(feature.column, row)), expected, do)
    return values, rows
