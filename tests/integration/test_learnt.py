"""A model with every transform: what it learnt travels with it, and rows are scored alike wherever they are read."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import log_loss

from rankmixer.launch.rows.learnt import load_schema, save_schema
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.learn.learn import learn
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.job import Job

ROWS = 90
SCHEMA = """
features:
  user: {kind: id, buckets: 50, seed: 3, dim: 8}
  city: {kind: id, vocabulary: city.txt, dim: 8, default: Rome}
  seen: {kind: id_list, buckets: 20, truncate: 3, weights: seen_weights, pooling: mean, dim: 4}
  "by/city": {kind: id, column: city, vocabulary: city.txt, table: city, dim: 8}
  price: {kind: number, transform: log1p, standardise: learn, default: 2}
  cheap: {kind: number, column: price, quantiles: 5, default: 0, dim: 4}
  hour: {kind: time, column: at, part: hour, timezone: Europe/Oslo, dim: 4}
  weekday: {kind: time, column: at, part: weekday, dim: 4}
  age: {kind: time, column: made, part: age, reference: at, quantiles: 4, dim: 4}
  user_hour: {kind: cross, of: [user, hour], buckets: 100, dim: 8}
labels:
  click: {}
weight: importance
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    job = Job(folder)
    random = np.random.RandomState(0)
    start = datetime(2024, 3, 30, tzinfo=UTC)
    at = [start + timedelta(minutes=int(minutes)) for minutes in random.randint(5000, size=ROWS)]
    lists = [list(random.randint(99, size=random.randint(7))) for _ in range(ROWS)]
    user = random.randint(20, size=ROWS)
    table = pa.table(
        {
            "user": user,
            "city": [[None, "Rome", "Oslo", "Ulm"][number] for number in random.randint(4, size=ROWS)],
            "seen": lists,
            "seen_weights": [random.rand(len(ids)).tolist() for ids in lists],
            "price": pa.array([None if row % 9 == 0 else row**2 / 7 for row in range(ROWS)]),
            "at": pa.array(at, pa.timestamp("ms", "UTC")),
            "made": pa.array([time - timedelta(seconds=int(random.randint(10**6))) for time in at]),
            "click": (user % 2).astype(np.int8),
            "importance": random.rand(ROWS),
            "row": np.arange(ROWS),
        }
    )
    for part in ("train", "test"):
        shutil.rmtree(folder / part)
        (folder / part).mkdir()
    order = random.permutation(ROWS)
    pq.write_table(table, folder / "train" / "a.parquet", row_group_size=20)
    shuffled = table.take(order)
    pq.write_table(shuffled.slice(0, 31), folder / "test" / "a.parquet", row_group_size=9)
    pq.write_table(shuffled.slice(31), folder / "test" / "b.parquet", row_group_size=50)
    (folder / "city.txt").write_text("Oslo\nRome\n")
    (folder / "schema.yaml").write_text(SCHEMA)
    tree = yaml.safe_load(job.config.read_text())
    tree["feature_schema"] = str(folder / "schema.yaml")
    tree["data"]["evaluate"] = tree["data"]["train"]
    job.config.write_text(yaml.safe_dump(tree, sort_keys=False))
    job.outcome = job.result(2, "train")
    return job


def saved(job: Job) -> Path:
    return job.folder / "run" / "checkpoints" / "schema"


def test_what_was_learnt_stands_beside_the_checkpoints(trained: Job) -> None:
    assert sorted(path.name for path in saved(trained).rglob("*") if path.is_file()) == [
        "asked.json",
        "city.txt",
        "schema.yaml",
    ]
    asked = Schema.load(str(trained.folder / "schema.yaml"))
    expected = learn(asked, str(trained.folder / "train"))
    found = Schema.load(str(saved(trained) / "schema.yaml"))
    assert found.digest() == expected.digest() != asked.digest()
    price = (saved(trained) / "schema.yaml").read_text().partition("  price: ")[2].splitlines()[0]
    assert price.startswith("{column: price, group: price, kind: number, transform: log1p, standardise: [")
    meta = json.loads((trained.folder / "run" / "checkpoints" / "step-00000012" / "meta.json").read_text())
    assert meta["schema_digest"] == expected.digest()


def test_rows_in_another_order_and_other_files_have_the_scores_of_training(trained: Job) -> None:
    """Loss and AUC of the scores predicted are those that the evaluation in training saw."""
    scores = {}
    for ranks, part in ((1, "train"), (2, "test")):
        out = trained.folder / f"scores-{part}"
        arguments = [
            "predict",
            "--data",
            str(trained.folder / part),
            "--out",
            str(out),
            "--keys",
            "row,click,importance",
        ]
        trained.result(ranks, *arguments, "--checkpoint", "latest")
        scores[part] = pq.read_table(out).sort_by("row")
    assert scores["train"]["row"].to_pylist() == list(range(ROWS))
    probabilities = scores["train"]["click_probability"].to_numpy()
    assert len(set(probabilities.tolist())) > ROWS / 2
    np.testing.assert_allclose(scores["test"]["click_probability"].to_numpy(), probabilities, rtol=1e-5)
    logged = [line for line in read_log(str(trained.folder / "run")) if line["kind"] == "evaluate"][-1]
    weights = scores["train"]["importance"].to_numpy()
    loss = log_loss(scores["train"]["click"].to_numpy(), probabilities, sample_weight=weights)
    assert logged["logloss"] == pytest.approx(loss, rel=1e-5)


def test_the_model_travels_alone(trained: Job, tmp_path: Path) -> None:
    """Its checkpoints and the folder beside them are enough: neither vocabulary nor training rows are there."""
    shutil.copytree(trained.folder / "run" / "checkpoints", tmp_path / "checkpoints")
    shutil.copytree(trained.folder / "test", tmp_path / "new")
    there = [
        f"feature_schema={tmp_path}/checkpoints/schema/schema.yaml",
        f"run.checkpoints={tmp_path}/checkpoints",
        f"data.train={tmp_path}/gone",
        f"data.evaluate={tmp_path}/new",
    ]
    (trained.folder / "city.txt").rename(trained.folder / "city.gone")
    try:
        result = trained.result(1, "evaluate", "--checkpoint", "latest", *there)
    finally:
        (trained.folder / "city.gone").rename(trained.folder / "city.txt")
    logged = [line for line in read_log(str(trained.folder / "run")) if line["kind"] == "evaluate"][-1]
    assert result["logloss"] == pytest.approx(logged["logloss"], rel=1e-5)


def test_a_resumed_run_uses_what_was_learnt_and_not_its_new_rows(trained: Job, tmp_path: Path) -> None:
    shutil.copytree(trained.folder / "run", tmp_path / "run")
    table = pq.read_table(trained.folder / "train")
    rows = table.set_column(table.schema.get_field_index("price"), "price", pa.array([9.0] * ROWS))
    pq.write_table(rows, tmp_path / "new.parquet")
    overrides = [f"run.directory={tmp_path}/run", f"data.train={tmp_path}/new.parquet", "train.epochs=3"]
    assert trained.result(1, "train", *overrides)["steps"] == 18
    name = "checkpoints/schema/schema.yaml"
    assert (tmp_path / "run" / name).read_text() == (trained.folder / "run" / name).read_text()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_schema_that_no_longer_matches_is_refused(trained: Job, command: str) -> None:
    (trained.folder / "other.yaml").write_text(SCHEMA.replace("quantiles: 5", "quantiles: 6"))
    done = trained.command(1, command, f"feature_schema={trained.folder / 'other.yaml'}")
    assert done.returncode == 2
    assert "trained with another feature schema: features.cheap.quantiles = 5 there, 6 here; use the one" in done.stderr
    assert f"(feature_schema={saved(trained)}/schema.yaml)" in done.stderr


def asked(folder: Path, **features: Any) -> Schema:
    (folder / "words.txt").write_text("ä\n\nb c\n")
    city = {"kind": "id", "vocabulary": str(folder / "words.txt"), "dim": 4}
    tree = {"features": {"a city": city, "n": {"kind": "number", "standardise": "learn"}} | features}
    return Schema.model_validate(tree | {"labels": {"yes": {"weight": 2}, "2": {"column": "no"}}, "weight": "true"})


@pytest.mark.parametrize("where", ["memory://learnt", "local"])
def test_a_saved_schema_is_the_schema(tmp_path: Path, where: str) -> None:
    directory = where if "://" in where else str(tmp_path / "new" / "schema")
    numbers = (1e-20, 0.1, 1 / 3, 12345678.9, 1e22)
    ages = {
        "kind": "time",
        "part": "age",
        "dim": 4,
        "reference_time": "2024-06-01T00:00:00+02:00",
        "boundaries": ["1h"],
    }
    given = asked(tmp_path, edges={"kind": "number", "boundaries": numbers, "dim": 4}, age=ages)
    pq.write_table(pa.table({"n": [0.1, 0.2, 0.7]}), tmp_path / "n.parquet")
    learnt = learn(given, str(tmp_path / "n.parquet"))
    for _ in range(2):  # what stands there is replaced
        save_schema(directory, given.contents(), learnt)
    for schema in (given, learnt):
        loaded = load_schema(directory, schema)
        assert loaded.digest() == learnt.digest()
        assert loaded.features["a city"].words == ("ä", "", "b c")  # type: ignore[union-attr]
        assert loaded.labels == learnt.labels
    (tmp_path / "words.txt").write_text("ä\nb c\n")
    other = Schema.model_validate(given.model_dump())
    with pytest.raises(ValueError, match=r"features.a city.vocabulary = \w{64} there, \w{64} here; use the one"):
        load_schema(directory, other)


def test_what_was_never_learnt_is_missed(tmp_path: Path) -> None:
    given = asked(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere: found no schema; expected what n learnt in training; train first"):
        load_schema("memory://nowhere", given)
    plain = Schema.model_validate({"features": {"n": {"kind": "number"}}, "labels": {"click": {}}})
    assert load_schema("memory://nowhere", plain) is plain
