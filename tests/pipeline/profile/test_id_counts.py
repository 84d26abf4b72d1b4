"""Counts of ids: exact up to the capacity, beyond it within the errors that are stated."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from rankmixer.pipeline.encode.hashing import hash_integers
from rankmixer.pipeline.profile.id_counts import BINS, IdCounts
from rankmixer.pipeline.profile.key_counts import KeySpace

CAPACITY = 2048


def zipf(ids: int, lookups: int, power: float, seed: int = 0) -> np.ndarray:
    """Lookups of ids 0 to `ids` - 1; id r has a share in proportion to (r + 1) ** -power."""
    shares = np.cumsum(np.arange(1, ids + 1.0) ** -power)
    return np.searchsorted(shares / shares[-1], np.random.default_rng(seed).random(lookups))


def wide_ids(ids: np.ndarray, space: KeySpace) -> np.ndarray:
    return (hash_integers(ids) % np.uint64(space.size)).astype(np.int64)


def count(keys: np.ndarray, space: KeySpace, capacity: int = CAPACITY, chunk: int = 3000) -> IdCounts:
    counts = IdCounts(space, capacity)
    for start in range(0, len(keys), chunk):
        counts.add_keys(keys[start : start + chunk])
    return counts


@pytest.mark.parametrize("buckets", [None, 1, 7, 5000, 3_000_000_000])
def test_keys_are_one_to_one_and_evenly_spread(buckets: int | None) -> None:
    space = KeySpace(buckets)
    ids = np.arange(4000) if buckets is None else wide_ids(np.arange(4000), space)
    keys = space.keys(ids)
    assert len(np.unique(keys)) == 4000
    assert keys.min() >= 0
    assert keys.max() < space.size <= 2**62
    halves = np.bincount(keys * 2.0 >= space.size)
    assert abs(halves[0] - halves[1]) < 4 * np.sqrt(4000) or buckets == 1
    if buckets is not None:
        np.testing.assert_array_equal(space.buckets_of(keys), (hash_integers(np.arange(4000)) % np.uint64(buckets)))


def test_up_to_the_capacity_all_is_exact() -> None:
    space = KeySpace(900)
    keys = space.keys(wide_ids(zipf(1500, 20_000, 1.0), space))
    counts, exact = count(keys, space), Counter(keys.tolist())
    assert counts.is_exact
    assert dict(zip(counts.sample.keys.tolist(), counts.sample.counts.tolist(), strict=True)) == exact
    assert (counts.lookups, counts.distinct, counts.distinct_error) == (20_000, len(exact), 0.0)
    ranked = [times for _, times in exact.most_common()]
    for ids in (1, 10, 10_000):
        assert counts.share_of_top(ids) == pytest.approx(sum(ranked[:ids]) / 20_000)
    for share in (0.5, 0.9, 1.0):
        needed = next(n for n in range(len(ranked) + 1) if sum(ranked[:n]) >= share * 20_000)
        assert counts.ids_to_cover(share) == needed
    per_bucket = Counter(key // space.per_bucket for key in exact)
    colliding = [key for key in exact if per_bucket[key // space.per_bucket] > 1]
    lookups = sum(exact[key] for key in colliding) / 20_000
    assert counts.colliding() == pytest.approx((len(colliding) / len(exact), lookups, 0.0))
    assert counts.bins.sum() == 20_000
    assert len(counts.bins) == BINS


def test_times_are_as_good_as_repetitions() -> None:
    space = KeySpace()
    keys, times = np.array([5, 2, 5, 9]), np.array([2, 1, 3, 0])
    once, often = IdCounts(space), IdCounts(space)
    once.add_keys(keys, times)
    often.add_keys(np.repeat(keys, times))
    assert_same(once, often)
    assert once.sample.keys.tolist() == [2, 5]


def assert_same(one: IdCounts, other: IdCounts) -> None:
    for a, b in zip(one.sample, other.sample, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.bins, other.bins)
    assert (one.limit, one.lookups) == (other.limit, other.lookups)


@pytest.mark.parametrize("power", [0.0, 0.8, 1.2])
def test_beyond_the_capacity_the_errors_are_as_stated(power: float) -> None:
    space = KeySpace(40_000)
    keys = space.keys(wide_ids(zipf(60_000, 300_000, power), space))
    counts = count(keys, space)
    distinct, exact = np.unique(keys, return_counts=True)
    true = dict(zip(distinct.tolist(), exact.tolist(), strict=True))

    assert counts.distinct == pytest.approx(len(distinct), rel=4 * counts.distinct_error)
    assert counts.distinct_error == CAPACITY**-0.5
    np.testing.assert_array_equal(counts.sample.keys, distinct[:CAPACITY])  # the smallest keys, with exact counts
    np.testing.assert_array_equal(counts.sample.counts, exact[:CAPACITY])
    assert counts.limit == distinct[CAPACITY]

    assert counts.heavy is not None
    heavy = np.array([true[key] for key in counts.heavy.keys.tolist()])
    assert (counts.heavy.counts <= heavy).all()
    assert (heavy <= counts.heavy.counts + counts.heavy.misses).all()
    assert counts.heavy.missed <= counts.lookups / CAPACITY
    absent = exact[~np.isin(distinct, counts.heavy.keys)]
    assert absent.max() <= counts.heavy.missed

    ranked = -np.sort(-exact)
    for ids in (1, 10, 100):
        share = counts.share_of_top(ids)
        assert share == pytest.approx(ranked[:ids].sum() / len(keys), abs=ids * counts.top_error + 1e-9)
    for share in (0.8, 0.9, 0.99):
        covered = int(np.searchsorted(np.cumsum(ranked), share * len(keys))) + 1
        assert counts.ids_to_cover(share) == pytest.approx(covered, rel=0.12)

    in_bucket = np.unique(space.buckets_of(distinct), return_inverse=True, return_counts=True)
    collides = in_bucket[2][in_bucket[1]] > 1
    measured = counts.colliding()
    assert measured is not None
    assert measured[0] == pytest.approx(collides.mean(), abs=4 * 0.5 * (CAPACITY / 2) ** -0.5)
    assert measured[1] == pytest.approx(exact[collides].sum() / len(keys), abs=4 * measured[2])


def test_the_share_of_a_property_is_within_its_error() -> None:
    space = KeySpace()
    ids = zipf(60_000, 300_000, 1.0)
    counts = count(space.keys(ids), space)
    odd = space.keys(np.arange(1, 60_000, 2))
    heavy, light, _ = counts.strata()
    share, error = counts.share(np.isin(heavy.keys, odd), np.isin(light.keys, odd))
    assert 0 < error < 0.02
    assert share == pytest.approx((ids % 2).mean(), abs=4 * error)


def test_parts_add_up_to_the_whole_in_any_order() -> None:
    space = KeySpace(5000)
    keys = space.keys(wide_ids(zipf(30_000, 60_000, 0.9), space))
    whole = count(keys, space)
    parts = [count(part, space) for part in np.array_split(keys, 3)]
    for order in ([0, 1, 2], [2, 0, 1]):
        together = IdCounts(space, CAPACITY)
        for number in order:
            together.add(parts[number])
        assert_same(together, whole)
        assert together.heavy is not None
        distinct, exact = np.unique(keys, return_counts=True)
        true = exact[np.searchsorted(distinct, together.heavy.keys)]
        assert (together.heavy.counts <= true).all()
        assert (true <= together.heavy.counts + together.heavy.misses).all()


def test_memory_does_not_grow_with_ids_or_lookups() -> None:
    def size(ids: int, lookups: int) -> list[int]:
        counts = count(KeySpace().keys(zipf(ids, lookups, 0.5)), KeySpace())
        assert counts.heavy is not None
        arrays: list[Any] = [*counts.sample[:3], *counts.heavy[:3], counts.bins]
        return [array.nbytes for array in arrays]

    assert size(10_000, 30_000) == size(100_000, 300_000) == [8 * CAPACITY] * 6 + [8 * BINS]


def test_without_lookups() -> None:
    counts = IdCounts(KeySpace(10))
    counts.add_keys(np.empty(0, np.int64))
    assert (counts.distinct, counts.share_of_top(1), counts.ids_to_cover(0.9), counts.colliding()) == (
        0,
        None,
        None,
        None,
    )
    assert counts.share(np.empty(0), np.empty(0)) == (0.0, 0.0)


def test_one_bucket_too_full_for_the_sample() -> None:
    space = KeySpace(1)
    counts = count(space.keys(wide_ids(zipf(20_000, 40_000, 0.0), space)), space)
    assert counts.colliding() is None
    assert counts.distinct == pytest.approx(20_000 * (1 - np.exp(-2)), rel=0.09)
