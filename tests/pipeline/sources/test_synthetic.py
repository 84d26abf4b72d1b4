"""The planted log: its truth against a naive loop, its files, its ceiling."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from rankmixer.pipeline.schema.schema import Schema
from rankmixer.pipeline.sources import synthetic
from rankmixer.pipeline.sources.synthetic import AGES, Truth, write_synthetic


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 700)


def number(item: str) -> int:
    return int(item.removeprefix("item-"))


def naive_logit(truth: Truth, row: dict[str, Any]) -> float:
    user, item = row["user"], number(row["item"])
    history = [truth.item_ND[number(name)] for name in row["history"]]
    logit = -1.0 + truth.user_N[user] + truth.item_N[item]
    logit += (math.log(1 + row["price"]) - 2) * truth.sensitivity_N[user]
    logit += truth.age_N[sum(row["age"] >= age for age in AGES)]
    for d in range(truth.dim):
        mean = sum(vector[d] for vector in history) / len(history) if history else 0.0
        logit += (truth.user_ND[user][d] + mean) * truth.item_ND[item][d]
    return float(logit)


def test_the_truth_is_a_function_of_what_the_row_shows() -> None:
    truth = Truth(users=13, items=17, seed=3, dim=5)
    table, logit_B = truth.draw(rows=40, part=1, chunk=2)
    assert [naive_logit(truth, row) for row in table.to_pylist()] == pytest.approx(logit_B.tolist())
    assert any(len(history) == 0 for history in table["history"].to_pylist())


def test_files_schema_and_ceiling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = write_synthetic(str(tmp_path / "out"), 30_007, seed=5, users=50, items=23)
    out = tmp_path / "out"
    parts = {part: pq.read_table(out / part) for part in ("train", "validation", "test")}
    assert {part: len(table) for part, table in parts.items()} == {"train": 24_007, "validation": 3000, "test": 3000}
    assert len(list((out / "train").iterdir())) == 4
    assert pq.ParquetFile(out / "train/part-00000.parquet").num_row_groups == 9
    assert set(parts["train"]["user"].unique().to_pylist()) <= set(range(50))
    assert sorted(Schema.load(str(out / "schema.yaml")).columns(labels=True)) == sorted(parts["test"].column_names)

    truth = Truth(50, 23, seed=5)
    logits = [naive_logit(truth, row) for row in parts["test"].to_pylist()]
    auc = roc_auc_score(parts["test"]["click"].to_numpy(), logits)
    assert values["auc"] == pytest.approx(auc, abs=values["auc_error_bound"] + 1e-9)
    assert 0.7 < values["auc"] < 0.95
    assert values["calibration"] == pytest.approx(1, abs=0.1)
    assert json.loads((out / "truth.json").read_text())["test"] == values
    assert f"AUC of {values['auc']:.4f}, the ceiling" in capsys.readouterr().out


def test_the_log_follows_the_seed_and_no_two_chunks_are_alike(tmp_path: Path) -> None:
    tables = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_synthetic(str(tmp_path / name), 9000, seed, users=40, items=30)
        tables.append(pq.read_table(tmp_path / name / "train"))
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert not tables[0].slice(0, 700).equals(tables[0].slice(700, 700))
    assert len(set(tables[0]["price"].to_pylist())) == 7200


def test_frequent_ids_come_first() -> None:
    table, _ = Truth(users=100, items=100, seed=0).draw(rows=5000, part=0, chunk=0)
    counts = [table["user"].to_pylist().count(user) for user in (0, 9, 99)]
    assert counts[0] > 3 * counts[1] > 9 * counts[2] > 0


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows is 99; it must be at least 100"):
        write_synthetic(str(tmp_path / "out"), 99)
    with pytest.raises(ValueError, match=r"seed is -1; it must be at least 0"):
        write_synthetic(str(tmp_path / "out"), 1000, seed=-1)
    write_synthetic(str(tmp_path / "out"), 100)
    with pytest.raises(ValueError, match=r"out exists already"):
        write_synthetic(str(tmp_path / "out"), 100)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/out cannot be made: .*; name another directory"):
        write_synthetic(str(tmp_path / "file" / "out"), 100)
