"""What a column of text holds, and as what type it is kept."""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import column_text as text
from pipeline.column_fit import Fit, shorten
from pipeline.column_reading import TRUTH, Reading

# What separates the elements of a list; with a blank behind it where the text has one.
SEPARATORS = ("|", ", ", "; ", ",", ";")
# Integers under such a name may count the time since 1970: from 2001 to 2096 in one of these units.
TIME_NAME = re.compile(r"time|stamp|date|(^|_)ts($|_)|_at$", re.IGNORECASE)
# Whole numbers under such a name are codes, even where they are written as 7.0.
CODE_NAME = re.compile(r"(^|[^a-z])(id|ids|code|key|no|number|zip)($|[^a-z])|Id$|ID$", re.IGNORECASE)
EPOCHS: dict[Literal["s", "ms", "us", "ns"], int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
MAX_DISTINCT = 100_000  # values remembered per column; beyond, the count is a lower bound
MANY = 200  # from so many rows on a column that hardly repeats a value is told apart
_MICRO = pa.timestamp("us")
Kind = Literal["integer", "number", "date", "local", "zoned", "list", "text"]


class ColumnProfile:
    """Counts over all chunks of one column; memory is bounded by `MAX_DISTINCT` values.

    Args:
        missing, decimal, time_format: of CsvOptions.

    Attributes:
        is_label: set by who knows which columns are to be predicted; the column then holds 0 and 1.
        nulls: empty rows, and those with a word of `missing` or Hive's null.
    """

    def __init__(
        self, name: str, missing: tuple[str, ...] = (), decimal: str | None = None, time_format: str | None = None
    ) -> None:
        self.name = name
        self.is_label = False
        self.rows = self.nulls = 0
        self.least, self.most = math.inf, -math.inf
        self.mean = self._deviations = 0.0  # of numbers: the mean, and the sum of squared deviations from it
        self._numbers = 0
        self._told: dict[str, object] = {"missing": missing, "decimal": decimal, "time_format": time_format}
        types: dict[Kind, pa.DataType] = {
            "integer": pa.int64(),
            "number": pa.float64(),
            "date": pa.date32(),
            "local": _MICRO,
            "zoned": pa.timestamp("us", "UTC"),
            "list": pa.list_(pa.string()),
        }
        self.fits = {kind: Fit(self._reading(type_)) for kind, type_ in types.items()}
        self._text = self._reading(pa.string())
        self.text_missing: Counter[str] = Counter()
        self.null_words: Counter[str] = Counter()  # words that would be missing in a column of numbers
        self._units: dict[str, str] = {}  # signs of currencies and %, each with an example
        self._has_point = self._has_code = self._has_groups = self._has_phones = self._is_dotted = self._is_fine = False
        self._brackets: set[str] = set()
        self._longest = 0  # list in brackets
        self._elements: set[str] = set()
        self._never: Counter[str] = Counter()  # integers that stand for "never" in a column of epochs
        self._earliest, self._latest = math.inf, -math.inf  # the other integers
        self.values: set[str] = set()
        self.remembered = 0  # rows whose values are in `values`
        self.elements: dict[str, set[str]] = {separator: set() for separator in SEPARATORS}
        self.separated = dict.fromkeys(SEPARATORS, 0)  # values that hold the separator
        self.occurrences = dict.fromkeys(SEPARATORS, 0)  # elements when split at it

    def _reading(self, type_: pa.DataType, *, unit: str | None = None, is_epoch: bool = False) -> Reading:
        return Reading(type_, unit=unit, is_epoch=is_epoch, **self._told)  # type: ignore[arg-type]

    def update(self, chunk: pa.Array, where: Callable[[str], str] = lambda value: "a row") -> None:
        """Add a chunk of strings; null is null.

        Args:
            where: says for people where in the chunk a value stands first.
        """
        self.rows += len(chunk)
        self.nulls += chunk.null_count
        counted = pc.value_counts(chunk.drop_null())
        values, counts = counted.field("values"), counted.field("counts")
        null, _ = self._text.parse(values)
        for value, count in zip(values.filter(null).to_pylist(), counts.filter(null).to_pylist(), strict=True):
            self.text_missing[value] += count
            self.nulls += count
        values, counts = values.filter(pc.invert(null)), counts.filter(pc.invert(null))
        word = text.is_missing(values)
        for value, count in zip(values.filter(word).to_pylist(), counts.filter(word).to_pylist(), strict=True):
            self.null_words[value] += count
        self._update_text(values, counts)
        integers = None
        for kind, fit in self.fits.items():
            if fit.given_up:
                continue
            if kind == "number" and integers is not None:
                missing, read = integers
            else:
                missing, read = fit.reading.parse(values, word)
            if kind == "integer" and pc.all(pc.or_(missing, pc.is_valid(read)), min_count=0).as_py():
                integers = missing, _as_numbers(read)  # need not be read twice
            known = fit.add(values, counts, missing, read, where)
            self._look(kind, values.filter(known), counts.filter(known), read.filter(known))

    def _look(self, kind: Kind, values: pa.Array, counts: pa.Array, read: pa.Array) -> None:
        """Remember what else decides how values that fit `kind` are read."""
        if not len(values):
            return
        if kind == "number":
            if "" not in self._units or text.any_matches(values, "[^0-9-]"):
                self._look_at_units(values)
                self._has_groups |= text.any_matches(values, text.GROUPED)
                self._has_point |= text.any_matches(values, r"\.|[eE][+-]")
                self._has_code |= not self._has_point and text.any_matches(values, text.CODE)
            self._add_moments(read, counts)
        if kind == "integer":
            self._has_phones |= text.any_matches(values, text.SIGNED_CODE)
            self._is_dotted |= text.any_matches(values, r"\.")
            never = pc.is_in(read, pa.array(text.EPOCH_NEVER, pa.int64()))
            for value, count in zip(values.filter(never).to_pylist(), counts.filter(never).to_pylist(), strict=True):
                self._never[value] += count
            bounds = pc.min_max(read.filter(pc.invert(never)))
            if bounds["min"].is_valid:
                self._earliest = min(self._earliest, bounds["min"].as_py())
                self._latest = max(self._latest, bounds["max"].as_py())
            bounds = pc.min_max(read)
            self.least = min(self.least, bounds["min"].as_py())
            self.most = max(self.most, bounds["max"].as_py())
        if kind in ("local", "zoned"):
            self._is_fine |= text.any_matches(values, text.FINE)
        if kind == "list":
            self._brackets.update(pc.unique(pc.utf8_slice_codeunits(values, 0, 1)).to_pylist())
            self._longest = max(self._longest, pc.max(pc.list_value_length(read)).as_py())
            if len(self._elements) < MAX_DISTINCT:
                self._elements.update(pc.unique(read.flatten()).to_pylist())

    def _look_at_units(self, values: pa.Array) -> None:
        if "" in self._units and not text.any_matches(values, "[$€£¥₹%]"):
            return
        units = text.units(values)
        for unit in pc.unique(units).to_pylist():
            if unit not in self._units:
                self._units[unit] = values[pc.index(units, unit).as_py()].as_py()

    def _add_moments(self, read: pa.Array, counts: pa.Array) -> None:
        """Mean and variance of parts joined as Chan, Golub and LeVeque do: no large squares that cancel."""
        rows = pc.sum(counts).as_py()
        mean = pc.sum(pc.multiply(read, counts)).as_py() / rows
        off = pc.subtract(read, mean)
        squares = pc.sum(pc.multiply(pc.multiply(off, off), counts)).as_py()
        shift, total = mean - self.mean, self._numbers + rows
        self._deviations += squares + shift * shift * self._numbers * rows / total
        self.mean += shift * rows / total
        self._numbers = total
        bounds = pc.min_max(read)
        self.least, self.most = min(self.least, bounds["min"].as_py()), max(self.most, bounds["max"].as_py())

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

    @property
    def sign(self) -> tuple[str, str]:
        """The sign of a currency, or %, that all numbers have, and an example."""
        return next(iter(self._units.items()), ("", ""))

    @property
    def has_long_lists(self) -> bool:
        """Whether a list in brackets has several elements: otherwise they are no lists."""
        return self._longest > 1

    @property
    def deviation(self) -> float:
        """The standard deviation of a column of numbers."""
        return math.sqrt(self._deviations / max(self._numbers, 1))

    @property
    def kind(self) -> Kind:
        """What the values are."""
        times: tuple[Kind, ...] = ("date", "local", "zoned")
        found: Kind = next((kind for kind in times if self.fits[kind].fits), "text")
        if found != "text" and self._told["time_format"] is not None:
            return found
        if (self.fits["integer"].fits or self.fits["number"].fits) and self.no_numbers() is None:
            if not self.fits["integer"].fits:
                return "number"
            is_code = self.fits["integer"].missing_rows + self.nulls > 0 or CODE_NAME.search(self.name)
            # pandas writes integers as 7.0 where the column has nulls.
            return "integer" if not self._is_dotted or is_code or not self.fits["number"].fits else "number"
        is_list = self.fits["list"].fits and len(self._brackets) == 1 and self._longest > 1
        return "list" if found == "text" and is_list else found

    def no_numbers(self) -> str | None:
        """Why values that look like numbers may be something else."""
        if len(self._units) > 1:
            units = ", ".join(shorten(example) for example in self._units.values())
            return f"numbers with different units: {units}; write them without, or all with the same"
        if self._has_code and not self._has_point:
            return "codes that look like numbers with exponents"
        if self._has_phones and self.fits["integer"].fits:
            return "codes that begin with +"
        if self._has_groups and not self._has_point and self._told["decimal"] is None:
            return "numbers with commas: say --decimal . if these group thousands, --decimal , if they begin decimals"
        return None

    @property
    def reading(self) -> Reading:
        """How the text becomes values."""
        if self.is_label:
            return self._reading(pa.int8())
        kind = self.kind
        if kind == "text":
            return self._text
        if kind in ("local", "zoned") and self._is_fine:
            return self._reading(pa.timestamp("ns", "UTC" if kind == "zoned" else None))
        if kind == "list":
            return self._reading(pa.list_(self._element_type))
        unit = next(iter(self._units), "") if kind in ("integer", "number") else None
        return self._reading(self.fits[kind].reading.type, unit=unit, is_epoch=self.unit is not None)

    @property
    def type(self) -> pa.DataType:
        """The type in the Parquet file."""
        return self.reading.type

    @property
    def _element_type(self) -> pa.DataType:
        elements = pa.array(self._elements, pa.string())
        if len(elements) < MAX_DISTINCT and len(elements):
            if pc.all(text.matches(elements, r"^-?(0|[1-9][0-9]{0,17})$")).as_py():
                return pa.int64()
            if pc.all(text.matches(elements, text.NUMBER)).as_py():
                return pa.float64()
        return pa.string()

    @property
    def is_list(self) -> bool:
        """Lists in brackets, or values with a separator."""
        return self.kind == "list" or self.separator is not None

    @property
    def list_elements(self) -> set[str]:
        """Different elements of a column of lists."""
        return self._elements if self.kind == "list" else self.elements[self.separator or ","]

    @property
    def integers(self) -> bool:
        return self.kind == "integer"

    @property
    def missing_words(self) -> Counter[str]:
        """Words taken as "no value", and in how many rows."""
        if self.kind == "text" or self.is_label:
            return self.text_missing
        return self.fits[self.kind].missing + self.text_missing + (self._never if self.unit else Counter())

    @property
    def words(self) -> int:
        """Rows with a word that means "no value" in a column of numbers, times or lists."""
        if self.kind == "text":
            return 0
        return self.fits[self.kind].missing_rows + (self._never.total() if self.unit else 0)

    @property
    def known(self) -> int:
        """Rows with a value."""
        return self.rows - self.nulls - self.words

    @property
    def is_number(self) -> bool:
        return self.kind in ("integer", "number")

    @property
    def is_time(self) -> bool:
        """Dates, points in time, or integers that count them."""
        return self.kind in ("date", "local", "zoned") or self.unit is not None

    @property
    def unit(self) -> Literal["s", "ms", "us", "ns"] | None:
        """Of a column of integers that count the time since 1970."""
        if self.kind == "integer" and TIME_NAME.search(self.name):
            for unit, per_second in EPOCHS.items():
                if 1e9 * per_second <= self._earliest and self._latest < 4e9 * per_second:
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
        words = {value.lower().removesuffix(".0") for value in self.values}
        return {TRUTH[word] for word in words} if words and words <= set(TRUTH) else None

    @property
    def separator(self) -> str | None:
        """The separator of a column of lists: in a tenth of the values at least, with elements that recur.

        Prose has commas too, but as many different pieces as values.
        """
        likely = max(SEPARATORS, key=lambda separator: self.separated[separator])
        often = self.separated[likely] * 10 >= max(self.rows - self.nulls, 1)
        recur = len(self.elements[likely]) * 2 <= self.occurrences[likely]
        is_prose = likely != "|" and len(self.elements[likely]) > len(self.values)
        return likely if self.kind == "text" and often and recur and not is_prose else None


def _as_numbers(integers: pa.Array) -> pa.Array:
    """Integers as doubles, null where a double has not digits enough."""
    exact = pc.and_(pc.less(integers, 10**15), pc.greater(integers, -(10**15)))
    return pc.cast(pc.if_else(exact, integers, None), pa.float64())


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
