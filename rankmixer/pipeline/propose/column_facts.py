"""What the columns of the training rows hold: how often each value occurs, and the mean and spread of numbers.

One pass over typed Arrow batches, a second over text that holds lists. Memory does not grow with the rows, nor, but
for KEEP values a column, with what is in them: counts that outgrow their share of memory are spilled to files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.encode.ids import split_lists
from rankmixer.pipeline.encode.numeric import to_numpy
from rankmixer.pipeline.encode.time_parts import NO_TIME, microseconds
from rankmixer.pipeline.learn.word_counts import MEMORY_BYTES, WordCounts, summed
from rankmixer.pipeline.profile.number_profile import Moments

KEEP = 1 << 20  # values of a column that are remembered, the most frequent
Batches = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
Unit = Literal["s", "ms", "us", "ns"]
# What separates the elements of a list; with a blank behind it where the text has one.
SEPARATORS = ("|", ", ", "; ", ",", ";")
# Integers under such a name may count the time since 1970: from 2001 to 2096 in one of these units.
TIME_NAME = re.compile(r"time|stamp|date|(^|_)ts($|_)|_at$", re.IGNORECASE)
EPOCHS: dict[Unit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@dataclass
class Column:
    """What is known of a column of the training rows.

    `values` are the different values, or elements of lists, the most frequent first, `counts` how often they occur;
    `distinct` is how many there are, `lookups` how often all occur. `moments` are of finite numbers, or of times in
    microseconds; beside them are `infinite` numbers, and `strange` times, not from 1900 to 2199. `wholes` are some
    values of text before it is split at the `separator`.
    """

    name: str
    type: pa.DataType
    rows: int = 0
    nulls: int = 0
    values: pa.Array = field(default_factory=lambda: pa.array([], pa.int64()))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    distinct: int = 0
    lookups: int = 0
    infinite: int = 0
    strange: int = 0
    moments: Moments = field(default_factory=Moments)
    separator: str | None = None
    wholes: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        return pa.types.is_floating(self.type) or pa.types.is_decimal(self.type)

    @property
    def is_integer(self) -> bool:
        return pa.types.is_integer(self.type)

    @property
    def is_list(self) -> bool:
        return is_list(self.type)

    @property
    def is_text(self) -> bool:
        return is_text(self.type)

    @property
    def unit(self) -> Unit | None:
        """Of a column of integers that count the time since 1970."""
        return epoch_unit(self.name, self.moments.least, self.moments.most) if self.is_integer else None

    @property
    def is_time(self) -> bool:
        """Dates, points in time, or integers that count them."""
        return pa.types.is_timestamp(self.type) or pa.types.is_date(self.type) or self.unit is not None

    @property
    def is_counted(self) -> bool:
        """Whether its values may be ids."""
        element = self.type.value_type if self.is_list else self.type
        return pa.types.is_integer(element) or is_text(element) or pa.types.is_boolean(self.type)

    @property
    def known(self) -> int:
        """Rows that are not empty."""
        return self.rows - self.nulls

    def set_counts(self, counts: WordCounts) -> None:
        table = counts.heaviest(KEEP)
        self.values, self.counts = table["value"].combine_chunks(), table["count"].to_numpy()
        self.distinct, self.lookups = counts.distinct, counts.total


def column_facts(batches: Batches, schema: pa.Schema, folder: Path) -> dict[str, Column]:
    """Read all columns of `schema` and say what they hold.

    Args:
        batches: gives the training rows, some columns of them; called twice where text holds lists.
        folder: where counts may be spilled; whoever made it removes it.
    """
    columns = {column.name: Column(column.name, column.type) for column in schema}
    _count(batches, columns, folder / "values")
    separated = {name: column for name, column in columns.items() if column.is_text and _separator(column)}
    for column in separated.values():
        column.separator, column.wholes = _separator(column), _some(column)
    for column in columns.values():
        column.wholes = column.wholes or _some(column)
    if separated:
        _count(batches, separated, folder / "elements")
    return columns


def epoch_unit(name: str, least: float, most: float) -> Unit | None:
    """The unit in which integers count the time since 1970, by their column's name and what they are between.

    >>> epoch_unit("created_at", 1717236000, 1719828000), epoch_unit("price", 1717236000, 1719828000)
    ('s', None)
    """
    if TIME_NAME.search(name):
        for unit, per_second in EPOCHS.items():
            if 1e9 * per_second <= least and most < 4e9 * per_second:
                return unit
    return None


def is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _count(batches: Batches, columns: Mapping[str, Column], folder: Path) -> None:
    counted = [name for name, column in columns.items() if column.is_counted]
    memory = max(MEMORY_BYTES // max(len(counted), 1), 1 << 20)
    counts = {}
    for number, name in enumerate(counted):
        (folder / str(number)).mkdir(parents=True)
        counts[name] = WordCounts(folder / str(number), memory)
    for batch in batches(list(columns)):
        for name, column in columns.items():
            array = batch[name]
            if name in counts:
                values = _values(array, column.separator)
                counts[name].add(summed(values, np.ones(len(values), np.int64)))
            if column.separator is None:
                column.rows += len(array)
                column.nulls += array.null_count
                _add_numbers(column, array)
    for name, count in counts.items():
        columns[name].set_counts(count)


def _add_numbers(column: Column, array: pa.Array) -> None:
    if column.is_integer or column.is_float:
        x_N = to_numpy(array).astype(np.float64)
        missing_N = np.isnan(x_N)
        finite_N = np.isfinite(x_N)
        column.nulls += int(missing_N.sum()) - array.null_count  # NaN is none either
        column.infinite += int((~finite_N & ~missing_N).sum())
        column.moments.add(x_N[finite_N])
    elif column.is_time:
        micros_N, strange_N = microseconds(array, None)
        column.strange += int(strange_N.sum())
        column.moments.add(micros_N[(micros_N != NO_TIME) & ~strange_N].astype(np.float64))


def _some(column: Column) -> tuple[str, ...]:
    return tuple(column.values.slice(0, 1000).to_pylist()) if column.is_text else ()


def _values(array: pa.Array, separator: str | None) -> pa.Array:
    """The ids in a column, as the encoder of a feature sees them, without nulls."""
    if is_list(array.type):
        array = split_lists(array)[1]
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if separator is not None:
        array = split_lists(pc.split_pattern(array, separator))[1]
        array = array.filter(pc.not_equal(array, ""))
    array = array.drop_null()
    if pa.types.is_uint64(array.type):
        array = array.view(pa.int64())  # as they are hashed
    return array


def _separator(column: Column) -> str | None:
    """The separator of a column of lists: in a tenth of the values at least, with elements that recur.

    Prose has commas too, but as many different pieces as values.
    """
    values, counts = column.values, column.counts
    best, most = "", 0
    for separator in SEPARATORS:
        holds = pc.match_substring(values, separator).to_numpy(zero_copy_only=False)
        if (rows := int(counts[holds].sum())) > most:
            best, most = separator, rows
    if not most or most * 10 < counts.sum():
        return None
    lists = pc.split_pattern(values, best)
    occurrences = int((pc.list_value_length(lists).to_numpy() * counts).sum())
    elements = pc.count_distinct(lists.flatten()).as_py()
    is_prose = best != "|" and elements > len(values)
    return best if elements * 2 <= occurrences and not is_prose else None
