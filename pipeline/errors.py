"""The error for data that is wrong: where it is, what was found, what was expected and what to do."""

from __future__ import annotations


class DataError(ValueError):
    """Input data that cannot be used as it is; the message says where, what and what to do."""


def data_error(
    file: str,
    *,
    row_group: int | None = None,
    row: int | None = None,
    column: str | None = None,
    found: str,
    expected: str,
    do: str,
) -> DataError:
    """A DataError with the place put into words; rows and row groups count from 0, rows within the file.

    >>> print(data_error("a.parquet", row_group=1, row=7, column="age", found="NaN", expected="number", do="Mend."))
    a.parquet, row group 1, row 7, column 'age': found NaN; expected number. Mend.
    """
    places = {"row group": row_group, "row": row, "column": repr(column) if column is not None else None}
    where = ", ".join([file, *(f"{name} {value}" for name, value in places.items() if value is not None)])
    return DataError(f"{where}: found {found}; expected {expected}. {do}")
