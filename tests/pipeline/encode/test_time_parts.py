"""Parts of times against Python's own datetime and zoneinfo, row by row."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankmixer.pipeline.encode.time_parts import NO_TIME, local_part, microseconds
from tests.pipeline.read.test_block import ids, read, refused

HOUR = {"kind": "time", "column": "at", "part": "hour", "dim": 4}
WEEKDAY = {**HOUR, "part": "weekday"}
AGE = {**HOUR, "part": "age", "reference": "now", "boundaries": ["1h", "1d", "7d"]}
START = datetime(1970, 1, 1, tzinfo=UTC)
ROME = datetime(2024, 3, 31, 0, 59, 59, tzinfo=UTC)  # a second later, 2:00 is 3:00 there
times = st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31))
recent = st.datetimes(datetime(1970, 1, 1), datetime(2037, 12, 31))


def micros(time: datetime) -> int:
    return (time - START) // timedelta(microseconds=1)


# Arrow knows no summer time after 2037.
@given(moments=st.lists(recent, min_size=1, max_size=9), zone=st.sampled_from(["UTC", "Europe/Rome", "Asia/Kolkata"]))
@settings(max_examples=200, deadline=None)
def test_a_clock_in_the_timezone_shows_hour_and_weekday(moments: list[datetime], zone: str) -> None:
    aware = [moment.replace(tzinfo=UTC) for moment in moments]
    local = [moment.astimezone(ZoneInfo(zone)) for moment in aware]
    values = np.array([micros(moment) for moment in aware])
    assert local_part(values, "hour", zone).tolist() == [moment.hour for moment in local]
    assert local_part(values, "weekday", zone).tolist() == [moment.weekday() for moment in local]


@given(moments=st.lists(times, min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_every_type_and_unit_says_the_same(moments: list[datetime]) -> None:
    whole = [moment.replace(microsecond=0, tzinfo=UTC) for moment in moments]
    expected = [micros(moment) for moment in whole]
    for unit, per_second in (("s", 1), ("ms", 1000), ("us", 10**6), ("ns", 10**9)):
        numbers = pa.array([number // 10**6 * per_second for number in expected])
        for array, given_unit in ((numbers, unit), (numbers.cast(pa.timestamp(unit, "Asia/Tokyo")), None)):
            found, wrong = microseconds(array, given_unit)
            assert found.tolist() == expected
            assert not wrong.any()
    days = [moment.date() for moment in whole]
    midnights = [micros(datetime(day.year, day.month, day.day, tzinfo=UTC)) for day in days]
    for type_ in (pa.date32(), pa.date64()):
        assert microseconds(pa.array(days, type_), None)[0].tolist() == midnights


def test_small_types_nulls_and_what_is_no_time() -> None:
    for type_ in (pa.int8(), pa.uint16(), pa.int32(), pa.uint64()):
        assert microseconds(pa.array([100, None], type_), "ms")[0].tolist() == [100_000, NO_TIME]
    found, wrong = microseconds(pa.array([-(2**63), 2**63 - 1, 7_258_118_400, 7_258_118_399, None]), "s")
    assert wrong.tolist() == [True, True, True, False, False]
    assert found.tolist()[3:] == [7_258_118_399_000_000, NO_TIME]
    assert microseconds(pa.array([1_234_567_891], pa.timestamp("ns")), None)[0].tolist() == [1_234_567]


@pytest.mark.parametrize("shuffle", [False, True])
def test_parts_of_a_column(tmp_path: Path, shuffle: bool) -> None:
    at = [ROME, None, ROME + timedelta(seconds=1), datetime(2024, 1, 1, 23, tzinfo=UTC), START]
    features = {
        "which": {"kind": "id", "range": 5, "dim": 4},
        "hour": HOUR,
        "roman": {**HOUR, "timezone": "Europe/Rome"},
        "weekday": WEEKDAY,
    }
    columns: dict[str, Any] = {"at": pa.array(at, pa.timestamp("ms", "America/Lima")), "which": [0, 1, 2, 3, 4]}
    batch, mended = read(tmp_path, columns, features, shuffle)
    order = [row[0] for row in ids(batch, "which")]
    for name, expected in {
        "hour": [[0], [], [1], [23], [0]],
        "roman": [[1], [], [3], [0], [1]],
        "weekday": [[6], [], [6], [0], [3]],
    }.items():
        assert ids(batch, name) == [expected[row] for row in order]
    assert mended == {"hour: null -> empty": 1, "roman: null -> empty": 1, "weekday: null -> empty": 1}


def test_ages_of_a_reference_column(tmp_path: Path) -> None:
    now = datetime(2024, 5, 1, tzinfo=UTC)
    lengths = [timedelta(hours=1), timedelta(minutes=59, seconds=59, microseconds=999_999), timedelta(days=-3)]
    lengths += [timedelta(days=1), timedelta(days=6, hours=23), timedelta(days=7), timedelta(days=999)]
    columns: dict[str, Any] = {
        "at": pa.array([*(now - length for length in lengths), now, None], pa.timestamp("us")),
        "now": pa.array([*[now] * len(lengths), None, now], pa.timestamp("ns", "UTC")),
    }
    batch, mended = read(tmp_path, columns, {"age": AGE})
    assert ids(batch, "age") == [[1], [0], [0], [2], [2], [3], [3], [], []]
    assert mended == {"age: null -> empty": 2}


def test_ages_of_a_fixed_time_and_of_integers(tmp_path: Path) -> None:
    seconds = [int(datetime(2024, 5, 1, 11, tzinfo=UTC).timestamp()), int(datetime(2024, 4, 1, tzinfo=UTC).timestamp())]
    fixed = {key: value for key, value in AGE.items() if key != "reference"} | {"unit": "ms"}
    features = {
        "utc": {**fixed, "reference_time": "2024-05-01T12:00:00"},
        "rome": {**fixed, "reference_time": "2024-05-01T13:59:59+02:00", "boundaries": [0, 3600]},
        "day": {**fixed, "reference_time": date(2024, 4, 8)},
    }
    batch, _ = read(tmp_path, {"at": [second * 1000 for second in seconds]}, features)
    assert ids(batch, "utc") == [[1], [3]]
    assert ids(batch, "rome") == [[1], [2]]
    assert ids(batch, "day") == [[0], [3]]


def test_a_time_in_another_unit_is_an_error(tmp_path: Path) -> None:
    good = 1_700_000_000
    message = refused(tmp_path, {"at": [good, good, None, good * 1000]}, {"hour": {**HOUR, "unit": "s"}})
    assert message == (
        "data.parquet, row group 1, row 3, column 'at': found 1700000000000 s since 1970; expected a time from 1900 to "
        "2199. Is `unit` right? Make unknown times null."
    )
    column = pa.array([good] * 3 + [10**12], pa.timestamp("s"))
    message = refused(tmp_path, {"at": column}, {"hour": HOUR})
    assert message.startswith(
        "data.parquet, row group 1, row 3, column 'at': found a time beyond the year 9999; expected"
    )
    column = pa.array([datetime(2024, 1, 1)] * 3 + [datetime(9999, 12, 31)], pa.timestamp("us"))
    message = refused(tmp_path, {"at": column}, {"hour": HOUR})
    assert "found '9999-12-31 00:00:00'; expected a time from 1900 to 2199. Mend the file" in message


@pytest.mark.parametrize(
    ("column", "keys", "message"),
    [
        (pa.array([1]), {}, "found type int64; expected timestamps or dates, for feature 'hour'. Give the `unit`"),
        (pa.array(["1"]), {}, "found type string; expected timestamps or dates"),
        (
            pa.array([1], pa.timestamp("s")),
            {"unit": "s"},
            r"found type timestamp\[ms\]; expected integers, because of `u",
        ),
        (pa.array([1.5]), {"unit": "s"}, "found type double; expected integers, because of `unit`"),
    ],
)
def test_columns_that_are_no_times(tmp_path: Path, column: pa.Array, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {"at": column}, {"hour": {**HOUR, **keys}})
