"""Values that are missing, bad or impossible: what mends them, what is counted, and what the errors say."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchrec.sparse.jagged_tensor_validator import validate_keyed_jagged_tensor

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema

NAN, INF = float("nan"), float("inf")
ROW_GROUP = 3  # rows; the files have four, so that the last row is row 3 of the file and row 0 of row group 1


def read(
    tmp_path: Path,
    columns: dict[str, list[Any] | pa.Array],
    features: dict[str, Any],
    shuffle: bool = False,
    **schema: Any,
) -> tuple[Batch, dict[str, int]]:
    """The columns as one batch, and what was mended."""
    arrays = {name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()}
    rows = len(next(iter(arrays.values())))
    table = pa.table({"click": pa.array([0, 1] * rows).slice(0, rows)} | arrays)
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=ROW_GROUP)
    made = Schema.model_validate({"features": features, "labels": {"click": {}}, **schema})
    reader = BatchReader(ParquetDataset(str(tmp_path), made), batch_size=rows, shuffle=shuffle, window_rows=2)
    (batch,) = reader.epoch()
    assert validate_keyed_jagged_tensor(batch.sparse)
    return batch, dict(reader.mended)


def ids(batch: Batch, key: str) -> list[list[int]]:
    return [row.tolist() for row in batch.sparse[key].to_dense()]


def refused(tmp_path: Path, columns: dict[str, Any], features: dict[str, Any], **schema: Any) -> str:
    """The error, without the folder; the same in any order."""
    messages = set()
    for shuffle in (False, True):
        with pytest.raises(DataError) as error:
            read(tmp_path, columns, features, shuffle, **schema)
        messages.add(str(error.value).replace(f"{tmp_path}/", ""))
    (message,) = messages
    return message


USER = {"user": {"kind": "id", "range": 9, "dim": 4}}
SEEN = {"seen": {"kind": "id_list", "range": 9, "dim": 4}}
PRICE = {"price": {"kind": "number"}}


@pytest.fixture
def city(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "city.txt").write_text("Rome\nOslo\n")
    return {"kind": "id", "vocabulary": str(tmp_path / "city.txt"), "dim": 4}


@pytest.mark.parametrize("bad", [9, -1, 2**40])
def test_an_id_out_of_range_is_an_error(tmp_path: Path, bad: int) -> None:
    assert refused(tmp_path, {"user": [0, 8, 1, bad]}, USER) == (
        f"data.parquet, row group 1, row 3, column 'user': found {bad}; expected an id from 0 to 8. "
        "Raise `range`, use `buckets`, or set `on_bad: reserve` or `on_bad: drop`."
    )


def test_an_id_out_of_range_in_a_list_is_shown(tmp_path: Path) -> None:
    assert refused(tmp_path, {"seen": [[0, 8], None, [1, None, 12, 3], []]}, SEEN).startswith(
        "data.parquet, row group 0, row 2, column 'seen': found 12; expected an id from 0 to 8."
    )
    texts = {"seen": {**SEEN["seen"], "separator": "|"}}
    assert refused(tmp_path, {"seen": ["0|1", None, "", "3||x|4"]}, texts).startswith(
        "data.parquet, row group 1, row 3, column 'seen': found 'x'; expected an id from 0 to 8."
    )


def test_an_unknown_word_can_be_an_error(tmp_path: Path, city: dict[str, Any]) -> None:
    message = refused(tmp_path, {"city": ["Rome", "Bonn", "Oslo", "Rome"]}, {"city": {**city, "on_bad": "fail"}})
    assert message == (
        "data.parquet, row group 0, row 1, column 'city': found 'Bonn'; expected a value of the vocabulary city.txt. "
        "Add it there, or set `on_bad: reserve` or `on_bad: drop`."
    )


def test_unknown_words_have_the_reserved_row(tmp_path: Path, city: dict[str, Any]) -> None:
    batch, mended = read(tmp_path, {"city": ["Rome", "Bonn", "Oslo", "Ulm"]}, {"city": city})
    assert ids(batch, "city") == [[0], [2], [1], [2]]
    assert mended == {"city: unknown -> reserved": 2}


def test_ids_out_of_range_can_have_the_reserved_row(tmp_path: Path) -> None:
    features = {"seen": {**SEEN["seen"], "on_bad": "reserve"}}
    batch, mended = read(tmp_path, {"seen": [[9, 1], [], [-5, 99], [8]]}, features)
    assert ids(batch, "seen") == [[9, 1], [], [9, 9], [8]]
    assert mended == {"seen: out of range -> reserved": 3}


def test_a_dropped_row_counts_for_nothing(tmp_path: Path) -> None:
    features = {
        "user": {**USER["user"], "on_bad": "drop"},
        "seen": {**SEEN["seen"], "on_bad": "drop", "weights": "seen_weights"},
        "other": {"kind": "id", "buckets": 7, "dim": 4},
    }
    columns = {
        "user": [1, 99, 2, 3],
        "seen": [[1, 2], [3], [4, 44, 444], [5]],
        "seen_weights": [[0.1, 0.2], [0.3], [0.4, 0.4, 0.4], [0.5]],
        "other": [1, 2, 3, 4],
        "importance": [1.0, 2.0, 3.0, 4.0],
    }
    batch, mended = read(tmp_path, columns, features, weight="importance")
    assert ids(batch, "user") == [[1], [], [], [3]]
    assert ids(batch, "seen") == [[1, 2], [], [], [5]]
    assert [len(row) for row in ids(batch, "other")] == [1, 0, 0, 1]
    np.testing.assert_allclose(batch.sparse["seen"].weights(), [0.1, 0.2, 0.5], rtol=1e-6)
    assert batch.weights_B.tolist() == [1, 0, 0, 4]
    assert mended == {"user: out of range -> row dropped": 1, "seen: out of range -> row dropped": 1}


def test_nulls_are_empty_bags_unless_there_is_a_default(tmp_path: Path, city: dict[str, Any]) -> None:
    features = {
        "user": USER["user"],
        "member": {**USER["user"], "column": "user", "default": 7},
        "city": {**city, "default": "Oslo"},
        "seen": SEEN["seen"],
        "viewed": {**SEEN["seen"], "column": "seen", "default": 6},
    }
    columns = {
        "user": [1, None, 2, None],
        "city": [None, "Rome", None, "Ulm"],
        "seen": [[1, None], None, [], [2]],
    }
    batch, mended = read(tmp_path, columns, features)
    assert ids(batch, "user") == [[1], [], [2], []]
    assert ids(batch, "member") == [[1], [7], [2], [7]]
    assert ids(batch, "city") == [[1], [0], [1], [2]]
    assert ids(batch, "seen") == [[1], [], [], [2]]
    assert ids(batch, "viewed") == [[1, 6], [6], [], [2]]
    assert mended == {
        "user: null -> empty": 2,
        "member: null -> default": 2,
        "city: null -> default": 2,
        "city: unknown -> reserved": 1,
        "seen: null -> empty": 2,
        "viewed: null -> default": 2,
    }


def test_weights_of_lists_follow_their_ids(tmp_path: Path) -> None:
    weighted = {**SEEN["seen"], "weights": "w"}
    columns = {"seen": [[1, None, 2], None, [], [3], None], "w": [[0.1, 0.2, 0.3], None, [], [0.4], []]}
    batch, _ = read(tmp_path, columns, {"seen": weighted})
    assert ids(batch, "seen") == [[1, 2], [], [], [3], []]
    np.testing.assert_allclose(batch.sparse.weights(), [0.1, 0.3, 0.4], rtol=1e-6)
    batch, _ = read(tmp_path, columns, {"seen": {**weighted, "default": 8}})
    assert ids(batch, "seen") == [[1, 8, 2], [8], [], [3], [8]]
    np.testing.assert_allclose(batch.sparse.weights(), [0.1, 1, 0.3, 1, 0.4, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ([[0.1], [0.2], [], [0.3, 0.4]], "found 2 weights for 1 ids; expected one weight for each id. Mend the row."),
        ([[0.1], [0.2], [], None], "found 0 weights for 1 ids; expected one weight for each id. Mend the row."),
        ([[0.1], [0.2], [], [NAN]], "found NaN; expected a finite weight for each id. Mend the row."),
        ([[0.1], [0.2], [], [-INF]], "found -inf; expected a finite weight for each id. Mend the row."),
        ([[0.1], [0.2], [], [None]], "found NaN; expected a finite weight for each id. Mend the row."),
    ],
)
def test_wrong_weights_of_a_list(tmp_path: Path, weights: list[Any], found: str) -> None:
    features = {"seen": {**SEEN["seen"], "weights": "w"}}
    message = refused(tmp_path, {"seen": [[1], [2], [], [3]], "w": weights}, features)
    assert message == f"data.parquet, row group 1, row 3, column 'w': {found}"


def test_numbers_are_transformed_and_bucketed(tmp_path: Path) -> None:
    features = {
        "price": {"kind": "number", "transform": "log1p"},
        "bucket": {"kind": "number", "column": "price", "boundaries": [2, 3], "dim": 4},
        "scaled": {"kind": "number", "column": "price", "standardise": [2, 4]},
    }
    batch, mended = read(tmp_path, {"price": [0, 2, 3, 6]}, features)
    expected = np.stack([np.log1p([0, 2, 3, 6]), [-0.5, 0, 0.25, 1]], axis=1)
    np.testing.assert_allclose(batch.dense_BF, expected, rtol=1e-6)
    assert ids(batch, "bucket") == [[0], [1], [2], [2]]
    assert mended == {}


def test_a_default_replaces_null_and_nan(tmp_path: Path) -> None:
    features = {
        "price": {**PRICE["price"], "default": 0.5},
        "bucket": {"kind": "number", "column": "price", "boundaries": [1.0], "dim": 4, "default": 3},
        "count": {"kind": "number", "default": 7, "transform": "log1p"},
    }
    batch, mended = read(tmp_path, {"price": [1.5, None, NAN, 2.5], "count": [None, 1, 2, 3]}, features)
    np.testing.assert_allclose(batch.dense_BF[:, 0], [1.5, 0.5, 0.5, 2.5])
    np.testing.assert_allclose(batch.dense_BF[:, 1], np.log1p([7, 1, 2, 3]), rtol=1e-6)
    assert ids(batch, "bucket") == [[1], [1], [1], [1]]
    assert mended == {
        "price: null -> default": 1,
        "price: NaN -> default": 1,
        "bucket: null -> default": 1,
        "bucket: NaN -> default": 1,
        "count: null -> default": 1,
    }


@pytest.mark.parametrize(
    ("value", "keys", "found"),
    [
        (None, {}, "found null; expected a finite number. Set `default`, or mend the file."),
        (NAN, {}, "found NaN; expected a finite number. Set `default`, or mend the file."),
        (INF, {}, "found inf; expected a finite number. Mend the file."),
        (-INF, {"default": 1}, "found -inf; expected a finite number. Mend the file."),
        (1e300, {}, "found 1e+300; expected a finite number. Mend the file."),
        (NAN, {"boundaries": [1], "dim": 4}, "found NaN; expected a finite number. Set `default`, or mend the file."),
        (INF, {"boundaries": [1], "dim": 4, "default": 1}, "found inf; expected a finite number. Mend the file."),
        (-1.0, {"transform": "log1p"}, "found -1.0; expected a number above -1, because of `log1p`. Mend the file."),
        (-7.5, {"transform": "log1p"}, "found -7.5; expected a number above -1, because of `log1p`. Mend the file."),
    ],
)
def test_impossible_numbers(tmp_path: Path, value: float | None, keys: dict[str, Any], found: str) -> None:
    message = refused(tmp_path, {"price": [1.0, 2.0, 3.0, value]}, {"price": {"kind": "number", **keys}})
    assert message == f"data.parquet, row group 1, row 3, column 'price': {found}"


@pytest.mark.parametrize(
    ("value", "found"), [(None, "null"), (NAN, "NaN"), (1.5, "1.5"), (-0.25, "-0.25"), (INF, "inf"), (-INF, "-inf")]
)
def test_impossible_labels(tmp_path: Path, value: float | None, found: str) -> None:
    message = refused(tmp_path, {"click": [0.0, value, 1.0, 0.5], "user": [1, 2, 3, 4]}, USER)
    assert message == (
        f"data.parquet, row group 0, row 1, column 'click': found {found}; expected a label from 0 to 1. "
        "Mend it or leave the row out."
    )


@pytest.mark.parametrize(("value", "found"), [(None, "null"), (NAN, "NaN"), (-1.0, "-1.0"), (INF, "inf")])
def test_impossible_weights(tmp_path: Path, value: float | None, found: str) -> None:
    message = refused(tmp_path, {"user": [1, 2, 3, 4], "w": [1.0, 0.0, value, 2.0]}, USER, weight="w")
    assert message == (
        f"data.parquet, row group 0, row 2, column 'w': found {found}; expected a finite weight of at least 0. "
        "Mend it, or write weight 0 for rows that should not count."
    )


def test_labels_and_weights_of_any_type(tmp_path: Path) -> None:
    columns = {"user": [1, 2, 3, 4], "click": [True, False, True, True], "w": pa.array([1, 2, 0, 3], pa.uint8())}
    batch, _ = read(tmp_path, columns, USER, weight="w")
    assert batch.labels_BK.tolist() == [[1], [0], [1], [1]]
    assert batch.weights_B.tolist() == [1, 2, 0, 3]


def test_the_row_of_an_error_counts_within_its_file(tmp_path: Path) -> None:
    schema = Schema.model_validate({"features": USER, "labels": {"click": {}}})
    for name, users in (("a", [1] * 8), ("b", [1] * 6 + [77, 1])):
        table = pa.table({"user": users, "click": [0] * 8})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
    for shuffle in (False, True):
        reader = BatchReader(ParquetDataset(str(tmp_path), schema), 16, shuffle=shuffle)
        with pytest.raises(DataError, match=r"b.parquet, row group 1, row 6, column 'user': found 77;"):
            list(reader.epoch())


def test_a_default_where_files_differ_in_width(tmp_path: Path) -> None:
    schema = Schema.model_validate({"features": {"price": {**PRICE["price"], "default": 4}}, "labels": {"click": {}}})
    for name, type_ in (("a", pa.int8()), ("b", pa.float64())):
        pq.write_table(pa.table({"price": pa.array([1, None], type_), "click": [0, 1]}), tmp_path / f"{name}.parquet")
    reader = BatchReader(ParquetDataset(str(tmp_path), schema), 4, shuffle=False)
    (batch,) = reader.epoch()
    assert batch.dense_BF.tolist() == [[1], [4], [1], [4]]
    assert reader.mended == {"price: null -> default": 2}


def test_a_long_list_keeps_its_newest_ids_and_their_weights(tmp_path: Path) -> None:
    columns = {
        "seen": [[1, 2, 3], None, [4, None, 5, 6], [7]],
        "w": [[0.1, 0.2, 0.3], None, [0.4, 0.9, 0.5, 0.6], [0.7]],
    }
    seen = {**SEEN["seen"], "weights": "w", "truncate": 2}
    batch, mended = read(tmp_path, columns, {"seen": seen})
    assert ids(batch, "seen") == [[2, 3], [], [5, 6], [7]]
    np.testing.assert_allclose(batch.sparse.weights(), [0.2, 0.3, 0.5, 0.6, 0.7])
    assert mended == {"seen: null -> empty": 2}
    batch, _ = read(tmp_path, columns, {"seen": {**seen, "keep": "first"}})
    assert ids(batch, "seen") == [[1, 2], [], [4, 5], [7]]  # a null that is left out takes no place
    np.testing.assert_allclose(batch.sparse.weights(), [0.1, 0.2, 0.4, 0.5, 0.7])
    batch, _ = read(tmp_path, columns, {"seen": {**seen, "truncate": 3, "keep": "first", "default": 8}})
    assert ids(batch, "seen") == [[1, 2, 3], [8], [4, 8, 5], [7]]


def test_what_truncation_removes_is_not_judged(tmp_path: Path) -> None:
    columns = {"seen": ["99|1|1", "", "77|1|2", "1|2|88|3"]}
    seen = {**SEEN["seen"], "separator": "|", "truncate": 2}
    message = refused(tmp_path, columns, {"seen": seen})
    assert message.startswith(
        "data.parquet, row group 1, row 3, column 'seen': found '88'; expected an id from 0 to 8."
    )
    batch, mended = read(tmp_path, columns, {"seen": {**seen, "on_bad": "drop"}})
    assert ids(batch, "seen") == [[1, 1], [], [1, 2], []]
    assert mended == {"seen: out of range -> row dropped": 1}
