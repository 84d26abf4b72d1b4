"""Profiles of files against plain Python on the same rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.encode.hashing import hash_integers
from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.profile import data_profile, number_profile
from rankmixer.pipeline.profile.data_profile import DataProfile
from rankmixer.pipeline.profile.drift import drift
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.profiled import NUMBERS, ROWS, columns, schema_in, write


@pytest.fixture
def schema(tmp_path: Path) -> Schema:
    return schema_in(tmp_path)


def lookups(data: dict[str, list[Any]], name: str) -> list[list[Any]]:
    """The ids of every row, as the schema reads them: without nulls, defaults put in."""
    read = {
        "user": lambda user: [user],
        "city": lambda city: ["city 3" if city is None else city],
        "seen": lambda seen: seen or [],
        "tags": lambda words: words.split("|") if words else [],
    }.get(name, lambda value: [value])
    return [read(value) for value in data["words" if name == "tags" else name]]


def known(name: str, value: Any) -> bool:
    """Whether the value has a place in its table."""
    return {"user": lambda: 0 <= value < 40, "city": lambda: int(value[5:]) < 20}.get(name, lambda: True)()


@pytest.mark.parametrize("piece_rows", [17, 10_000])
@pytest.mark.parametrize("as_dictionaries", [True, False])
def test_ids_against_plain_python(
    tmp_path: Path, schema: Schema, piece_rows: int, as_dictionaries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_profile, "PIECE_ROWS", piece_rows)
    data = columns()
    types = {"city": pa.dictionary(pa.int32(), pa.string())} if as_dictionaries else {"city": pa.large_string()}
    profile = DataProfile(write(tmp_path / "data", data, **types), schema).read().to_json()
    assert (profile["rows"], profile["files"], profile["row_groups"]) == (700, 2, 8)
    for name, found in profile["ids"].items():
        rows = lookups(data, name)
        exact = Counter(value for row in rows for value in row if known(name, value))
        total, ranked = exact.total(), exact.most_common()
        assert found["nulls"] == sum(value is None for value in data[found["column"]])
        assert found["lookups"] == total
        # A value without a place still stands in its row.
        assert found["rows_with_ids"] == sum(map(bool, rows))
        assert (found["distinct"], found["distinct_error"], found["top_error"]) == (len(exact), 0.0, 0.0)
        for most in (1, 10, 100, 1000):
            assert found["top"][str(most)] == pytest.approx(sum(times for _, times in ranked[:most]) / total)
        for share in (80, 90, 99):
            sums = np.cumsum([times for _, times in ranked])
            assert found["coverage"][str(share)] == np.argmax(sums >= share / 100 * total) + 1
        heaviest = found["heaviest"]
        assert [exact[one["value"]] / total for one in heaviest] == pytest.approx([one["share"] for one in heaviest])
        assert [one["share"] for one in heaviest] == pytest.approx([times / total for _, times in ranked[:5]])
        if found["lengths"] is None:
            assert name not in ("seen", "tags")
            continue
        lengths = sorted(map(len, rows))
        assert found["lengths"]["mean"] == pytest.approx(np.mean(lengths))
        assert found["lengths"]["max"] == lengths[-1]
        for share in (50, 90, 99):
            assert found["lengths"][str(share)] == np.quantile(lengths, share / 100, method="inverted_cdf")


def test_what_has_no_place_is_counted_by_policy_with_its_first_row(tmp_path: Path, schema: Schema) -> None:
    data = columns()
    files = write(tmp_path / "data", data)
    found = DataProfile(files, schema).read().to_json()["ids"]
    bad = [row for row, user in enumerate(data["user"]) if not 0 <= user < 40]
    first = {"file": files.files[0].path, "row_group": bad[0] // 150, "row": bad[0]}
    assert found["user"]["bad"] == {"policy": "fail", "count": len(bad), "first": first}
    unknown = sum(city is not None and int(city[5:]) >= 20 for city in data["city"])
    assert (found["city"]["bad"]["policy"], found["city"]["bad"]["count"]) == ("reserve", unknown)
    assert found["item"]["bad"] == {"policy": None, "count": 0, "first": None}


def test_tables_count_the_ids_of_all_their_features(tmp_path: Path, schema: Schema) -> None:
    data = columns()
    tables = DataProfile(write(tmp_path / "data", data), schema).read().to_json()["tables"]
    assert list(tables) == ["user", "city", "films", "tags", "flag"]
    exact = Counter(value for name in ("item", "seen") for row in lookups(data, name) for value in row)
    ids = np.array(list(exact))
    per_bucket = Counter((hash_integers(ids) % np.uint64(50)).tolist())
    shared = [per_bucket[int(bucket)] > 1 for bucket in hash_integers(ids) % np.uint64(50)]
    films = tables["films"]
    assert (films["features"], films["rows"], films["dim"]) == (["item", "seen"], 50, 8)
    assert films["distinct"] == len(exact)
    assert films["collisions"]["ids"] == pytest.approx(np.mean(shared))
    colliding = sum(times for times, is_shared in zip(exact.values(), shared, strict=True) if is_shared)
    assert films["collisions"]["lookups"] == pytest.approx(colliding / exact.total())
    assert films["collisions"]["lookups_error"] == 0.0
    assert films["collisions"]["expected"] == pytest.approx(1 - (1 - 1 / 50) ** (len(exact) - 1))
    assert films["suggested"] == {
        "buckets": 512,
        "expected": pytest.approx(1 - (1 - 1 / 512) ** (len(exact) - 1)),
        "dim": 16,
    }
    assert tables["user"]["collisions"] is None


def test_numbers_and_labels(tmp_path: Path, schema: Schema) -> None:
    data = columns()
    files = write(tmp_path / "data", data)
    profile = DataProfile(files, schema).read().to_json()
    price = profile["numbers"]["price"]
    values = np.array(data["price"], np.float64)
    finite = values[np.isfinite(values)]
    assert price["nulls"] == data["price"].count(None)
    assert price["nan"] == np.isnan(values).sum() - data["price"].count(None)
    assert price["infinite"] == np.isinf(values).sum()
    assert [price[key] for key in ("min", "max", "mean", "std")] == pytest.approx(
        [finite.min(), finite.max(), finite.mean(), finite.std()]
    )
    assert list(price["quantiles"].values()) == pytest.approx(
        np.quantile(finite, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99], method="inverted_cdf")
    )
    assert price["quantile_rank_error"] == 0.0
    refused = ~np.isfinite(values) | (values == -2)
    assert price["refused"]["count"] == refused.sum()
    assert price["refused"]["first"] == {"file": files.files[0].path, "row_group": 0, "row": int(np.argmax(refused))}
    assert price["input"]["mean"] == pytest.approx(((np.log1p(values[~refused]) - 1) / 2).mean(), rel=1e-5)
    assert price["bucket_shares"] is None

    age = profile["numbers"]["age"]
    filled = np.array([50 if value is None else value for value in data["age"]])
    assert age["bucket_shares"] == pytest.approx(np.histogram(filled, [0, 18, 30, 200])[0] / ROWS)
    assert (age["refused"]["count"], age["input"]) == (0, None)

    click = profile["labels"]["click"]
    clicks, rate = np.array(data["click"]), np.mean(data["click"])
    assert click["rate"] == pytest.approx(rate)
    assert [file["rows"] for file in click["files"]] == [600, 100]
    deviation = np.sqrt(rate * (1 - rate) * (1 / 100 - 1 / 700))  # 100 drawn out of 700 without replacement
    assert click["files"][1]["rate"] == clicks[600:].mean()
    assert click["files"][1]["z"] == pytest.approx((clicks[600:].mean() - rate) / deviation)
    assert [file["departs"] for file in click["files"]] == [True, True]
    assert profile["labels"]["watched"]["refused"] == {
        "count": 1,
        "first": {"file": files.files[0].path, "row_group": 2, "row": 333},
    }
    assert not any(file["departs"] for file in profile["labels"]["watched"]["files"])
    assert (profile["weight"]["mean"], profile["weight"]["refused"]["count"]) == (1.0, 0)


def test_sampled_quantiles_are_within_their_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_profile, "SAMPLE", 2000)
    x = np.random.default_rng(0).lognormal(size=40_000)
    pq.write_table(pa.table({"x": x, "click": np.zeros(40_000)}), tmp_path / "x.parquet", row_group_size=7000)
    profile = DataProfile(ParquetFiles.open(str(tmp_path)), NUMBERS).read()
    number = profile.to_json()["numbers"]["x"]
    assert number["quantile_rank_error"] == pytest.approx(0.0364, rel=0.01)
    for percent, value in number["quantiles"].items():
        assert abs((x <= value).mean() - float(percent) / 100) < number["quantile_rank_error"]
    assert number["mean"] == pytest.approx(x.mean())
    assert len(profile.numbers["x"].sample) == pytest.approx(2000, abs=4 * 2000**0.5)


def test_columns_without_a_value(tmp_path: Path) -> None:
    schema = Schema.model_validate(
        {
            "features": {
                "x": {"kind": "number"},
                "a": {"kind": "id", "buckets": 5, "dim": 4},
                "b": {"kind": "id_list", "buckets": 5, "dim": 4},
            },
            "labels": {"click": {}},
        }
    )
    nulls: dict[str, pa.DataType] = {
        "x": pa.float32(),
        "a": pa.string(),
        "b": pa.list_(pa.string()),
        "click": pa.int8(),
    }
    table = pa.table({name: pa.array([None] * 3, type_) for name, type_ in nulls.items()})
    pq.write_table(table, tmp_path / "x.parquet")
    files = ParquetFiles.open(str(tmp_path))
    other = DataProfile(files, schema).read()
    profile = DataProfile(files, schema).read(other)
    found = profile.to_json()
    assert found["ids"]["a"]["nulls"] == found["ids"]["b"]["nulls"] == 3
    assert found["ids"]["a"]["top"]["1"] is None
    assert found["ids"]["b"]["lengths"] == {"mean": 0.0, "50": 0, "90": 0, "99": 0, "max": 0}
    assert found["numbers"]["x"]["mean"] is None
    assert found["numbers"]["x"]["quantiles"]["50"] is None
    assert found["labels"]["click"] == {
        "column": "click",
        "rate": None,
        "refused": {"count": 3, "first": {"file": files.files[0].path, "row_group": 0, "row": 0}},
        "files": [],
    }
    change = drift(profile, other)
    assert change["ids"]["a"]["unseen"] is None
    assert not any(one["drifted"] for kind in change.values() for one in kind.values())


def test_numbers_too_large_to_add_up_are_null(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"x": [1.7e308, -1.7e308, 1.7e308, 1.7e308], "click": [0, 1, 0, 1]}), tmp_path / "x.parquet"
    )
    files = ParquetFiles.open(str(tmp_path))
    other = DataProfile(files, NUMBERS).read()
    profile = DataProfile(files, NUMBERS).read(other)
    number = profile.to_json()["numbers"]["x"]
    assert (number["max"], number["quantiles"]["50"], number["mean"], number["std"]) == (1.7e308, 1.7e308, None, None)
    assert number["refused"]["count"] == 4  # float32 has no such number
    assert drift(profile, other)["numbers"]["x"]["mean_shift"] is None


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"x": np.random.default_rng(0).random(3000), "click": np.zeros(3000)}), path, row_group_size=1500
    )
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x.parquet, row group 1: found nothing readable .* Write the file again"):
        DataProfile(ParquetFiles.open(str(path)), NUMBERS).read()
