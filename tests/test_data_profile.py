"""Profiles of files against plain Python on the same rows."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import data_profile, number_profile
from pipeline.data_profile import DataProfile
from pipeline.drift import drift, js_distance
from pipeline.errors import DataError
from pipeline.files import ParquetFiles
from pipeline.hashing import hash_integers
from pipeline.id_counts import IdCounts
from pipeline.schema import Schema

ROWS = 700


@pytest.fixture
def schema(tmp_path: Path) -> Schema:
    (tmp_path / "cities.txt").write_text("".join(f"city {number}\n" for number in range(20)))
    return Schema.model_validate(
        {
            "features": {
                "user": {"kind": "id", "range": 40, "dim": 8},
                "city": {"kind": "id", "vocabulary": str(tmp_path / "cities.txt"), "dim": 8, "default": "city 3"},
                "item": {"kind": "id", "buckets": 50, "dim": 8, "table": "films"},
                "seen": {"kind": "id_list", "buckets": 50, "dim": 8, "table": "films"},
                "tags": {"kind": "id_list", "buckets": 64, "dim": 4, "separator": "|", "column": "words"},
                "flag": {"kind": "id", "range": 2, "dim": 4},
                "price": {"kind": "number", "transform": "log1p", "standardise": [1.0, 2.0]},
                "age": {"kind": "number", "boundaries": [18, 30], "dim": 4, "default": 50},
            },
            "labels": {"click": {}, "watched": {"column": "share"}},
            "weight": "importance",
        }
    )


def columns(rows: int = ROWS) -> dict[str, list[Any]]:
    """Rows as Python has them, with everything in them that a policy or an error is for."""
    random = np.random.default_rng(3)
    zipf = [min(int(value), 90) for value in random.zipf(1.3, rows)]
    return {
        "user": [int(value) for value in random.integers(-1, 43, rows)],
        "city": [None if row % 9 == 0 else f"city {random.integers(24)}" for row in range(rows)],
        "item": zipf,
        "seen": [None if row % 11 == 0 else [int(i) for i in random.integers(99, size=row % 5)] for row in range(rows)],
        "words": [None if row % 13 == 0 else "|".join(f"w{i}" for i in range(row % 6)) for row in range(rows)],
        "flag": [bool(value < 20) for value in zipf],
        "price": [
            [1.5, None, float("nan"), -2.0, float("inf")][row % 5] if row % 7 == 0 else row / 8 for row in range(rows)
        ],
        "age": [None if row % 10 == 0 else int(random.integers(90)) for row in range(rows)],
        "click": [int(random.random() < (0.9 if row >= rows - 100 else 0.3)) for row in range(rows)],
        "share": [2.0 if row == 333 else float(random.random()) for row in range(rows)],
        "importance": [1.0] * rows,
    }


def write(folder: Path, data: dict[str, list[Any]], **types: pa.DataType) -> ParquetFiles:
    folder.mkdir()
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in data.items()})
    pq.write_table(table.slice(0, len(table) - 100), folder / "a.parquet", row_group_size=150)
    pq.write_table(table.slice(len(table) - 100), folder / "b.parquet", row_group_size=33)
    return ParquetFiles.open(str(folder))


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


NUMBERS = Schema.model_validate({"features": {"x": {"kind": "number"}}, "labels": {"click": {}}})


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


def test_equal_files_have_not_drifted(tmp_path: Path, schema: Schema) -> None:
    data = columns()
    other = DataProfile(write(tmp_path / "data", data), schema).read()
    change = drift(DataProfile(write(tmp_path / "copy", data), schema).read(other), other)
    assert {one["js_distance"] for kind in ("ids", "numbers") for one in change[kind].values()} == {0.0}
    assert {(one["unseen"], one["unseen_error"]) for one in change["ids"].values()} == {(0.0, 0.0)}
    assert change["labels"]["click"]["z"] == 0.0
    assert not any(one["drifted"] for kind in change.values() for one in kind.values())


def test_drift_is_found(tmp_path: Path, schema: Schema) -> None:
    before, after = columns(), columns()
    after["item"] = [value + 3 for value in before["item"]]
    after["price"] = [row / 4 for row in range(ROWS)]
    after["click"] = [1 - click for click in before["click"]]
    other = DataProfile(write(tmp_path / "after", after), schema).read()
    change = drift(DataProfile(write(tmp_path / "before", before), schema).read(other), other)
    seen = set(before["item"])
    assert change["ids"]["item"]["unseen"] == pytest.approx(np.mean([value not in seen for value in after["item"]]))
    assert change["labels"]["click"]["rate"] == pytest.approx(1 - change["labels"]["click"]["against"])
    assert change["numbers"]["price"]["mean_shift"] > 0.5
    drifted = {name for kind in change.values() for name, one in kind.items() if one["drifted"]}
    assert drifted == {"item", "price", "click"}


def test_a_constant_that_moves_has_drifted(tmp_path: Path) -> None:
    files = []
    for constant in (5.0, 3.0):
        path = tmp_path / f"{constant}.parquet"
        pq.write_table(pa.table({"x": [constant] * 200, "click": [0] * 200}), path)
        files.append(ParquetFiles.open(str(path)))
    other = DataProfile(files[1], NUMBERS).read()
    change = drift(DataProfile(files[0], NUMBERS).read(other), other)["numbers"]["x"]
    assert (change["js_distance"], change["mean_shift"], change["drifted"]) == (1.0, None, True)


def test_unseen_lookups_are_estimated_within_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.id_profile.IdCounts", partial(IdCounts, capacity=1024))
    schema = Schema.model_validate(
        {"features": {"item": {"kind": "id", "buckets": 9999, "dim": 4}}, "labels": {"click": {}}}
    )
    random, rows = np.random.default_rng(1), 60_000
    shares = np.cumsum(np.arange(1, 30_001.0) ** -0.9)
    items = {name: np.searchsorted(shares / shares[-1], random.random(rows)) for name in ("before", "after")}
    items["after"] = np.where(items["after"] % 5 == 0, -1 - items["after"], items["after"])  # a fifth of the ids is new
    profiles = {}
    for name, item in items.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"item": item, "click": np.zeros(rows)}), tmp_path / name / "x.parquet")
        profiles[name] = DataProfile(ParquetFiles.open(str(tmp_path / name)), schema)
    before = profiles["before"].read(profiles["after"].read())
    change = drift(before, profiles["after"])["ids"]["item"]
    assert 0 < change["unseen_error"] < 0.02
    exact = (~np.isin(items["after"], items["before"])).mean()
    assert change["unseen"] == pytest.approx(exact, abs=4 * change["unseen_error"])
    assert change["drifted"]
    assert before.ids["item"].watch is not None
    assert len(before.ids["item"].watch.keys) <= 2 * 1024


def test_chance_alone_shows_the_distance_that_is_said() -> None:
    random, shares = np.random.default_rng(0), np.arange(1, 257) / np.arange(1, 257).sum()
    distances = [js_distance(random.multinomial(4000, shares), random.multinomial(9000, shares)) for _ in range(20)]
    squares = [distance**2 for distance, _ in distances if distance is not None]
    assert distances[0][1] is not None
    assert np.mean(squares) == pytest.approx(distances[0][1] ** 2, rel=0.1)
