"""What a column of text holds, and as what type it is kept."""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.csv import column_text as text
from rankmixer.pipeline.csv.column_fit import Fit, shorten
from rankmixer.pipeline.csv.column_reading import Reading
from rankmixer.pipeline.propose.column_facts import Unit, epoch_unit

# Whole numbers under such a name are codes, even where they are written as 7.0.
CODE_NAME = re.compile(r"(^|[^a-z])(id|ids|code|key|no|number|zip)($|[^a-z])|Id$|ID$", re.IGNORECASE)
# Fractions under such a name are no numbers: version 1.10 is not 1.1.
VERSION_NAME = re.compile(r"(^|[^a-z])(version|code|id)$|(Version|Code|Id|ID)$")
MAX_DISTINCT = 100_000  # values remembered per column; beyond, the count is a lower bound
_MICRO = pa.timestamp("us")
Kind = Literal["integer", "number", "date", "local", "zoned", "list", "text"]


class ColumnProfile:
    """Counts over all chunks of one column; memory is bounded by `MAX_DISTINCT` values.

    Args:
        missing, decimal, time_format: of CsvOptions.

    Attributes:
        nulls: empty rows, and those with a word of `missing` or Hive's null.
        least, most: of numbers.
        values: some different values, all if there are fewer than MAX_DISTINCT.
    """

    def __init__(
        self, name: str, missing: tuple[str, ...] = (), decimal: str | None = None, time_format: str | None = None
    ) -> None:
        self.name = name
        self.rows = self.nulls = 0
        self.least, self.most = math.inf, -math.inf
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
        if len(self.values) < MAX_DISTINCT:
            self.values.update(values.to_pylist())
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
            bounds = pc.min_max(read)
            self.least, self.most = min(self.least, bounds["min"].as_py()), max(self.most, bounds["max"].as_py())
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

    @property
    def sign(self) -> tuple[str, str]:
        """The sign of a currency, or %, that all numbers have, and an example."""
        return next(iter(self._units.items()), ("", ""))

    @property
    def has_long_lists(self) -> bool:
        """Whether a list in brackets has several elements: otherwise they are no lists."""
        return self._longest > 1

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
        if self._has_point and not self.fits["integer"].fits and VERSION_NAME.search(self.name):
            return "codes with a point, such as versions; if they are numbers, name the column otherwise"
        if self._has_phones and self.fits["integer"].fits:
            return "codes that begin with +"
        if self._has_groups and not self._has_point and self._told["decimal"] is None:
            return "numbers with commas: say --decimal . if these group thousands, --decimal , if they begin decimals"
        return None

    @property
    def reading(self) -> Reading:
        """How the text becomes values."""
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
    def missing_words(self) -> Counter[str]:
        """Words taken as "no value", and in how many rows."""
        if self.kind == "text":
            return self.text_missing
        return self.fits[self.kind].missing + self.text_missing + (self._never if self.unit else Counter())

    @property
    def words(self) -> int:
        """Rows with a word that means "no value" in a column of numbers, times or lists."""
        if self.kind == "text":
            return 0
        return self.fits[self.kind].missing_rows + (self._never.total() if self.unit else 0)

    @property
    def unit(self) -> Unit | None:
        """Of a column of integers that count the time since 1970."""
        return epoch_unit(self.name, self._earliest, self._latest) if self.kind == "integer" else None


def _as_numbers(integers: pa.Array) -> pa.Array:
    """Integers as doubles, null where a double has not digits enough."""
    exact = pc.and_(pc.less(integers, 10**15), pc.greater(integers, -(10**15)))
    return pc.cast(pc.if_else(exact, integers, None), pa.float64())
