"""What a column of numbers holds, and labels file by file, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rankmixer.pipeline.encode.hashing import hash_integers
from rankmixer.pipeline.encode.numeric import bucketed, dense, to_numpy
from rankmixer.pipeline.encode.rows import Place
from rankmixer.pipeline.schema.features import Number

SAMPLE = 131_072  # rows whose numbers are kept, for quantiles
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SURE_Z, DEPARTURE = 4.0, 0.1  # a rate departs if it is surely another one, and by a tenth of the whole's


def sampled_rows(first_row: int, num_rows: int, total_rows: int) -> np.ndarray:
    """(N,) bool: which of these rows are in the sample of about `SAMPLE`; all of them if there are no more.

    A row is in it or not by the hash of its number among all rows, whatever pieces they are read in.
    """
    if total_rows <= SAMPLE:
        return np.ones(num_rows, np.bool_)
    return hash_integers(np.arange(first_row, first_row + num_rows)) < np.uint64(SAMPLE * (1 << 64) // total_rows)


def rank_error(total_rows: int) -> float:
    """What quantiles may miss in rank with 99 % confidence, by the inequality of Dvoretzky, Kiefer and Wolfowitz."""
    return 0.0 if total_rows <= SAMPLE else math.sqrt(math.log(2 / 0.01) / (2 * SAMPLE))


@dataclass
class Moments:
    """Count, mean, deviation and bounds of finite numbers, added chunk by chunk without loss of digits.

    >>> moments = Moments()
    >>> moments.add(np.array([1.0, 2.0])); moments.add(np.array([6.0]))
    >>> moments.mean, moments.std
    (3.0, 2.160246899469287)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, values: np.ndarray) -> None:
        """Add (N,) finite float64; of two parts' means and squared deviations come those of both."""
        if not len(values):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is null in the JSON
            mean, count = values.mean(), self.count + len(values)
            shift = mean - self.mean
            squares = np.square(values - mean).sum() + shift**2 * self.count * len(values) / count
            self.squares += float(squares)
            self.mean += float(shift * len(values) / count)
        self.count = count
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def to_json(self) -> dict[str, float | None]:
        """min, max, mean and std; None without a number, or where it overflows."""
        values = {"min": self.least, "max": self.most, "mean": self.mean, "std": self.std}
        return {key: value if math.isfinite(value) and self.count else None for key, value in values.items()}


class FirstPlace:
    """Counts values that are wrong and remembers where the first is."""

    def __init__(self) -> None:
        self.count = 0
        self.first: dict[str, Any] | None = None

    def add(self, rows: np.ndarray, place: Place) -> None:
        """Add the row of each wrong value, counted from the beginning of the place, in order."""
        if len(rows) and self.first is None:
            row = place.first_row + int(rows[0])
            self.first = {"file": place.file, "row_group": place.row_group, "row": row}
        self.count += len(rows)

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "first": self.first}


class NumberProfile:
    """A column of numbers as it is, and for a `number` feature what the model gets of it.

    Without a feature it is the column of example weights.

    Args:
        column: its name.
        feature: how it is read.
        total_rows: of all files.
        is_to_learn: what the model gets of it is not known yet.
    """

    def __init__(self, column: str, feature: Number | None, total_rows: int, is_to_learn: bool = False) -> None:
        self.column = column
        self.nulls = self.nans = self.infinities = 0
        self.moments, self.inputs = Moments(), Moments()
        self.refused = FirstPlace()
        self._feature = feature
        self._is_to_learn = is_to_learn
        self._total_rows = total_rows
        self._sample: list[np.ndarray] = []
        self._buckets = np.zeros(len(feature.boundaries) + 1 if feature and feature.boundaries else 0, np.int64)

    @property
    def sample(self) -> np.ndarray:
        """Numbers of the sampled rows, NaN among them."""
        return np.concatenate([np.empty(0), *self._sample])

    def update(self, chunk: pa.Array, place: Place, sampled_N: np.ndarray) -> None:
        raw = to_numpy(chunk)
        values = raw.astype(np.float64, copy=False)
        finite = np.isfinite(values)
        self.nulls += chunk.null_count
        self.nans += int(np.isnan(values).sum()) - chunk.null_count
        self.infinities += int(np.isinf(values).sum())
        self.moments.add(values[finite])
        self._sample.append(values[sampled_N])
        if self._feature is None:
            self.refused.add(np.flatnonzero(~(finite & (values >= 0))), place)
            return
        if self._feature.default is not None:
            raw = np.where(np.isnan(values), raw.dtype.type(self._feature.default), raw)
        inputs = dense(raw, self._feature) if self._feature.is_dense and not self._is_to_learn else raw
        usable = np.isfinite(inputs)
        self.refused.add(np.flatnonzero(~usable), place)
        if self._is_to_learn:
            return
        if self._feature.boundaries is None:
            self.inputs.add(inputs[usable].astype(np.float64))
        else:
            self._buckets += np.bincount(
                bucketed(inputs[usable], self._feature.boundaries), minlength=self._buckets.size
            )

    def to_json(self) -> dict[str, Any]:
        sample = self.sample
        sample = sample[np.isfinite(sample)]
        quantiles = (
            np.quantile(sample, QUANTILES, method="inverted_cdf").tolist() if len(sample) else [None] * len(QUANTILES)
        )
        return {
            "column": self.column,
            "nulls": self.nulls,
            "nan": self.nans,
            "infinite": self.infinities,
            **self.moments.to_json(),
            "quantiles": {f"{share * 100:g}": value for share, value in zip(QUANTILES, quantiles, strict=True)},
            "quantile_rank_error": rank_error(self._total_rows),
            "input": self.inputs.to_json() if self.inputs.count else None,
            "bucket_shares": (self._buckets / max(self._buckets.sum(), 1)).tolist() or None,
            "refused": self.refused.to_json(),
        }


class LabelProfile:
    """The rate of a label, over all files and in each."""

    def __init__(self, column: str, files: Sequence[str]) -> None:
        self.column = column
        self.refused = FirstPlace()
        self._files = list(files)
        self._rows_N = np.zeros(len(files), np.int64)
        self._sums_N = np.zeros(len(files))
        self._squares = 0.0

    def update(self, chunk: pa.Array, place: Place, file: int) -> None:
        """Add rows of a file; a label outside [0, 1] is counted and left out."""
        values = to_numpy(chunk).astype(np.float64, copy=False)
        usable = (values >= 0) & (values <= 1)
        self.refused.add(np.flatnonzero(~usable), place)
        values = values[usable]
        self._rows_N[file] += len(values)
        self._sums_N[file] += values.sum()
        self._squares += float(values @ values)

    @property
    def rows(self) -> int:
        return int(self._rows_N.sum())

    @property
    def rate(self) -> float:
        return float(self._sums_N.sum()) / max(self.rows, 1)

    @property
    def variance(self) -> float:
        """Of one label: rate * (1 - rate) where labels are 0 or 1."""
        return max(self._squares / max(self.rows, 1) - self.rate**2, 0.0)

    def to_json(self) -> dict[str, Any]:
        files = []
        for path, rows, total in zip(self._files, self._rows_N.tolist(), self._sums_N.tolist(), strict=True):
            if rows:
                # The file is a part of the whole that it is compared with.
                z = z_score(total / rows - self.rate, self.variance * (1 / rows - 1 / self.rows))
                files.append(
                    {
                        "file": path,
                        "rows": rows,
                        "rate": total / rows,
                        "z": z,
                        "departs": departs(total / rows, self.rate, z),
                    }
                )
        return {
            "column": self.column,
            "rate": self.rate if self.rows else None,
            "refused": self.refused.to_json(),
            "files": files,
        }


def z_score(difference: float, variance: float) -> float:
    """How many standard deviations; 0 where there is nothing to tell apart."""
    return difference / math.sqrt(variance) if variance > 0 else 0.0


def departs(rate: float, whole: float, z: float) -> bool:
    """Whether a rate is surely another than the whole's, and by enough to matter."""
    return abs(z) > SURE_Z and abs(rate - whole) > DEPARTURE * whole
