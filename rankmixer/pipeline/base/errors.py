"""The error for data that is wrong: where it is, what was found, what was expected and what to do; and for leaving."""

from __future__ import annotations


class DataError(ValueError):
    """Input data that cannot be used as it is; the message says where, what and what to do."""


class PassingError(ValueError):
    """What stands in the way now and may be gone when the same job is tried again."""


class StalledError(DataError, PassingError):
    """A file system that does not answer."""


class Preempted(Exception):
    """The job was told to leave; every rank raises this after the same step, with no batch left in the pipeline."""


class Interrupted(Preempted):
    """The same, told by Ctrl-C: by a person, who does not want to be obeyed by a new start."""


class DamagedError(DataError):
    """Bytes that are there and make no row group; `file` and `row_group` say which."""

    file: str
    row_group: int


class SystemFailure(RuntimeError):
    """A step of all ranks that failed on one with an OSError; `errno` is that error's."""

    def __init__(self, message: str, errno: int | None) -> None:
        super().__init__(message)
        self.errno = errno


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


def damaged(file: str, row_group: int, reason: str) -> DamagedError:
    """The DamagedError for what Arrow says of a row group."""
    do = "Write the file again, leave it out, or set `data.on_bad_file: skip`."
    found = f"nothing readable ({' '.join(reason.split())})"
    error = DamagedError(str(data_error(file, row_group=row_group, found=found, expected="the row group", do=do)))
    error.file, error.row_group = file, row_group
    return error
