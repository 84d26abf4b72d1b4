"""Columns of times -> ids: the hour, the weekday, or the bucket of an age.

Times are whole microseconds since 1970 in UTC. A timestamp without a timezone is taken to be in UTC, and one with a
timezone is the instant that it is: what the column calls its zone makes no difference.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.encode.ids import NULL
from rankmixer.pipeline.encode.numeric import bucketed
from rankmixer.pipeline.encode.rows import RawRows, shown
from rankmixer.pipeline.schema.features import Time

NO_TIME = np.iinfo(np.int64).min  # stands for null
_SECOND = 1_000_000
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Beyond these years a time is a unit mistaken for another, or stands for "never".
_EARLIEST, _LATEST = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (1900, 2200))


def time_ids(raw: RawRows, feature: Time) -> np.ndarray:
    """(N,) int32: an id for each row, NULL where a time is null.

    Raises:
        DataError: a time that is not from 1900 to 2199.
    """
    if feature.part == "age":
        ages_N, known_N = ages(raw, feature)
        assert feature.boundaries is not None, "learnt before"
        ids_N = bucketed(ages_N, tuple(round(boundary * _SECOND) for boundary in feature.boundaries))
    else:
        times_N = _times(raw, feature.column, feature.unit)
        known_N = times_N != NO_TIME
        ids_N = local_part(np.where(known_N, times_N, 0), feature.part, feature.timezone)
    return np.where(known_N, ids_N, NULL).astype(np.int32)


def ages(raw: RawRows, feature: Time) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64, microseconds from the event to its reference; and (N,) bool, False where one of them is null."""
    times_N = _times(raw, feature.column, feature.unit)
    known_N = times_N != NO_TIME
    if feature.reference is None:
        assert feature.reference_time is not None
        fixed = feature.reference_time
        fixed = fixed.replace(tzinfo=UTC) if fixed.tzinfo is None else fixed
        return round(fixed.timestamp() * _SECOND) - np.where(known_N, times_N, 0), known_N
    references_N = _times(raw, feature.reference, feature.unit)
    known_N &= references_N != NO_TIME
    return np.where(known_N, references_N - times_N, 0), known_N


def local_part(times: np.ndarray, part: Literal["hour", "weekday"], timezone: str) -> np.ndarray:
    """(N,) int64: the hour or weekday, Monday being 0, of microseconds since 1970, as a clock in the timezone shows it.

    >>> local_part(np.array([0, 23 * 3_600_000_000]), "hour", "UTC")
    array([ 0, 23])
    >>> local_part(np.array([0, 23 * 3_600_000_000]), "weekday", "Europe/Oslo")
    array([3, 4])
    """
    # Arrow computes faster without a zone than with UTC.
    array = pa.array(times).cast(pa.timestamp("us", None if timezone == "UTC" else timezone))
    return (pc.hour(array) if part == "hour" else pc.day_of_week(array)).to_numpy()


def microseconds(array: pa.Array, unit: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64, NO_TIME for null; and (N,) bool, True where the time is not from 1900 to 2199.

    Args:
        array: integers since 1970 in `unit`; or without a unit timestamps or dates.

    >>> microseconds(pa.array([1_500_000_000, None], pa.timestamp("s")), None)[0].tolist()
    [1500000000000000, -9223372036854775808]
    >>> microseconds(pa.array([1_700_000_000_123]), "ms")[0].tolist()
    [1700000000123000]
    """
    null_N = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_null(array.type):
        array, per_second = array.cast(pa.int64()), 1
    elif pa.types.is_date32(array.type):
        array, per_second = array.cast(pa.timestamp("s")).view(pa.int64()), 1
    elif unit is None:
        per_second = _PER_SECOND["ms" if pa.types.is_date64(array.type) else array.type.unit]
        array = array.view(pa.int64())
    else:
        per_second = _PER_SECOND[unit]
    raw_N = (array.fill_null(0) if array.null_count else array).to_numpy()
    wrong_N = (raw_N < _EARLIEST * per_second) | (raw_N >= _LATEST * per_second)
    times_N = np.where(wrong_N, 0, raw_N).astype(np.int64)
    times_N = times_N * (_SECOND // per_second) if per_second <= _SECOND else times_N // (per_second // _SECOND)
    times_N[null_N] = NO_TIME
    return times_N, wrong_N


def _times(raw: RawRows, column: str, unit: str | None) -> np.ndarray:
    """(N,) int64 microseconds of the wanted rows, NO_TIME for null."""
    parts = [microseconds(chunk, unit) for chunk in raw.chunks(column)]
    times_N, wrong_N = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if raw.rows is not None:
        times_N, wrong_N = times_N.take(raw.rows), wrong_N.take(raw.rows)
    if wrong_N.any():
        row = int(np.flatnonzero(wrong_N)[0])
        try:
            value = raw.value(column, row)
            found = f"{value} {unit} since 1970" if unit else shown(str(value))
        except (OverflowError, ValueError):  # beyond what Python's dates can say
            found = "a time beyond the year 9999"
        do = "Is `unit` right? Make unknown times null." if unit else "Mend the file; make unknown times null."
        raise raw.error(row, column, found, "a time from 1900 to 2199", do)
    return times_N
