"""What a column of text holds, and as what type it is kept."""

import math
import re
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# What separates the elements of a list; with a blank behind it where the text has one.
SEPARATORS = ("|", ", ", "; ", ",", ";")
# Numbers with leading zeros or many digits are codes; they stay strings.
INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"
NUMBER = r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
ZONE = r"(Z|[+-][0-9]{2}:?[0-9]{2})$"
# Integers under such a name may count the time since 1970: from 2001 to 2096 in one of these units.
TIME_NAME = re.compile(r"time|stamp|date|(^|_)ts($|_)|_at$", re.IGNORECASE)
EPOCHS: dict[Literal["s", "ms", "us", "ns"], int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EARLIEST, _LATEST = (datetime(year, 1, 1, tzinfo=UTC) for year in (1900, 2200))
# Text that means null in a column of numbers or times.
NULL_WORDS = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "\\N", "-")
# Text that means 0 or 1 in a column of labels, in small letters.
TRUTH = {"0": 0, "1": 1, "false": 0, "true": 1, "f": 0, "t": 1, "no": 0, "yes": 1, "n": 0, "y": 1}
MAX_DISTINCT = 100_000  # values remembered per column; beyond, the count is a lower bound
MANY = 200  # from so many rows on a column that hardly repeats a value is told apart


class ColumnProfile:
    """Counts over all chunks of one column; memory is bounded by `MAX_DISTINCT` values.

    Attributes:
        is_label: set by who knows which columns are to be predicted; the column then holds 0 and 1.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_label = False
        self.rows = self.nulls = self.words = 0
        self.integers = self.numbers = True
        self.dates = self.local = self.zoned = True
        self.least, self.most = math.inf, -math.inf
        self.total = self.squares = 0.0
        self.values: set[str] = set()
        self.remembered = 0  # rows whose values are in `values`
        self.elements: dict[str, set[str]] = {separator: set() for separator in SEPARATORS}
        self.separated = dict.fromkeys(SEPARATORS, 0)  # values that hold the separator
        self.occurrences = dict.fromkeys(SEPARATORS, 0)  # elements when split at it

    def update(self, chunk: pa.Array) -> None:
        """Add a chunk of strings; null is null."""
        self.rows += len(chunk)
        self.nulls += chunk.null_count
        counted = pc.value_counts(chunk.drop_null())
        values, counts = counted.field("values"), counted.field("counts")
        self._update_text(values, counts)
        is_word = pc.is_in(values, pa.array(NULL_WORDS))
        self.words += pc.sum(counts.filter(is_word)).as_py() or 0
        values, counts = values.filter(pc.invert(is_word)), counts.filter(pc.invert(is_word))
        if self.numbers:
            self._update_numbers(values, counts)
        self.dates = self.dates and _are_times(values, DATE, pa.timestamp("us"))
        self.local = self.local and _are_times(values, f"{DATE}|{TIME}$", pa.timestamp("us"))
        self.zoned = self.zoned and _are_times(values, TIME + ZONE, pa.timestamp("us", "UTC"))

    def _update_text(self, values: pa.Array, counts: pa.Array) -> None:
        if len(self.values) < MAX_DISTINCT:
            self.values.update(values.to_pylist())
            self.remembered += pc.sum(counts).as_py() or 0
        for separator in SEPARATORS:
            elements = pc.add(pc.count_substring(values, separator), 1)
            self.occurrences[separator] += pc.sum(pc.multiply(elements, counts)).as_py() or 0
            self.separated[separator] += pc.sum(counts.filter(pc.greater(elements, 1))).as_py() or 0
            if self.separated[separator] and len(self.elements[separator]) < MAX_DISTINCT:
                self.elements[separator].update(pc.split_pattern(values, separator).flatten().to_pylist())

    def _update_numbers(self, values: pa.Array, counts: pa.Array) -> None:
        self.numbers = pc.all(pc.match_substring_regex(values, NUMBER), min_count=0).as_py()
        self.integers = self.integers and pc.all(pc.match_substring_regex(values, INTEGER), min_count=0).as_py()
        if self.numbers and len(values):
            floats = pc.cast(values, pa.float64())
            bounds = pc.min_max(floats)
            self.least = min(self.least, bounds["min"].as_py())
            self.most = max(self.most, bounds["max"].as_py())
            self.total += pc.sum(pc.multiply(floats, counts)).as_py()
            self.squares += pc.sum(pc.multiply(pc.multiply(floats, floats), counts)).as_py()

    @property
    def known(self) -> int:
        """Rows with a number, if it is a column of numbers; or with a time."""
        return self.rows - self.nulls - self.words

    @property
    def is_number(self) -> bool:
        return self.numbers and self.known > 0

    @property
    def is_time(self) -> bool:
        """Dates, points in time, or integers that count them."""
        return (self.known > 0 and (self.dates or self.local or self.zoned)) or self.unit is not None

    @property
    def unit(self) -> Literal["s", "ms", "us", "ns"] | None:
        """Of a column of integers that count the time since 1970."""
        if self.is_number and self.integers and TIME_NAME.search(self.name):
            for unit, per_second in EPOCHS.items():
                if 1e9 * per_second <= self.least and self.most < 4e9 * per_second:
                    return unit
        return None

    @property
    def constant(self) -> str | None:
        """The value that every row has."""
        return next(iter(self.values)) if len(self.values) == 1 and not self.nulls else None

    @property
    def hardly_repeats(self) -> bool:
        """Whether nearly every row has a value of its own, so that nothing can be learnt of it."""
        return self.remembered >= MANY and len(self.values) >= 0.95 * self.remembered

    @property
    def truths(self) -> set[int] | None:
        """What the values are as labels; None if they are no labels."""
        if self.is_number and not self.words:
            found = {float(value) for value in self.values}
            return {int(value) for value in found} if found <= {0.0, 1.0} else None
        words = {value.lower() for value in self.values}
        return {TRUTH[word] for word in words} if words and words <= set(TRUTH) else None

    @property
    def type(self) -> pa.DataType:
        """The type in the Parquet file."""
        if self.is_label:
            return pa.int8()
        if self.is_number:
            return pa.int64() if self.integers else pa.float64()
        if self.is_time:
            return pa.date32() if self.dates else pa.timestamp("us", "UTC" if self.zoned else None)
        return pa.string()

    @property
    def separator(self) -> str | None:
        """The separator of a column of lists: in a tenth of the values at least, with elements that recur.

        Prose has commas too, but as many different pieces as values.
        """
        likely = max(SEPARATORS, key=lambda separator: self.separated[separator])
        often = self.separated[likely] * 10 >= max(self.rows - self.nulls, 1)
        recur = len(self.elements[likely]) * 2 <= self.occurrences[likely]
        is_prose = likely != "|" and len(self.elements[likely]) > len(self.values)
        return likely if not self.is_number and often and recur and not is_prose else None


def as_type(chunk: pa.Array, type_: pa.DataType) -> pa.Array:
    """A chunk of strings in the type of its column; int8 is that of labels.

    Raises:
        pa.ArrowInvalid: a value that the type does not have.

    >>> as_type(pa.array(["1.5", "NA", None]), pa.float64()).to_pylist()
    [1.5, None, None]
    >>> as_type(pa.array(["Yes", "no", "1.0"]), pa.int8()).to_pylist()
    [1, 0, 1]
    """
    if type_ == pa.string():
        return chunk
    if type_ == pa.int8():
        chunk = pc.utf8_lower(chunk)
        indices = pc.index_in(chunk, pa.array(list(TRUTH)))
        truths = pa.array([str(truth) for truth in TRUTH.values()]).take(indices)
        labels = pc.cast(pc.coalesce(truths, chunk), pa.float64())  # a label may read 1.0
        if not pc.all(pc.is_in(labels.drop_null(), pa.array([0.0, 1.0])), min_count=0).as_py():
            raise pa.ArrowInvalid("a label is 0 or 1")
        return pc.cast(labels, type_)
    chunk = pc.if_else(pc.is_in(chunk, pa.array(NULL_WORDS)), None, chunk)
    return pc.cast(pc.cast(chunk, pa.timestamp("us")), type_) if type_ == pa.date32() else pc.cast(chunk, type_)


def suggest_buckets(distinct: int) -> int:
    """Four buckets an id at least, a power of two: then about a fifth of the ids or fewer share one.

    For one in a hundred it would take a hundred buckets an id.

    >>> suggest_buckets(1000)
    4096
    """
    return 1 << max(4 * distinct - 1, 15).bit_length()


def suggest_dim(distinct: int) -> int:
    """8 for up to 64 ids, 16 up to 65,536, then their fourth root, as a multiple of 4.

    The fourth root is a rule of thumb of the TensorFlow team ("Introducing TensorFlow Feature Columns", 2017).

    >>> [suggest_dim(ids) for ids in (2, 1000, 1_000_000, 100_000_000)]
    [8, 16, 32, 100]
    """
    return 8 if distinct <= 64 else max(16, math.ceil(distinct**0.25 / 4) * 4)


def _are_times(values: pa.Array, pattern: str, type_: pa.DataType) -> bool:
    """Whether all are times that there are, from 1900 to 2199."""
    if not pc.all(pc.match_substring_regex(values, pattern), min_count=0).as_py():
        return False
    try:
        times = pc.cast(values, type_).cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        return False
    micros_N = times.view(pa.int64()).to_numpy()
    least, most = (int(bound.timestamp()) * 10**6 for bound in (_EARLIEST, _LATEST))
    return bool(np.all((micros_N >= least) & (micros_N < most)))
