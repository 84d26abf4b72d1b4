"""Drift between two sets of files."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.profile.data_profile import DataProfile
from rankmixer.pipeline.profile.drift import drift, js_distance
from rankmixer.pipeline.profile.id_counts import IdCounts
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.profiled import NUMBERS, ROWS, columns, schema_in, write


@pytest.fixture
def schema(tmp_path: Path) -> Schema:
    return schema_in(tmp_path)


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
    monkeypatch.setattr("rankmixer.pipeline.profile.id_profile.IdCounts", partial(IdCounts, capacity=1024))
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
