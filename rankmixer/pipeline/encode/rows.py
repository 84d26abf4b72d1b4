"""Rows before anything is done to them, and where in which file they lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rankmixer.pipeline.base.errors import DataError, damaged, data_error
from rankmixer.pipeline.encode.bags import Bags, Empty, join
from rankmixer.pipeline.encode.numeric import to_numpy
from rankmixer.pipeline.files.decode import Read

LOCATION = pa.schema({"file": pa.string(), "row_group": pa.int32(), "row": pa.int64()})


class Place(NamedTuple):
    """Where consecutive rows come from; `first_row` counts from the beginning of the file."""

    file: str
    row_group: int
    first_row: int
    num_rows: int


class RawRows:
    """Columns of consecutive row groups, or of a piece of one, decoded when they are asked for.

    Args:
        places: where the rows come from.
        reads: for each place what decodes a column of it.
        rows: which of the rows are wanted, in which order; None stands for all as they are.
    """

    def __init__(self, places: Sequence[Place], reads: Sequence[Read], rows: np.ndarray | None) -> None:
        self.rows = rows
        self._places = places
        self._reads = reads
        self._chunks: dict[str, list[pa.Array]] = {}

    @cached_property
    def places(self) -> np.ndarray | None:
        """Where each row goes, if all are wanted but not as they are."""
        if self.rows is None or len(self.rows) < sum(place.num_rows for place in self._places):
            return None
        places = np.empty_like(self.rows)
        places[self.rows] = np.arange(len(self.rows))
        return places

    def chunks(self, column: str) -> list[pa.Array]:
        """All rows of a column.

        Raises:
            DataError: text that is not UTF-8.
            DamagedError: the row group cannot be decoded, or has indices or offsets that point nowhere.
        """
        if column not in self._chunks:
            chunks = []
            for place, read in zip(self._places, self._reads, strict=True):
                chunks += self._valid(place, column, read(column))
            self._chunks[column] = chunks
        return self._chunks[column]

    def _valid(self, place: Place, column: str, chunks: list[pa.Array]) -> list[pa.Array]:
        """The chunks, after Arrow has looked at every offset, index and character: it reads files without."""
        row, valid = place.first_row, []
        for chunk in chunks:
            try:
                chunk.validate(full=True)
            except pa.ArrowInvalid as error:
                if bad := _not_text(place, row, column, chunk):
                    raise bad from None
                try:  # perhaps only a word of its dictionary is wrong, which other rows have
                    chunk = chunk.cast(_without_dictionary(chunk.type))
                    chunk.validate(full=True)
                except pa.ArrowException:
                    raise damaged(place.file, place.row_group, str(error)) from None
            valid.append(chunk)
            row += len(chunk)
        return valid

    def release(self, column: str) -> None:
        """Free a column that is not needed any more."""
        del self._chunks[column]

    def __len__(self) -> int:
        return sum(place.num_rows for place in self._places) if self.rows is None else len(self.rows)

    def array(self, column: str, type_: pa.DataType) -> pa.Array:
        """The wanted rows of a column that is handed on as it is; a dictionary is decoded."""
        array = pa.concat_arrays([chunk.cast(type_) for chunk in self.chunks(column)])
        return array if self.rows is None else array.take(pa.array(self.rows))

    def nulls(self, column: str) -> np.ndarray:
        """(N,) bool: which of the wanted rows are null."""
        nulls = np.concatenate([chunk.is_null().to_numpy(zero_copy_only=False) for chunk in self.chunks(column)])
        return nulls if self.rows is None else nulls.take(self.rows)

    def numbers(self, column: str, out: np.ndarray | None = None, empty: Empty = np.empty) -> np.ndarray:
        """The wanted rows of a numeric column; NaN for null. They are in `out` if that is of their type.

        `empty` makes an array for all rows of the column.
        """
        values = join([Bags(to_numpy(chunk)) for chunk in self.chunks(column)], empty).values
        if self.rows is None:
            return values
        out = out if out is not None and out.dtype == values.dtype else None
        return np.take(values, self.rows, out=out, mode="clip")

    def value(self, column: str, row: int) -> Any:
        """One value as a Python object."""
        row = row if self.rows is None else int(self.rows[row])
        for chunk in self.chunks(column):
            if row < len(chunk):
                return chunk[row].as_py()
            row -= len(chunk)
        raise AssertionError("row beyond the columns")

    def located(self) -> list[pa.Array]:
        """Where each of the wanted rows lies, as the columns of LOCATION."""
        places = np.repeat(np.arange(len(self._places)), [place.num_rows for place in self._places])
        rows = np.concatenate([place.first_row + np.arange(place.num_rows) for place in self._places])
        if self.rows is not None:
            places, rows = places[self.rows], rows[self.rows]
        files = pa.array([place.file for place in self._places]).take(pa.array(places))
        groups = np.array([place.row_group for place in self._places], np.int32)
        return [files, pa.array(groups[places]), pa.array(rows)]

    def error(self, row: int, column: str, found: str, expected: str, do: str) -> DataError:
        row = row if self.rows is None else int(self.rows[row])
        for place in self._places:
            if row < place.num_rows:
                break
            row -= place.num_rows
        return data_error(
            place.file,
            row_group=place.row_group,
            row=place.first_row + row,
            column=column,
            found=found,
            expected=expected,
            do=do,
        )


def _not_text(place: Place, first_row: int, column: str, chunk: pa.Array) -> DataError | None:
    """The error for the first text that is not UTF-8, if that is what is wrong."""
    for row in range(len(chunk)):
        try:
            chunk[row].as_py()
        except UnicodeDecodeError as error:
            return data_error(
                place.file,
                row_group=place.row_group,
                row=first_row + row,
                column=column,
                found=f"bytes that are not UTF-8 ({error.object[:40]!r})",
                expected="text in UTF-8",
                do="Write the column again as UTF-8.",
            )
        except Exception:  # damaged otherwise
            return None
    return None


def _without_dictionary(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        return type_.value_type
    if pa.types.is_list(type_):
        return pa.list_(_without_dictionary(type_.value_type))
    return pa.large_list(_without_dictionary(type_.value_type)) if pa.types.is_large_list(type_) else type_


def shown(value: Any) -> str:
    """A value as errors show it.

    >>> shown(None), shown(float("nan")), shown("Rome")
    ('null', 'NaN', "'Rome'")
    """
    return "null" if value is None else "NaN" if value != value else repr(value)
