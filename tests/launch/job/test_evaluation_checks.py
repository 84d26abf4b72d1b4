"""What evaluation could not use is refused before the first step: columns to group and slice by, labels, weights."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.launch.config.config import load_config
from rankmixer.launch.preflight import check_job
from rankmixer.launch.rows.paths import check_evaluation, check_training
from rankmixer.pipeline.metrics.groups import check_groupable, group_values
from rankmixer.pipeline.metrics.slices import check_sliceable, values_of
from tests.helpers.job import ROWS, Job

DAY, TIME = datetime.date(2020, 2, 29), datetime.time(12, 30)
GROUPS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.uint64(), [2**64 - 1, 0, 2**63]),
    (pa.int8(), [-1, 0, 1]),
    (pa.bool_(), [True, False, None]),
    (pa.date32(), [DAY, DAY + datetime.timedelta(1), None]),
    (pa.date64(), [DAY, DAY + datetime.timedelta(1), None]),
    (pa.time32("s"), [TIME, datetime.time(), None]),
    (pa.time64("us"), [TIME, datetime.time(), None]),
    (pa.timestamp("ns", "UTC"), [0, 1, None]),
    (pa.duration("ms"), [0, 1, None]),
    (pa.decimal128(20, 2), [decimal.Decimal("1.50"), decimal.Decimal("-1.5"), None]),
    (pa.decimal256(50, 0), [decimal.Decimal(10**40), decimal.Decimal(10**40 + 1), None]),
    (pa.string(), ["a", "", None]),
    (pa.large_string(), ["a", "", None]),
    (pa.binary(), [b"\xff", b"", None]),
    (pa.binary(2), [b"\xff\x00", b"\x00\xff", None]),
    (pa.dictionary(pa.int32(), pa.string()), ["a", "b", None]),
    (pa.dictionary(pa.int32(), pa.int64()), [5, 7, None]),
]
REFUSED = [pa.float16(), pa.float32(), pa.float64(), pa.null(), pa.list_(pa.int64()), pa.struct({"a": pa.int8()})]


@pytest.mark.parametrize(("type_", "values"), GROUPS, ids=[str(type_) for type_, _ in GROUPS])
def test_equal_values_are_one_group_and_others_are_not(type_: pa.DataType, values: list[Any], tmp_path: Path) -> None:
    array = pa.array([*values, *values], type_)
    pq.write_table(pa.table({"group": array}), tmp_path / "a.parquet")
    read = pq.read_table(tmp_path / "a.parquet")["group"].combine_chunks()
    found = group_values(read, "group")
    assert found.type == check_groupable(read.type, "group")
    as_python = found.to_pylist()
    assert as_python[:3] == as_python[3:]
    assert len(set(as_python)) == 3
    assert [value is None for value in as_python[:3]] == [value is None for value in values]


@pytest.mark.parametrize("type_", REFUSED, ids=str)
def test_what_cannot_be_grouped_exactly_is_refused(type_: pa.DataType) -> None:
    with pytest.raises(ValueError, match=r"metrics.group: column user is .*; expected integers, strings, bytes, bool"):
        check_groupable(type_, "user")


@pytest.mark.parametrize(
    "type_", [pa.binary(2), pa.binary(), pa.list_(pa.int8()), pa.struct({"a": pa.int8()})], ids=str
)
def test_what_cannot_be_sliced_is_refused(type_: pa.DataType) -> None:
    with pytest.raises(ValueError, match=r"metrics.slices: column city is "):
        check_sliceable(type_, "city")


@pytest.mark.parametrize("type_", [*(type_ for type_, _ in GROUPS), pa.float32(), pa.null(), pa.duration("s")], ids=str)
def test_what_is_accepted_for_slices_can_be_sliced(type_: pa.DataType) -> None:
    try:
        check_sliceable(type_, "city")
    except ValueError:
        return
    assert values_of(pa.nulls(2, type_), "city").to_pylist() == [None, None]


def with_column(folder: Path, name: str, values: pa.Array) -> None:
    """Give the 50 rows of one file of a job's folder another column, or the column other values."""
    table = pq.read_table(folder / "a.parquet")
    number = table.column_names.index(name) if name in table.column_names else table.num_columns
    table = table if number == table.num_columns else table.remove_column(number)
    pq.write_table(table.add_column(number, name, values), folder / "a.parquet", row_group_size=20)


def refused(job: Job, *overrides: str) -> str:
    """What train, its component, and evaluate and its component say before anything starts: the same."""
    config = load_config(str(job.config), list(overrides))
    with pytest.raises(ValueError) as by_train:  # noqa: PT011
        check_training(config)
    with pytest.raises(ValueError) as by_evaluate:  # noqa: PT011
        check_evaluation(config, str(job.folder / "test"))
    said = {str(by_train.value), str(by_evaluate.value)}
    for command in ("train", "evaluate"):
        message = check_job([command, "--config", str(job.config), *overrides], 1, files_are_here=True) or ""
        said.add(message.removeprefix("rankmixer: error: "))
    (one,) = said
    return one


@pytest.mark.parametrize("key", ["metrics.group=shares", "metrics.slices=[lists]", "metrics.group=absent"])
def test_columns_of_the_evaluation_are_checked_by_every_command(key: str, tmp_path: Path) -> None:
    job = Job(tmp_path)
    for file in ("a", "b"):
        table = pq.read_table(tmp_path / "test" / f"{file}.parquet")
        table = table.append_column("shares", table["row"].cast(pa.float64()))
        table = table.append_column("lists", table["tags"])
        pq.write_table(table, tmp_path / "test" / f"{file}.parquet")
    said = refused(job, key)
    assert key.split("=")[1].strip("[]") in said
    assert refused(job, key) == said


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (pa.array([0.5] * 33 + [1.5] + [0.0] * 16), "1.5; expected a label from 0 to 1"),
        (pa.array([1] * 33 + [-1] + [0] * 16, pa.int8()), "-1; expected a label from 0 to 1"),
        (pa.array([1] * 33 + [None] + [0] * 16, pa.int8()), "null; expected a label from 0 to 1"),
    ],
)
def test_labels_that_a_footer_gives_away(values: pa.Array, found: str, tmp_path: Path) -> None:
    job = Job(tmp_path)
    with_column(tmp_path / "test", "click", values)
    said = refused(job)
    assert said.startswith(f"{tmp_path}/test/a.parquet, row group 1, row 33, column 'click': found {found}")


def test_weights_that_a_footer_gives_away(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for part in ("train", "test"):
        with_column(tmp_path / part, "weight", pa.array(np.ones(50)))
        (tmp_path / part / "b.parquet").unlink()
    with_column(tmp_path / "test", "weight", pa.array([1.0] * 7 + [-2.0] + [1.0] * 42))
    said = refused(job, "feature_schema.weight=weight")
    assert (
        "test/a.parquet, row group 0, row 7, column 'weight': found -2.0; expected a finite weight of at least" in said
    )


def test_a_label_that_float32_takes_for_1_is_right(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with_column(tmp_path / "test", "click", pa.array([1.0 + 1e-12] * 50))
    check_training(load_config(str(job.config)))


def test_ids_of_another_kind_than_those_trained_on_are_found_before_the_first_step(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for file in ("a", "b"):
        table = pq.read_table(tmp_path / "test" / f"{file}.parquet")
        pq.write_table(table.set_column(1, "city", table["user"]), tmp_path / "test" / f"{file}.parquet")
    with pytest.raises(ValueError, match=r"test/a.parquet, column 'city': found type int64; expected strings"):
        check_training(load_config(str(job.config)))


def test_a_stream_needs_the_columns_of_the_evaluation_in_the_training_files(tmp_path: Path) -> None:
    job = Job(tmp_path)
    stream = ["data.stream={}", "train.epochs=1", "train.max_steps=9", "data.evaluate=null", "metrics.group=price"]
    with pytest.raises(ValueError, match=r"metrics.group: column price is double"):
        check_training(load_config(str(job.config), stream))


def test_soft_labels_train_and_are_evaluated(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for part in ("train", "test"):
        for file in ("a", "b"):
            table = pq.read_table(tmp_path / part / f"{file}.parquet")
            soft = pa.array(np.arange(table.num_rows) % 3 / 2)  # 0, 0.5 and 1
            table = table.set_column(table.column_names.index("click"), "click", soft)
            pq.write_table(table, tmp_path / part / f"{file}.parquet")
    result = job.result(1, "train", "train.epochs=1")
    assert result["click/soft_labels"] == ROWS // 3
    assert "like/soft_labels" not in result
    assert 0 < result["click/auc"] < 1
    assert result["click/logloss"] > 0.3
