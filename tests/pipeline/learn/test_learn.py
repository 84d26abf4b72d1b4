"""What is learnt, against Python's own statistics and sorting."""

import statistics
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.learn import learn as module
from rankmixer.pipeline.learn.learn import _Moments, _Sample, learn
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Number, Schema, Time


def schema(**features: dict[str, Any]) -> Schema:
    return Schema.model_validate({"features": features, "labels": {"click": {}}})


def write(folder: Path, columns: dict[str, Any], files: int = 2, row_group: int = 3) -> str:
    table = pa.table(columns)
    size = -(-len(table) // files)
    for number in range(files):
        pq.write_table(table.slice(number * size, size), folder / f"{number}.parquet", row_group_size=row_group)
    return str(folder)


def number(learnt: Schema, name: str) -> Number:
    feature = learnt.features[name]
    assert isinstance(feature, Number)
    return feature


def test_mean_and_deviation_after_transform_and_default(tmp_path: Path) -> None:
    price = [3.0, None, 10.5, float("nan"), 7.25, 0.0, 99.0]
    asked = schema(
        plain={"kind": "number", "column": "count", "standardise": "learn"},
        log={"kind": "number", "column": "price", "transform": "log1p", "default": 1, "standardise": "learn"},
        given={"kind": "number", "column": "count", "standardise": [1, 2]},
    )
    count = [7, 1, 3, 3, 10**9, 5, 0]
    learnt = learn(asked, write(tmp_path, {"price": price, "count": count}))
    filled = np.log1p([1.0 if value is None or value != value else value for value in price])
    for name, values in (("plain", count), ("log", filled.tolist())):
        expected = (statistics.fmean(values), statistics.pstdev(values))
        assert number(learnt, name).standardise == pytest.approx(expected, rel=1e-12)
    assert number(learnt, "given").standardise == (1, 2)
    assert not learnt.to_learn
    assert learnt.digest() != asked.digest()
    assert learn(learnt, "nowhere") is learnt


def test_a_large_mean_loses_no_digits(tmp_path: Path) -> None:
    at = [1_700_000_000 + step for step in range(50)]
    learnt = learn(schema(at={"kind": "number", "standardise": "learn"}), write(tmp_path, {"at": at}))
    expected = (statistics.fmean(at), statistics.pstdev(at))
    assert number(learnt, "at").standardise == pytest.approx(expected, rel=1e-13)


def test_quantiles_share_the_rows_evenly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).permutation(100).tolist()
    learnt = learn(schema(age={"kind": "number", "quantiles": 4, "dim": 4}), write(tmp_path, {"age": values}))
    age = number(learnt, "age")
    assert (age.boundaries, age.quantiles, learnt.tables["age"].rows) == ((25, 50, 75), None, 4)


@pytest.mark.parametrize(
    ("values", "boundaries"),
    [
        ([0, 0, 0, 0, 0, 0, 5, 9], (5,)),  # a value that fills several buckets gets one
        ([1, 2, 2, 2, 2, 2, 2, 9], (2,)),
        ([0, 0, 0, 0, 0, 0, 0, 9], (9,)),  # the others get one together, however few
        ([-1.5, 2, None, 3, 4, None, 7, 8], (0.0, 3, 7)),
    ],
)
def test_quantiles_of_values_that_repeat(tmp_path: Path, values: list[Any], boundaries: tuple[float, ...]) -> None:
    asked = schema(age={"kind": "number", "quantiles": 4, "dim": 4, "default": 0})
    assert number(learn(asked, write(tmp_path, {"age": values})), "age").boundaries == boundaries


def test_ages_have_quantiles(tmp_path: Path) -> None:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    ages = [1.0, 0.25, 3.0, 2.0, None, 5.0, 4.0, 6.0, 7.0]
    at = [None if age is None else now - timedelta(seconds=age) for age in ages]
    keys = {"kind": "time", "part": "age", "reference": "now", "quantiles": 4, "dim": 4}
    learnt = learn(schema(at=keys), write(tmp_path, {"at": pa.array(at, pa.timestamp("ms")), "now": [now] * 9}))
    feature = learnt.features["at"]
    assert isinstance(feature, Time)
    assert feature.boundaries == (2, 4, 6)


@pytest.mark.parametrize("cut", [dict(files=1, row_group=999), dict(files=5, row_group=7)])
def test_the_result_does_not_depend_on_how_rows_lie_in_files(
    tmp_path: Path, cut: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the sample too: rows are chosen by their number."""
    monkeypatch.setattr(module, "PIECE_ROWS", 11)
    values = np.random.default_rng(1).normal(size=100).round(3).tolist()
    asked = schema(
        price={"kind": "number", "quantiles": 3, "dim": 4},
        scaled={"kind": "number", "column": "price", "standardise": "learn"},
    )
    learnt = learn(asked, write(tmp_path, {"price": values}, **cut), sample=20)
    by_hash = sorted(range(100), key=lambda row: module.hash_integers(np.array([row]))[0])[:20]
    drawn = sorted(values[row] for row in by_hash)
    assert number(learnt, "price").boundaries == (drawn[20 // 3], drawn[40 // 3])
    expected = (statistics.fmean(values), statistics.pstdev(values))
    assert number(learnt, "scaled").standardise == pytest.approx(expected, rel=1e-12)


def test_of_many_rows_some_row_groups_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, {"price": [float(group) for group in range(10) for _ in range(4)]}, files=1, row_group=4)
    learnt = learn(schema(price={"kind": "number", "standardise": "learn"}), path, most_rows=12)
    order = np.argsort(module.hash_integers(np.arange(10)))[:3].tolist()
    expected = (statistics.fmean(order), statistics.pstdev(order))
    assert number(learnt, "price").standardise == pytest.approx(expected, rel=1e-12)


@given(
    parts=st.lists(st.lists(st.floats(-1e6, 1e6), max_size=6), min_size=1, max_size=5),
    size=st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_summaries_of_parts_are_those_of_the_whole(parts: list[list[float]], size: int) -> None:
    whole_moments, whole_sample, moments, sample = _Moments(), _Sample(size), _Moments(), _Sample(size)
    rows = np.arange(sum(map(len, parts)))
    values = np.array([value for part in parts for value in part])
    whole_moments.add(values, rows)
    whole_sample.add(values, rows)
    at = 0
    for part in parts:
        for total in (moments, sample):
            one: Any = _Moments() if total is moments else _Sample(size)
            one.add(np.array(part), rows[at : at + len(part)])
            total.merge(one)
        at += len(part)
    assert sorted(zip(sample.keys, sample.values, strict=True)) == sorted(
        zip(whole_sample.keys, whole_sample.values, strict=True)
    )
    assert (moments.count, moments.least, moments.most) == (
        whole_moments.count,
        whole_moments.least,
        whole_moments.most,
    )
    if len(values):
        np.testing.assert_allclose(moments.mean, statistics.fmean(values), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(moments.squares / len(values), statistics.pvariance(values), rtol=1e-6, atol=1e-3)


def test_of_one_value_nothing_is_learnt(tmp_path: Path) -> None:
    path = write(tmp_path, {"price": [0.1] * 7, "at": pa.array([None] * 7, pa.timestamp("s"))})
    for keys in ({"standardise": "learn"}, {"quantiles": 3, "dim": 4}):
        message = r"features.price: cannot learn from 7 rows: found only the value 0.1; expected two or more different"
        with pytest.raises(ValueError, match=message):
            learn(schema(price={"kind": "number", **keys}), path)
    ages = {"kind": "time", "part": "age", "reference_time": "2024-01-01", "quantiles": 3, "dim": 4}
    with pytest.raises(
        ValueError, match=r"features.at: cannot learn from 7 rows: found no value; expected two or more"
    ):
        learn(schema(at=ages), path)
    path = write(tmp_path, {"price": [1e300, 1.0, 2.0], "at": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"found numbers from 1 to 1e\+300, which cannot be squared; scale them"):
        learn(schema(price={"kind": "number", "standardise": "learn"}), path)


@pytest.mark.parametrize(
    ("value", "keys", "message"),
    [
        (
            None,
            {},
            "1.parquet, row group 1, row 4, column 'price': found null; expected a finite number. Set `default`",
        ),
        (float("inf"), {"default": 1}, "row 4, column 'price': found inf; expected a finite number. Mend the file."),
        (
            -1,
            {"transform": "log1p"},
            "row 4, column 'price': found -1.0; expected a number above -1, because of `log1p`",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_named(tmp_path: Path, value: Any, keys: dict[str, Any], message: str) -> None:
    path = write(tmp_path, {"price": [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, value, 11]})
    with pytest.raises(DataError) as error:
        learn(schema(price={"kind": "number", "standardise": "learn", **keys}), path)
    assert message in str(error.value)


def test_batches_want_a_schema_that_has_learnt(tmp_path: Path) -> None:
    asked = schema(price={"kind": "number", "standardise": "learn"})
    path = write(tmp_path, {"price": [1.0, 3.0], "click": [0, 1]})
    with pytest.raises(
        ValueError,
        match=r"features price: found something still to be learnt; call pipeline.learn first",
    ):
        BatchReader(ParquetDataset(path, asked), 2)
    (batch,) = BatchReader(ParquetDataset(path, learn(asked, path)), 2, shuffle=False).epoch()
    assert batch.dense_BF.tolist() == [[-1], [1]]


@pytest.mark.parametrize(
    ("user", "other", "values"), [([1, 2], ["1", "2"], "integers"), (["1", "2"], [1, 2], "strings")]
)
def test_the_hash_of_an_integer_is_not_taken_for_that_of_its_text(
    tmp_path: Path, user: list[Any], other: list[Any], values: str
) -> None:
    hashed = {"kind": "id", "buckets": 50, "dim": 4}
    asked = schema(user=hashed, users={**hashed, "kind": "id_list"}, gone={**hashed, "managed": 9, "buckets": None})
    columns = {"users": [user, []], "gone": pa.nulls(2), "click": [0, 1]}
    learnt = learn(asked, write(tmp_path, {"user": user, **columns}))
    found = [getattr(learnt.features[name], "values", "") for name in ("user", "users", "gone")]
    assert found == [values, values, None]
    assert learn(learnt, write(tmp_path, {"user": other, **columns})).digest() == learnt.digest()
    ParquetDataset(write(tmp_path, {"user": pa.nulls(2), **columns}), learnt)
    with pytest.raises(
        DataError, match=rf"column 'user': found type .*; expected {values}, as `values` says, for feat"
    ):
        ParquetDataset(write(tmp_path, {"user": other, **columns}), learnt)
    with pytest.raises(DataError, match=rf"column 'users': .*; expected lists of {values}, as `values` says, for feat"):
        ParquetDataset(write(tmp_path, {"user": user, **columns, "users": [other, []]}), learnt)


def test_values_have_no_meaning_where_nothing_is_hashed() -> None:
    with pytest.raises(ValueError, match="values belongs to buckets and managed; remove it"):
        schema(user={"kind": "id", "range": 5, "dim": 4, "values": "integers"})
