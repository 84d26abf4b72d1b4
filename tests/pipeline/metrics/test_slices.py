"""Reliability diagrams and slices against scikit-learn and plain loops, on one rank and on two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

from rankmixer.pipeline.metrics import slices
from rankmixer.pipeline.metrics.reliability import BINS, Reliability
from rankmixer.pipeline.metrics.slices import Slices, values_of
from tests.helpers.ranks import run_ranks

TASKS = ["click", "buy"]
ROWS = 611


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, pa.Table]:
    """Logits with ties; weights 0, 1 and 2.5; a column of strings, one of integers, one of many values."""
    random = np.random.RandomState(3)
    logits_BK = np.round(random.randn(ROWS, 2), 1).astype(np.float32)
    labels_BK = (random.rand(ROWS, 2) < 1 / (1 + np.exp(-2 * logits_BK))).astype(np.float32)
    weights_B = random.choice([0.0, 1.0, 1.0, 2.5], size=ROWS).astype(np.float32)
    city = [["Rome", "Oslo", "Bonn", None][code] for code in random.choice(4, p=[0.5, 0.3, 0.15, 0.05], size=ROWS)]
    keys = pa.table({"city": pa.array(city), "age": random.randint(4, size=ROWS), "row": np.arange(ROWS)})
    keys = keys.set_column(0, "city", keys["city"].cast(pa.string()).dictionary_encode())
    return torch.from_numpy(logits_BK), torch.from_numpy(labels_BK), torch.from_numpy(weights_B), keys


def evaluated(rank: int, world_size: int, bins: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a rank says of every `world_size`-th piece of the rows; the last batch of each is padded."""
    logits_BK, labels_BK, weights_B, keys = rows()
    parts = Slices(TASKS, ["city", "age", "row"], auc_bins=bins)
    diagram = Reliability(TASKS)
    group = torch.distributed.group.WORLD if world_size > 1 else None
    for start in range(37 * rank, ROWS, 37 * world_size):
        here = slice(start, start + 37)
        padding = torch.zeros(3, 2)
        batch = [torch.cat([tensor[here], padding]) for tensor in (logits_BK, labels_BK)]
        weights = torch.cat([weights_B[here], padding[:, 0]])
        parts.update(batch[0], batch[1], weights, keys.slice(start, 37))
        diagram.update(batch[0], batch[1], weights)
    return parts.compute(group), diagram.compute(group)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    if request.param == 1:
        return evaluated(0, 1)
    first, second = run_ranks(2, evaluated, tmp_path_factory.mktemp("ranks"))
    assert first == second
    return first


def test_each_slice_against_scikit_learn(found: tuple[Any, Any]) -> None:
    *tensors, keys = rows()
    logits_BK, labels_BK, weights_B = (tensor.double().numpy() for tensor in tensors)
    for column in ("city", "age"):
        entries = found[0][column]["values"]
        values = np.array(keys[column].to_pylist(), dtype=np.object_)
        assert found[0][column]["other"] is None
        assert {entry["value"] for entry in entries} == set(values)
        counts = [entry["rows"] for entry in entries]
        assert counts == sorted(counts, reverse=True)
        for entry in entries:
            own = (values == entry["value"]) & (weights_B != 0)
            assert entry["rows"] == own.sum()
            for task, logits, labels in zip(TASKS, logits_BK[own].T, labels_BK[own].T, strict=True):
                weights, mean = weights_B[own], np.average(labels, weights=weights_B[own])
                entropy = -mean * np.log(mean) - (1 - mean) * np.log(1 - mean)
                probability = 1 / (1 + np.exp(-logits))
                expected = roc_auc_score(labels, logits, sample_weight=weights)
                assert entry[f"{task}/auc"] == pytest.approx(expected, rel=1e-9)
                expected = log_loss(labels, probability, sample_weight=weights) / entropy
                assert entry[f"{task}/ne"] == pytest.approx(expected, rel=1e-9)
                expected = np.average(probability, weights=weights) / mean
                assert entry[f"{task}/calibration"] == pytest.approx(expected, rel=1e-9)


def test_rare_values_are_others_together(found: tuple[Any, Any]) -> None:
    by_row = found[0]["row"]
    counted = int((rows()[2] != 0).sum())
    assert [entry["rows"] for entry in by_row["values"]] == [1] * slices.SHOWN
    assert all(entry["click/auc"] is None for entry in by_row["values"])  # one row has one class
    assert by_row["other"]["rows"] == counted - slices.SHOWN
    assert "value" not in by_row["other"]


def test_the_diagram_adds_up_and_lies_where_the_rows_lie(found: tuple[Any, Any]) -> None:
    logits_BK, labels_BK, weights_B, _ = rows()
    for task_k, task in enumerate(TASKS):
        bins = found[1][task]
        assert 10 < len(bins) <= BINS
        predictions = [bin["prediction"] for bin in bins]
        assert predictions == sorted(predictions)
        weight = torch.tensor([bin["weight"] for bin in bins])
        assert sum(bin["rows"] for bin in bins) == (weights_B != 0).sum()
        assert weight.sum() == pytest.approx(float(weights_B.sum()))
        probability_B, label_B = logits_BK[:, task_k].double().sigmoid(), labels_BK[:, task_k].double()
        for name, expected in (("prediction", probability_B), ("observed", label_B)):
            mean = float((torch.tensor([bin[name] for bin in bins]) * weight).sum() / weight.sum())
            assert mean == pytest.approx(float((expected * weights_B).sum() / weights_B.sum()), rel=1e-6)


def test_bins_are_those_of_scikit_learn_where_cells_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    # Twenty distinct predictions, equally many of each: quantiles are the predictions themselves.
    logits_B1 = torch.linspace(-3, 3, BINS).repeat(50).unsqueeze(1)
    labels_B1 = (torch.rand(len(logits_B1), 1, generator=generator) < 0.4).float()
    diagram = Reliability(["click"])
    diagram.update(logits_B1, labels_B1, torch.ones(len(logits_B1)))
    bins = diagram.compute()["click"]
    observed, predicted = calibration_curve(
        labels_B1[:, 0], logits_B1[:, 0].sigmoid(), n_bins=BINS, strategy="quantile"
    )
    assert [bin["observed"] for bin in bins] == pytest.approx(list(observed), rel=1e-6)
    assert [bin["prediction"] for bin in bins] == pytest.approx(list(predicted), rel=1e-6)


def test_a_logit_that_is_no_number_spoils_its_bin_alone() -> None:
    diagram = Reliability(["click"])
    diagram.update(torch.tensor([[float("nan")], [3.0]]), torch.tensor([[1.0], [1.0]]), torch.ones(2))
    bins = diagram.compute()["click"]
    assert [bin["prediction"] is None for bin in bins] == [True, False]
    assert Reliability(["click"]).compute() == {"click": []}


def test_a_histogram_is_near_the_exact_auc() -> None:
    exact, coarse = evaluated(0, 1)[0], evaluated(0, 1, bins=512)[0]
    for one, other in zip(exact["city"]["values"], coarse["city"]["values"], strict=True):
        assert other["click/auc"] == pytest.approx(one["click/auc"], abs=2e-3)
        assert other["click/ne"] == pytest.approx(one["click/ne"], rel=1e-9)


def test_memory_is_bounded_and_frequent_values_are_found_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "CHUNK_ROWS", 50)
    monkeypatch.setattr(slices, "TRACKED", 5)
    monkeypatch.setattr(slices, "SHOWN", 2)
    parts = Slices(["click"], ["value"])
    values = [*range(1000, 1300), *[7, 8] * 100]  # the frequent ones come last
    logits_B1, labels_B1 = torch.linspace(0, 1, 500).unsqueeze(1), torch.tensor([0.0, 1.0]).repeat(250).unsqueeze(1)
    for start in range(0, 500, 25):
        here = slice(start, start + 25)
        parts.update(logits_B1[here], labels_B1[here], torch.ones(25), pa.table({"value": values[here]}))
        assert len(parts._tracked["value"]) <= 5
    found = parts.compute()["value"]
    assert [(entry["value"], entry["rows"]) for entry in found["values"]] == [(7, 100), (8, 100)]
    assert found["other"]["rows"] == 300


@pytest.mark.parametrize("bad", [pa.array([[1]]), pa.array([{"a": 1}]), pa.array([b"x"])])
def test_columns_that_cannot_be_sliced(bad: pa.Array) -> None:
    with pytest.raises(ValueError, match=r"metrics.slices: column tags is .*; expected one value a row: integers"):
        values_of(bad, "tags")


def test_dates_and_numbers_are_strings() -> None:
    assert values_of(pa.array([0, 1], pa.date32()), "day").to_pylist() == ["1970-01-01", "1970-01-02"]
    assert values_of(pa.array([0.5]), "price").to_pylist() == ["0.5"]
