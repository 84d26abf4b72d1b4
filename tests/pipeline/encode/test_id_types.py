"""Ids in the types that warehouses, Spark and pandas write are those of the plain ones, or are refused by row."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.learn.build_vocabulary import build_vocabularies
from rankmixer.pipeline.profile.data_profile import DataProfile
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema

INTEGERS = [3, None, 0, 7, 3]
TEXT = ["Rome", None, "Osl\u00f8", "", "Rome"]
DECIMALS = [None if value is None else Decimal(value) for value in INTEGERS]
FLOATS = [None if value is None else float(value) for value in INTEGERS]
BYTES = [None if value is None else value.encode() for value in TEXT]
SAME: dict[str, tuple[pa.Array, pa.Array]] = {
    "decimal(38, 0)": (pa.array(INTEGERS), pa.array(DECIMALS, pa.decimal128(38, 0))),
    "decimal(9, 2)": (pa.array(INTEGERS), pa.array(DECIMALS, pa.decimal128(9, 2))),
    "decimal256": (pa.array(INTEGERS), pa.array(DECIMALS, pa.decimal256(50, 3))),
    "double": (pa.array(INTEGERS), pa.array(FLOATS)),
    "NaN for null": (pa.array(INTEGERS), pa.array([np.nan if value is None else value for value in FLOATS])),
    "float": (pa.array(INTEGERS), pa.array(FLOATS, pa.float32())),
    "half": (pa.array(INTEGERS), pa.array(FLOATS, pa.float16())),
    "the largest": (pa.array([2**53 - 1, 1 - 2**53, None]), pa.array([2.0**53 - 1, 1 - 2.0**53, None])),
    "wide decimals": (pa.array([2**63 - 1, -(2**63)]), pa.array([Decimal(2**63 - 1), Decimal(-(2**63))])),
    "bytes": (pa.array(TEXT), pa.array(BYTES, pa.binary())),
    "large bytes": (pa.array(TEXT), pa.array(BYTES, pa.large_binary())),
    "dictionary of bytes": (pa.array(TEXT), pa.array(BYTES, pa.binary()).dictionary_encode()),
    "nulls": (pa.nulls(3, pa.int64()), pa.nulls(3)),
}
WAYS: dict[str, dict[str, Any]] = {
    "hashed": {"buckets": 1_000_003},
    "default": {"buckets": 1_000_003, "default": 5},
    "managed": {"managed": 1000},
}


def write(path: Path, ids: pa.Array, **columns: pa.Array) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table({"ids": ids, "click": np.arange(len(ids)) % 2, **columns}), path)
    return str(path)


def schema(**feature: Any) -> Schema:
    line = {"kind": "id", "dim": 4, **feature}
    return Schema.model_validate({"features": {"ids": line}, "labels": {"click": {}}})


def looked_up(paths: Any, schema: Schema, rows: int) -> tuple[list[int], list[int]]:
    """The ids of one batch, and how many each row has."""
    (batch,) = BatchReader(ParquetDataset(paths, schema), rows, shuffle=False).epoch()
    return batch.sparse.values().tolist(), batch.sparse.lengths().tolist()


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("way", WAYS)
def test_one_id_a_row(tmp_path: Path, name: str, way: str) -> None:
    plain, other = SAME[name]
    expected = looked_up(write(tmp_path / "plain.parquet", plain), schema(**WAYS[way]), len(plain))
    assert looked_up(write(tmp_path / "other.parquet", other), schema(**WAYS[way]), len(plain)) == expected
    assert sum(expected[1]) == len(plain) - (0 if way == "default" else plain.null_count)


@pytest.mark.parametrize("name", SAME)
def test_lists(tmp_path: Path, name: str) -> None:
    plain, other = SAME[name]
    if pa.types.is_dictionary(other.type):
        other = other.cast(pa.binary())
    offsets = pa.array([0, len(plain) - 1, len(plain) - 1, len(plain)], pa.int32())
    listed = [pa.ListArray.from_arrays(offsets, values) for values in (plain, other)]
    expected, got = (
        looked_up(write(tmp_path / f"{i}.parquet", ids), schema(kind="id_list", buckets=1_000_003), 3)
        for i, ids in enumerate(listed)
    )
    assert got == expected


def test_ranges_vocabularies_and_separated_lists(tmp_path: Path) -> None:
    for name in ("double", "decimal(38, 0)"):
        file = write(tmp_path / name / "a.parquet", SAME[name][1])
        assert looked_up(file, schema(range=8), 5) == ([3, 0, 7, 3], [1, 0, 1, 1, 1])
        named = Schema.model_validate(
            {
                "features": {"ids": {"kind": "id", "vocabulary": str(tmp_path / name / "words"), "dim": 4}},
                "labels": {"click": {}},
            },
            context={"vocabularies_to_be_written": True},
        )
        build_vocabularies(named, file)
        assert (tmp_path / name / "words").read_text().split() == ["3", "0", "7"]
        assert looked_up(file, schema(vocabulary=str(tmp_path / name / "words")), 5)[0] == [0, 1, 2, 0]
        assert DataProfile(ParquetFiles.open(file), schema(buckets=50)).read().to_json()["ids"]["ids"]["distinct"] == 3
    separated = write(tmp_path / "separated.parquet", pa.array([b"a|c", b"", None]))
    assert looked_up(separated, schema(kind="id_list", buckets=100, separator="|"), 3) == ([55, 49], [2, 0, 0])


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (pa.array([1.0, 2.5]), "2.5"),
        (pa.array([1.0, np.inf]), "inf"),
        (pa.array([1.0, 2.0**53]), "9007199254740992.0"),
        (pa.array([Decimal("1.0"), Decimal("2.5")]), r"Decimal\('2.5'\)"),
        (pa.array([Decimal(1), Decimal(2**63)]), r"Decimal\('9223372036854775808'\)"),
    ],
)
@pytest.mark.parametrize("way", [{"buckets": 9}, {"range": 9}, {"managed": 9}])
def test_what_is_no_id_is_named_by_row(tmp_path: Path, ids: pa.Array, found: str, way: dict[str, int]) -> None:
    file = write(tmp_path / "a.parquet", ids)
    message = f"a.parquet, row group 0, row 1, column 'ids': found {found}; expected a whole number with all its digits"
    with pytest.raises(DataError, match=message) as error:
        looked_up(file, schema(**way), 2)
    assert "use `kind: number`; write ids as 64-bit integers or text" in str(error.value)


def test_a_float_that_has_lost_digits_is_no_id(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", pa.array([2.0**24 - 1, 2.0**25], pa.float32()))
    with pytest.raises(
        DataError, match=r"row 1, column 'ids': found 33554432\.0; expected a whole number with all its"
    ):
        looked_up(file, schema(buckets=9), 2)


def test_bytes_that_are_no_text_are_named_by_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", pa.array([b"a", b"\xff\xfe"]))
    with pytest.raises(
        DataError, match=r"row 1, column 'ids': found bytes that are not UTF-8 .*; expected text in UTF-8"
    ):
        looked_up(file, schema(buckets=9), 2)


def test_a_file_of_nulls_agrees_with_any_other(tmp_path: Path) -> None:
    for name, ids in (("a", pa.nulls(2)), ("b", pa.array(["x", "y"])), ("c", pa.array([b"x", None]))):
        write(tmp_path / f"{name}.parquet", ids)
    dataset = ParquetDataset(str(tmp_path), schema(buckets=1000), keys=["click"])
    assert dataset.encoders["ids"].strings
    values, lengths = looked_up(str(tmp_path), schema(buckets=1000), 6)
    assert lengths == [0, 0, 1, 1, 1, 0]
    assert values[0] == values[2] != values[1]
    write(tmp_path / "d.parquet", pa.array([1, 2]))
    with pytest.raises(
        DataError, match=r"d.parquet, column 'ids': found type int64; expected string as in .*b.parquet"
    ):
        ParquetDataset(str(tmp_path), schema(buckets=1000))
    skipping = ParquetDataset(str(tmp_path), schema(buckets=1000), on_bad_file="skip")
    assert list(skipping.files.bad) == [str(tmp_path / "d.parquet")]


@pytest.mark.parametrize(
    "make",
    [
        lambda: pa.array([3.0, None]),
        lambda: pa.array([Decimal(3), None]),
        lambda: pa.array([b"x", None]),
        lambda: pa.array([b"x", None]).dictionary_encode(),
    ],
)
def test_a_key_that_is_a_feature_too_is_handed_on_in_its_own_type(tmp_path: Path, make: Callable[[], pa.Array]) -> None:
    ids = make()
    write(tmp_path / "a.parquet", pa.nulls(2))
    write(tmp_path / "b.parquet", ids)
    dataset = ParquetDataset(str(tmp_path), schema(buckets=9), keys=["ids"])
    (batch,) = BatchReader(dataset, 4, shuffle=False).epoch()
    assert batch.keys is not None
    assert batch.keys["ids"].type == ids.type
    assert batch.keys["ids"].to_pylist() == [None, None, *ids.to_pylist()]


def test_columns_of_nulls_that_are_no_ids(tmp_path: Path) -> None:
    features = {
        "price": {"kind": "number", "default": 2},
        "at": {"kind": "time", "part": "hour", "dim": 4},
        "since": {"kind": "time", "part": "weekday", "unit": "s", "dim": 4},
        "seen": {"kind": "id_list", "buckets": 9, "dim": 4, "weights": "how_much"},
    }
    empty = pa.array([[], None], pa.list_(pa.null()))
    columns = {"price": pa.nulls(2), "at": pa.nulls(2), "since": pa.nulls(2), "seen": empty, "how_much": empty}
    file = write(tmp_path / "a.parquet", pa.nulls(2), **columns)
    found = Schema.model_validate({"features": features, "labels": {"click": {}}})
    (batch,) = BatchReader(ParquetDataset(file, found), 2, shuffle=False).epoch()
    assert batch.dense_BF.tolist() == [[2.0], [2.0]]
    assert not batch.sparse.lengths().any()
