from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankmixer.pipeline.encode.bags import Bags, join, keep, scatter, take, within

Lists = list[list[int]]
lists = st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=6)


def bags_of(rows: Lists, index: list[int] | None = None) -> Bags:
    values = np.array([value for row in rows for value in row], np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Bags(values, offsets, None if index is None else np.array(index, np.int64))


def rows_of(bags: Bags) -> Lists:
    offsets = np.arange(len(bags.values) + 1) if bags.offsets is None else bags.offsets
    rows = [bags.values[start:stop].tolist() for start, stop in pairwise(offsets)]
    return rows if bags.index is None else [rows[bag] for bag in bags.index]


@given(parts=st.lists(st.tuples(lists, st.none() | st.lists(st.integers(0, 99), max_size=5)), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_join_is_concatenation(parts: list[tuple[Lists, list[int] | None]]) -> None:
    columns = []
    for rows, index in parts:
        columns.append(bags_of(rows, [bag % len(rows) for bag in index] if index is not None and rows else None))
    assert rows_of(join(columns)) == [row for column in columns for row in rows_of(column)]


@given(rows=lists, wanted=st.lists(st.integers(0, 99), max_size=9), index=st.none() | st.lists(st.integers(0, 99)))
@settings(max_examples=200, deadline=None)
def test_take_is_a_loop(rows: Lists, wanted: list[int], index: list[int] | None) -> None:
    column = bags_of(rows, [bag % len(rows) for bag in index] if index is not None and rows else None)
    expected = rows_of(column)
    assert rows_of(take(column, None)) == expected
    wanted = [row % len(expected) for row in wanted] if expected else []
    taken = take(column, np.array(wanted, np.int64))
    assert taken.index is None
    assert rows_of(taken) == [expected[row] for row in wanted]


@given(parts=st.lists(lists, min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_scatter_puts_every_bag_in_its_place(parts: list[Lists], seed: int) -> None:
    rows = [row for part in parts for row in part]
    places = np.random.default_rng(seed).permutation(len(rows))
    expected = [row for _, row in sorted(zip(places.tolist(), rows, strict=True))]
    assert rows_of(scatter([bags_of(part) for part in parts], places, np.dtype(np.int64))) == expected


def test_scatter_of_many_rows_goes_by_chunks() -> None:
    generator = np.random.default_rng(0)
    rows = [[number] * int(generator.integers(0, 3)) for number in range(40_000)]
    places = generator.permutation(len(rows))
    scattered = rows_of(scatter([bags_of(rows[:30_000]), bags_of(rows[30_000:])], places, np.dtype(np.int32)))
    assert [scattered[place] for place in places] == rows


def test_take_of_many_rows_goes_by_chunks() -> None:
    generator = np.random.default_rng(0)
    rows = [[number] * int(generator.integers(0, 3)) for number in range(40_000)]
    wanted = generator.permutation(len(rows))
    assert rows_of(take(bags_of(rows), wanted)) == [rows[row] for row in wanted]


def test_single_values_go_where_they_are_wanted() -> None:
    made = []

    def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        made.append(np.empty(shape, dtype))
        return made[-1]

    taken = take(Bags(np.array([5, 6, 7]), index=np.array([2, 2, 0, 1])), np.array([3, 0, 2]), empty)
    assert taken.values is made[0]
    assert taken.values.tolist() == [6, 7, 5]
    assert take(bags_of([[4], [], [5, 6]]), np.array([2, 0]), empty).values is made[2]
    assert (made[1].tolist(), made[2].tolist()) == ([0, 2, 3], [5, 6, 4])


@given(rows=lists, seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_keep_shortens_bags(rows: Lists, seed: int) -> None:
    column = bags_of(rows)
    kept = np.random.default_rng(seed).random(len(column.values)) < 0.5
    flags = iter(kept.tolist())
    assert rows_of(keep(column, kept)) == [[value for value in row if next(flags)] for row in rows]


def test_keep_wants_no_index() -> None:
    with pytest.raises(AssertionError):
        keep(bags_of([[1]], [0]), np.array([True]))


@given(rows=lists, most=st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_within_is_slicing(rows: Lists, most: int) -> None:
    bags = bags_of(rows)
    for end, expected in (("last", [row[-most:] for row in rows]), ("first", [row[:most] for row in rows])):
        kept = within(bags.offsets, most, end)  # type: ignore[arg-type]
        assert (kept is None) == all(len(row) <= most for row in rows)
        assert rows_of(bags if kept is None else keep(bags, kept)) == expected
