"""How well the values of a column fit a type: how many are read, which stand for "no value", which are in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.csv.column_reading import Reading

WORDS = 100  # different words remembered
GIVEN_UP = 10_000  # after so many values in the way, if they are more than those read


class Fit:
    """Counts of rows, over all chunks of a column."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.known = 0
        self.odd_rows = 0
        self.odd: Counter[str] = Counter()
        self.first: tuple[str, str] | None = None
        """The first value in the way, and where it stands."""
        self.missing: Counter[str] = Counter()
        self.missing_rows = 0

    def add(
        self,
        values: pa.Array,
        counts: pa.Array,
        missing: pa.Array,
        read: pa.Array,
        where: Callable[[str], str],
    ) -> pa.Array:
        """Count different values, of which `reading.parse` has made `missing` and `read`; which of them are known.

        Args:
            where: says where a value stands first.
        """
        known = pc.and_(pc.invert(missing), pc.is_valid(read))
        self.known += pc.sum(counts.filter(known)).as_py() or 0
        self.missing_rows += pc.sum(counts.filter(missing)).as_py() or 0
        _count(self.missing, values.filter(missing), counts.filter(missing))
        is_odd = pc.and_(pc.invert(missing), pc.is_null(read))
        odd = values.filter(is_odd)
        if len(odd):
            self.odd_rows += pc.sum(counts.filter(is_odd)).as_py()
            _count(self.odd, odd, counts.filter(is_odd))
            if self.first is None:
                self.first = (odd[0].as_py(), where(odd[0].as_py()))
        return known

    @property
    def given_up(self) -> bool:
        return self.odd_rows > max(self.known, GIVEN_UP)

    @property
    def fits(self) -> bool:
        return self.known > 0 and not self.odd_rows

    @property
    def nearly(self) -> bool:
        """Whether most of the values fit, but not all."""
        return self.odd_rows > 0 and self.known >= self.odd_rows

    def in_the_way(self) -> str:
        """The words that do not fit, for a person."""
        assert self.first is not None
        words = ", ".join(shorten(word) for word, _ in self.odd.most_common(3))
        more = ", ..." if len(self.odd) > 3 else ""
        rows = "1 row" if self.odd_rows == 1 else f"{self.odd_rows:,} rows"
        return f"{words}{more} ({rows}, the first in {self.first[1]})"


def shorten(value: str) -> str:
    """A value for a message."""
    return repr(value if len(value) <= 24 else value[:21] + "...")


def _count(counter: Counter[str], values: pa.Array, counts: pa.Array) -> None:
    for value, count in zip(values.to_pylist()[:WORDS], counts.to_pylist()[:WORDS], strict=True):
        if value in counter or len(counter) < WORDS:
            counter[value] += count
