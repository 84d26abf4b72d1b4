import decimal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema

FEATURES: dict[str, dict[str, Any]] = {
    "user": {"kind": "id", "range": 9, "dim": 4},
    "city": {"kind": "id", "buckets": 9, "dim": 4},
    "tags": {"kind": "id_list", "buckets": 9, "dim": 4, "weights": "tag_weights"},
    "seen": {"kind": "id_list", "range": 9, "dim": 4},
    "genres": {"kind": "id_list", "buckets": 9, "separator": "|", "dim": 4},
    "price": {"kind": "number"},
}
SCHEMA = Schema.model_validate({"features": FEATURES, "labels": {"click": {}}, "weight": "importance"})
COLUMNS: dict[str, pa.Array] = {
    "user": pa.array([1, 2]),
    "city": pa.array(["a", "b"]),
    "tags": pa.array([["x"], []]),
    "tag_weights": pa.array([[1.0], []]),
    "seen": pa.array([[1], [2, 3]]),
    "genres": pa.array(["a|b", ""]),
    "price": pa.array([1.5, 2.5]),
    "click": pa.array([0, 1]),
    "importance": pa.array([1.0, 0.5]),
    "session": pa.array(["s", "t"]),
}


def write(path: Path, **changes: pa.Array | None) -> str:
    columns = {name: array for name, array in (COLUMNS | changes).items() if array is not None}
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    dataset = ParquetDataset(write(tmp_path / "a.parquet", other=pa.array([1, 2])), SCHEMA, keys=["session", "user"])
    assert sorted(dataset.uses) == sorted(COLUMNS)
    assert dataset.uses["user"] == 2
    predicting = ParquetDataset(write(tmp_path / "b.parquet", click=None, importance=None), SCHEMA, labels=False)
    assert "click" not in predicting.uses
    assert "importance" not in predicting.uses


@pytest.mark.parametrize("columnwise", [1, 100])
def test_columns_are_decoded(tmp_path: Path, columnwise: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankmixer.pipeline.files.decode.COLUMNWISE_ROWS", columnwise)
    dataset = ParquetDataset(write(tmp_path / "a.parquet"), SCHEMA)
    with ExitStack() as stack:
        read = dataset.decoder.open(dataset.files.files[0], 0, 2, stack)
        chunks = {name: read(name) for name in dataset.uses}
    assert {name: pa.chunked_array(chunks[name]).to_pylist() for name in dataset.uses} == {
        name: COLUMNS[name].to_pylist() for name in dataset.uses
    }
    assert pa.types.is_dictionary(chunks["genres"][0].type)


def test_a_dictionary_is_not_asked_for_where_values_hardly_repeat(tmp_path: Path) -> None:
    words = [f"word-{number}" for number in range(50)]
    column = pa.array(words)
    table = pa.table({"city": column, "genres": pa.array(["a"] * 50), "click": pa.array([0] * 50)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=25)
    features = {name: FEATURES[name] for name in ("city", "genres")}
    schema = Schema.model_validate({"features": features, "labels": {"click": {}}})
    dataset = ParquetDataset(str(tmp_path), schema)
    with ExitStack() as stack:
        reads = [dataset.decoder.open(dataset.files.files[0], group, 25, stack) for group in range(2)]
        (first,), (second,) = (read("city") for read in reads)
        assert first.to_pylist() + second.to_pylist() == words
        assert pa.types.is_dictionary(first.type)
        assert not pa.types.is_dictionary(second.type)
        assert pa.types.is_dictionary(reads[1]("genres")[0].type)


ACCEPTED = [
    ("user", pa.array([1, 2], pa.uint8())),
    ("user", pa.array([True, False])),
    ("user", pa.array([1, 2]).dictionary_encode()),
    ("city", pa.array([1, 2], pa.int16())),
    ("city", pa.array(["a", "b"], pa.large_string())),
    ("city", pa.array(["a", "b"], pa.string_view())),
    ("city", pa.array(["a", "b"]).dictionary_encode()),
    ("tags", pa.array([[1], []], pa.large_list(pa.int32()))),
    ("seen", pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2))),
    ("tag_weights", pa.array([[1], []], pa.list_(pa.int8()))),
    ("genres", pa.array(["a", "b"]).dictionary_encode()),
    ("price", pa.array([1, 2], pa.int8())),
    ("price", pa.array([True, False])),
    ("price", pa.array([decimal.Decimal("1.5"), decimal.Decimal("2.5")])),
    ("click", pa.array([True, False])),
    ("click", pa.array([0.5, 1.0], pa.float32())),
]


@pytest.mark.parametrize(("column", "array"), ACCEPTED, ids=lambda value: str(getattr(value, "type", value)))
def test_types_that_will_do(tmp_path: Path, column: str, array: pa.Array) -> None:
    dataset = ParquetDataset(write(tmp_path / "a.parquet", **{column: array}), SCHEMA)
    (batch,) = BatchReader(dataset, 2, shuffle=False).epoch()
    assert len(batch.weights_B) == 2


LIST, STRUCT = pa.array([[1], [2]]), pa.array([{"a": 1}, {"a": 2}])
REFUSED = [
    (
        "user",
        pa.array(["1", "2"]),
        "found type string; expected integers, because of `range`, for feature 'user'. Use `b",
    ),
    ("user", LIST, "found type list<element: int64>; expected integers, because of `range`, for feature 'user'"),
    ("city", LIST, "expected integers or strings, for feature 'city'. Use `kind: id_list` for lists"),
    ("city", pa.array([b"a", b"b"], pa.binary(1)), "found type fixed_size_binary[1]; expected integers or strings"),
    (
        "city",
        pa.array([1, 2], pa.timestamp("us")),
        "found type timestamp[us]; expected integers or strings, for feature",
    ),
    ("city", STRUCT, "found type struct<a: int64>; expected integers or strings"),
    (
        "tags",
        pa.array(["a", "b"]),
        "found type string; expected lists of integers or strings, for feature 'tags'. Use `kind",
    ),
    ("tags", pa.array([[[1]], []]), "expected lists of integers or strings"),
    ("tags", pa.array([[{"a": 1}], []]), "expected lists of integers or strings"),
    ("tag_weights", pa.array([1.0, 2.0]), "expected lists of numbers, for weights of feature 'tags'. Write one number"),
    ("seen", pa.array([["a"], []]), "expected lists of integers, because of `range`, for feature 'seen'"),
    ("genres", LIST, "expected strings, because of `separator`, for feature 'genres'. Remove `separator` for a list"),
    ("price", pa.array(["1", "2"]), "expected numbers, for feature 'price'. For ids or strings use `kind: id`."),
    ("price", LIST, "expected numbers, for feature 'price'"),
    ("click", pa.array(["0", "1"]), "expected numbers from 0 to 1, for label 'click'. Convert the column."),
    (
        "importance",
        pa.array(["0", "1"]),
        "expected numbers, for example weights. Convert the column, or remove `weight`.",
    ),
]


@pytest.mark.parametrize(("column", "array", "message"), REFUSED, ids=range(len(REFUSED)))
def test_types_that_will_not_do_are_named(tmp_path: Path, column: str, array: pa.Array, message: str) -> None:
    good, bad = write(tmp_path / "a.parquet"), write(tmp_path / "b.parquet", **{column: array})
    with pytest.raises(DataError) as error:
        ParquetDataset([good, bad], SCHEMA)
    assert str(error.value).startswith(f"{bad}, column '{column}': found type ")
    assert message in str(error.value)


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", price=None, prize=pa.array([1.5, 2.5]))
    with pytest.raises(DataError) as error:
        ParquetDataset(path, SCHEMA)
    assert str(error.value).startswith(
        f"{path}, column 'price': found no such column; expected one, for feature 'price'. Did you mean 'prize'? "
        "The file has: user, city, "
    )


def test_a_column_given_twice_is_named(tmp_path: Path) -> None:
    arrays = [*COLUMNS.values(), COLUMNS["price"]]
    pq.write_table(pa.Table.from_arrays(arrays, names=[*COLUMNS, "price"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'price': found 2 columns of that name; expected one"):
        ParquetDataset(str(tmp_path), SCHEMA)


def test_files_must_agree_on_strings_and_on_keys(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", city=pa.array([1, 2]))
    with pytest.raises(
        DataError, match=r"b.parquet, column 'city': found type int64; expected string as in .*a.parquet"
    ):
        ParquetDataset(str(tmp_path), SCHEMA)
    write(tmp_path / "b.parquet", session=pa.array([1, 2]))
    assert ParquetDataset(str(tmp_path), SCHEMA).files.num_rows == 4
    with pytest.raises(DataError, match=r"b.parquet, column 'session': found type int64; expected string"):
        ParquetDataset(str(tmp_path), SCHEMA, keys=["session"])
    with pytest.raises(DataError, match=r"a.parquet, column 'sesion': found no such column.*The file has: user, "):
        ParquetDataset(str(tmp_path), SCHEMA, keys=["sesion"])


def test_widths_may_differ_between_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", tags=pa.array([[1], []], pa.large_list(pa.int16())), price=pa.array([1, 2]))
    write(tmp_path / "b.parquet", tags=pa.array([[1], []]))
    assert ParquetDataset(ParquetFiles.open(str(tmp_path)), SCHEMA).files.num_rows == 4


def test_a_default_must_fit_the_column(tmp_path: Path) -> None:
    features = {"user": {"kind": "id", "buckets": 9, "dim": 4, "default": "nobody"}}
    schema = Schema.model_validate({"features": features, "labels": {"click": {}}})
    with pytest.raises(ValueError, match="feature 'user': default 'nobody' is not an integer as the column is"):
        ParquetDataset(write(tmp_path / "a.parquet"), schema)


def test_no_rows_at_all(tmp_path: Path) -> None:
    pq.write_table(pa.table(COLUMNS).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: found 1 files without a row; expected at least one row"):
        ParquetDataset(str(tmp_path), SCHEMA)


@pytest.mark.parametrize("columnwise", [1, 100])
def test_a_damaged_row_group_is_named(tmp_path: Path, columnwise: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankmixer.pipeline.files.decode.COLUMNWISE_ROWS", columnwise)
    path = Path(write(tmp_path / "a.parquet"))
    whole = path.read_bytes()
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    path.write_bytes(b"PAR1" + b"\xff" * (pages - 4) + whole[pages:])
    dataset = ParquetDataset(str(path), SCHEMA)
    with pytest.raises(DataError, match=r"a.parquet, row group 0: found nothing readable \(.*\); expected"):
        list(BatchReader(dataset, 2).epoch())
