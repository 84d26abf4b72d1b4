"""What labels and example weights must be, and which of them the footers of files already give away as wrong.

An evaluation file is read for the first time when an epoch has been trained. The footer says of a row group what is the
least and the largest value of a column, and how many are null: where that is wrong the column is read, to find the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.pipeline.base.errors import data_error
from rankmixer.pipeline.encode.numeric import to_numpy
from rankmixer.pipeline.encode.rows import shown
from rankmixer.pipeline.files.parquet_file import ParquetFile
from rankmixer.pipeline.read.dataset import ParquetDataset


class Limits(NamedTuple):
    """What the values of a column must be: finite, and from 0 to `highest`."""

    highest: float
    expected: str
    do: str

    def first_outside(self, values_N: np.ndarray) -> int | None:
        """The first row that is not; null counts as NaN. Values are compared as float32, which the model gets."""
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and refused
            values_N = values_N.astype(np.float32, copy=False)
        right_N = (values_N >= 0) & (values_N <= self.highest) & np.isfinite(values_N)  # False for NaN
        return None if right_N.all() else int(np.flatnonzero(~right_N)[0])


LABEL = Limits(1.0, "a label from 0 to 1", "Mend it or leave the row out.")
WEIGHT = Limits(
    float("inf"), "a finite weight of at least 0", "Mend it, or write weight 0 for rows that should not count."
)


def check_labels(dataset: ParquetDataset) -> None:
    """Refuse files whose footers, as far as they are at hand, say that a label or an example weight is wrong.

    Raises:
        DataError: file, row group, row and column, what was found, what was expected, what to do.
    """
    columns = {label.column: LABEL for label in dataset.schema.labels.values()}
    if dataset.schema.weight is not None:
        columns[dataset.schema.weight] = WEIGHT
    for file in dataset.files.files:
        metadata = file.footers.get(file.path)
        if metadata is not None:
            for group, column in _suspects(metadata, columns):
                _check(file, group, column, columns[column])


def _suspects(metadata: pq.FileMetaData, columns: dict[str, Limits]) -> Iterator[tuple[int, str]]:
    """Row groups and columns of which the statistics say that a value is null or beyond the limits."""
    names = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    places = {column: names.index(column) for column in columns if column in names}
    for group in range(metadata.num_row_groups):
        for column, place in places.items():
            if _is_suspect(metadata.row_group(group).column(place).statistics, columns[column].highest):
                yield group, column


def _is_suspect(statistics: Any, highest: float) -> bool:
    if statistics is None:
        return False
    if statistics.has_null_count and statistics.null_count:
        return True
    return bool(statistics.has_min_max and not (statistics.min >= 0 and statistics.max <= highest))


def _check(file: ParquetFile, group: int, column: str, limits: Limits) -> None:
    try:
        with closing(file.open()) as opened:
            values = opened.read_row_group(group, columns=[column])[column]
    except (OSError, pa.ArrowException):  # whoever trains on it says what is wrong
        return
    numbers_N = np.concatenate([to_numpy(chunk) for chunk in values.chunks]) if values.num_chunks else np.empty(0)
    row = limits.first_outside(numbers_N)
    if row is not None:
        raise data_error(
            file.path,
            row_group=group,
            row=sum(file.row_groups[:group]) + row,
            column=column,
            found=shown(values[row].as_py()),
            expected=limits.expected,
            do=limits.do,
        )
