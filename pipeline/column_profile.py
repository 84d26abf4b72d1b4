"""What a column of text holds, and the line of the feature schema that it suggests."""

import json
import math
import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import yaml

LABELS = ("label", "click", "clicked", "is_click", "target")
SEPARATORS = ("|", ",", ";")
# Numbers with leading zeros or many digits are codes; they stay strings.
INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"
NUMBER = r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
# Text that means null in a column of numbers.
NULL_WORDS = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", "\\N")
MAX_DISTINCT = 100_000  # values remembered per column; beyond, the count is a lower bound
MAX_RANGE = 1_000_000


class ColumnProfile:
    """Counts over all chunks of one column; memory is bounded by `MAX_DISTINCT` values."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = self.nulls = self.words = 0
        self.integers = self.numbers = True
        self.least, self.most = math.inf, -math.inf
        self.total = self.squares = 0.0
        self.values: set[str] = set()
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
        if self.numbers:
            self._update_numbers(values.filter(pc.invert(is_word)), counts.filter(pc.invert(is_word)))

    def _update_text(self, values: pa.Array, counts: pa.Array) -> None:
        if len(self.values) < MAX_DISTINCT:
            self.values.update(values.to_pylist())
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
    def is_number(self) -> bool:
        return self.numbers and self.rows > self.nulls + self.words

    @property
    def is_label(self) -> bool:
        """A column of 0 and 1, without nulls, named as labels are."""
        whole = self.is_number and self.nulls == self.words == 0 and self.name.lower() in LABELS
        return whole and {float(value) for value in self.values} <= {0.0, 1.0}

    @property
    def type(self) -> pa.DataType:
        """The type in the Parquet file."""
        if self.is_label:
            return pa.int8()
        return (pa.int64() if self.integers else pa.float64()) if self.is_number else pa.string()

    @property
    def separator(self) -> str | None:
        """The separator of a column of lists: in a tenth of the values at least, with elements that recur."""
        likely = max(SEPARATORS, key=lambda separator: self.separated[separator])
        often = self.separated[likely] * 10 >= max(self.rows - self.nulls, 1)
        recur = len(self.elements[likely]) * 2 <= self.occurrences[likely]
        return likely if not self.is_number and often and recur else None

    def convert(self, chunk: pa.Array) -> pa.Array:
        """A chunk of strings in `type`."""
        if self.type == pa.string():
            return chunk
        chunk = pc.if_else(pc.is_in(chunk, pa.array(NULL_WORDS)), None, chunk)
        if self.type == pa.int8():
            chunk = pc.cast(chunk, pa.float64())  # a label may read 1.0
        return pc.cast(chunk, self.type)

    def schema_line(self) -> str:
        """The line of `features:` or `labels:`, with a comment that says what was seen."""
        if self.is_label:
            return self._line({}, f"{self.total / self.rows:.1%} are 1")
        if self.rows == self.nulls:
            return f"  # {json.dumps(self.name)}: empty in every row"
        if self.is_number and not self.integers:
            return self._number()
        if self.separator is not None:
            elements = self.elements[self.separator]
            keys = {"kind": "id_list", "separator": self.separator, **_hashed(len(elements))}
            seen = f"lists of {_count(len(elements))} values, such as {_shorten(min(elements, key=len))}"
            return self._line(keys, f"{seen}; if it is no list: kind: id without separator")
        seen = f"{_count(len(self.values))} values"
        if not self.is_number:
            return self._line(
                {"kind": "id", **_hashed(len(self.values))}, f"{seen}, such as {_shorten(min(self.values))}"
            )
        seen = f"{seen}, {self.least:.0f} to {self.most:.0f}; if it is a quantity: kind: number"
        if self.least >= 0 and self.most < min(MAX_RANGE, 1000 + 16 * len(self.values)):
            rows = int(self.most) + 1
            return self._line({"kind": "id", "range": rows, "dim": suggest_dim(rows)}, seen)
        return self._line({"kind": "id", **_hashed(len(self.values))}, seen)

    def _number(self) -> str:
        count = self.rows - self.nulls - self.words
        mean = self.total / count
        deviation = math.sqrt(max(self.squares / count - mean**2, 0.0))
        keys: dict[str, object] = {"kind": "number"}
        if deviation > 0:
            keys["standardise"] = [float(f"{mean:.4g}"), float(f"{deviation:.4g}")]
        if self.nulls + self.words:
            keys["default"] = float(f"{mean:.4g}")
        hint = "; a long tail? transform: log1p, and standardise after it" if self.most > mean + 10 * deviation else ""
        return self._line(keys, f"{self.least:.4g} to {self.most:.4g}, nulls: {self.nulls + self.words}{hint}")

    def _line(self, keys: dict[str, object], comment: str) -> str:
        name = re.sub(r"\W", "_", self.name)
        keys = keys if name == self.name else {"column": self.name, **keys}
        flow = ", ".join(f"{key}: {_scalar(value)}" for key, value in keys.items())
        return f"  {_scalar(name)}: {{{flow}}}  # {comment}"


def _hashed(distinct: int) -> dict[str, object]:
    buckets = suggest_buckets(distinct) if distinct < MAX_DISTINCT else 1 << 22
    return {"buckets": buckets, "dim": suggest_dim(distinct)}


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


def _count(distinct: int) -> str:
    return str(distinct) if distinct < MAX_DISTINCT else f"{MAX_DISTINCT} or more"


def _shorten(value: str) -> str:
    return repr(value if len(value) <= 20 else value[:17] + "...")


def _scalar(value: object) -> str:
    """YAML for a name, a number or a list of numbers; text that YAML would read otherwise is quoted."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)


def check_names(names: Sequence[str]) -> None:
    """Refuse a header with an empty or repeated name.

    Raises:
        ValueError: names the column by its number.
    """
    for index, name in enumerate(names):
        if not name:
            raise ValueError(f"column {index + 1} has no name; name it in the first line, or delete it")
        if name in names[:index]:
            first = names.index(name) + 1
            raise ValueError(f"columns {first} and {index + 1} are both named {name!r}; rename or delete one")
