from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from rankmixer.pipeline.metrics.metrics import Metrics
from rankmixer.pipeline.metrics.ranking import exact_auc, route_by_group, splitters
from tests.helpers.ranks import run_ranks

Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # logits_BK, labels_BK, weights_B, groups_B
NAN = math.nan


def reference(logits_BK: Tensor, labels_BK: Tensor, weights_B: Tensor, groups_B: Tensor) -> list[dict[str, float]]:
    """The metrics of each task by scikit-learn and plain loops."""
    keep = weights_B != 0
    weights, groups = weights_B[keep].double().numpy(), groups_B[keep].numpy()
    results = []
    for logits, labels in zip(logits_BK[keep].double().numpy().T, labels_BK[keep].numpy().T, strict=True):
        expected = dict.fromkeys(("auc", "gauc", "logloss", "ne", "calibration", "ungrouped"), NAN)
        expected |= {"rows": float(len(labels)), "weight": float(weights.sum())}
        results.append(expected)
        if len(labels) == 0:
            continue
        expected["ungrouped"] = 0.0
        probability = 1 / (1 + np.exp(-logits))
        expected["logloss"] = log_loss(labels, probability, sample_weight=weights, labels=[0, 1])
        mean = float((weights * labels).sum() / weights.sum())
        if mean > 0:
            expected["calibration"] = float((weights * probability).sum() / weights.sum()) / mean
        if 0 < mean < 1:
            expected["auc"] = roc_auc_score(labels, logits, sample_weight=weights)
            expected["ne"] = expected["logloss"] / -(mean * math.log(mean) + (1 - mean) * math.log(1 - mean))
        of_groups = []
        for value in np.unique(groups):
            own = groups == value
            if len(np.unique(labels[own])) == 2:
                auc = roc_auc_score(labels[own], logits[own], sample_weight=weights[own])
                of_groups.append((auc, weights[own].sum()))
        if of_groups:
            expected["gauc"] = sum(auc * weight for auc, weight in of_groups) / sum(weight for _, weight in of_groups)
    return results


def close(expected: dict[str, float] | float) -> object:
    return pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


def random_rows(rows: int, tasks: int, seed: int, distinct: int = 7, groups: int = 5) -> Rows:
    """Scores with ties when `distinct` is small; weights 0, 1 and fractions; group ids with a common factor."""
    generator = torch.Generator().manual_seed(seed)
    logits_BK = torch.randn(distinct, generator=generator)[torch.randint(distinct, (rows, tasks), generator=generator)]
    labels_BK = (torch.rand(rows, tasks, generator=generator) < logits_BK.sigmoid()).float()
    weights_B = torch.tensor([0.0, 0.3, 1.0, 1.0, 2.5])[torch.randint(5, (rows,), generator=generator)]
    groups_B = torch.randint(groups, (rows,), generator=generator) * 1024 - 2048
    return logits_BK, labels_BK, weights_B, groups_B


@st.composite
def small_rows(draw: st.DrawFn) -> Rows:
    finite = st.floats(-12, 12, width=32) | st.sampled_from([-1.0, 0.0, -0.0, 0.5])
    row = st.tuples(finite, st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.25, 1.0, 3.0]), st.integers(-2, 2))
    rows = draw(st.lists(row, max_size=24))
    logits_B, labels_B, weights_B, groups_B = zip(*rows, strict=True) if rows else ((), (), (), ())
    column = torch.tensor(logits_B, dtype=torch.float32), torch.tensor(labels_B, dtype=torch.float32)
    return column[0][:, None], column[1][:, None], torch.tensor(weights_B), torch.tensor(groups_B, dtype=torch.int64)


@given(rows=small_rows(), cut=st.integers(0, 24))
@settings(max_examples=150, deadline=None)
def test_equals_scikit_learn_whatever_the_rows_and_batches(rows: Rows, cut: int) -> None:
    metrics = Metrics(["click"], group="user")
    for part in (slice(None, cut), slice(cut, None)):
        metrics.update(*(column[part] for column in rows))
    [expected] = reference(*rows)
    assert metrics.compute() == close(expected)
    assert metrics.compute() == close(expected), "computing changes nothing"


def test_several_tasks_have_keys_of_their_own() -> None:
    rows = random_rows(301, tasks=3, seed=1)
    metrics = Metrics(["click", "cart", "buy"], group="user")
    metrics.update(*rows)
    values = metrics.compute()
    for task, expected in zip(metrics.tasks, reference(*rows), strict=True):
        shared = {name: expected.pop(name) for name in ("ungrouped", "rows", "weight")}
        assert {name: values.pop(f"{task}/{name}") for name in expected} == close(expected)
    assert values == close(shared), "what all tasks share, once"


def test_padding_rows_count_nowhere() -> None:
    logits_BK, labels_BK, weights_B, groups_B = random_rows(50, tasks=2, seed=2)
    plain, padded = Metrics(["a", "b"], group="user"), Metrics(["a", "b"], group="user")
    plain.update(logits_BK, labels_BK, weights_B, groups_B)
    padded.update(logits_BK, labels_BK, weights_B, groups_B)
    padded.update(torch.full((3, 2), NAN), torch.full((3, 2), 9.0), torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    assert padded.compute() == plain.compute()


def test_a_new_object_starts_empty_and_the_callers_tensors_may_change() -> None:
    rows = random_rows(40, tasks=1, seed=3)
    metrics = Metrics(["click"], group="user")
    metrics.update(*rows)
    [expected] = reference(*rows)
    for column in rows:
        column.fill_(1)
    assert metrics.compute() == close(expected)
    empty = Metrics(["click"], group="user").compute()
    assert empty == close(dict.fromkeys(expected, NAN) | {"rows": 0.0, "weight": 0.0})


def test_undefined_metrics_are_nan() -> None:
    metrics = Metrics(["click"], group="user")
    metrics.update(torch.tensor([[0.3], [2.0]]), torch.zeros(2, 1), torch.ones(2), torch.tensor([4, 4]))
    values = metrics.compute()
    assert {name for name, value in values.items() if math.isnan(value)} == {"auc", "gauc", "ne", "calibration"}
    metrics.update(torch.tensor([[NAN], [2.0]]), torch.ones(2, 1), torch.ones(2), torch.tensor([4, 4]))
    values = metrics.compute()
    assert {name for name, value in values.items() if not math.isnan(value)} == {"ungrouped", "rows", "weight"}


def test_large_logits_lose_no_precision() -> None:
    metrics = Metrics(["click"])
    metrics.update(torch.tensor([[80.0], [-80.0], [40.0]]), torch.tensor([[0.0], [1.0], [1.0]]), torch.ones(3))
    assert metrics.compute()["logloss"] == pytest.approx((160 + math.exp(-40)) / 3, rel=1e-15)
    metrics.update(torch.tensor([[math.inf]]), torch.tensor([[1.0]]), torch.ones(1))
    assert metrics.compute()["logloss"] == pytest.approx(40)
    metrics.update(torch.tensor([[math.inf]]), torch.tensor([[0.0]]), torch.ones(1))
    assert metrics.compute()["logloss"] == math.inf


def test_bfloat16_logits_are_ranked_as_they_are() -> None:
    logits_BK, labels_BK, weights_B, groups_B = random_rows(60, tasks=1, seed=4, distinct=60)
    metrics = Metrics(["click"], group="user")
    metrics.update(logits_BK.bfloat16(), labels_BK, weights_B, groups_B)
    [expected] = reference(logits_BK.bfloat16().float(), labels_BK, weights_B, groups_B)
    assert metrics.compute() == close(expected)


@given(seed=st.integers(0, 10**6), bins=st.sampled_from([2, 5, 64, 4096]), scale=st.sampled_from([0.1, 1.0, 20.0]))
@settings(max_examples=40, deadline=None)
def test_histogram_auc_is_within_its_bound(seed: int, bins: int, scale: float) -> None:
    logits_BK, labels_BK, weights_B, _ = random_rows(200, tasks=2, seed=seed, distinct=150)
    rows = logits_BK * scale, labels_BK, weights_B
    exact, binned = Metrics(["a", "b"]), Metrics(["a", "b"], auc_bins=bins)
    for metrics in (exact, binned):
        metrics.update(*rows)
    expected, values = exact.compute(), binned.compute()
    for task in ("a", "b"):
        bound = values[f"{task}/auc_error_bound"]
        assert abs(values[f"{task}/auc"] - expected[f"{task}/auc"]) <= bound + 1e-12
        assert bound <= 0.5
        assert values[f"{task}/logloss"] == expected[f"{task}/logloss"]


def test_histogram_bound_shrinks_with_bins_and_no_rows_are_kept() -> None:
    rows = random_rows(4000, tasks=1, seed=5, distinct=4000)
    bounds = []
    for bins in (16, 256, 65_536):
        metrics = Metrics(["click"], auc_bins=bins)
        metrics.update(*rows[:3])
        bounds.append(metrics.compute()["auc_error_bound"])
        assert not metrics._batches
    assert bounds[0] > 10 * bounds[1] > 500 * bounds[2] > 0
    nan = Metrics(["click"], auc_bins=16, group="user")
    nan.update(torch.tensor([[NAN], [1.0]]), torch.tensor([[0.0], [1.0]]), torch.ones(2), torch.ones(2).long())
    assert math.isnan(nan.compute()["auc"])
    assert math.isnan(nan.compute()["auc_error_bound"])


def test_ties_between_float32_neighbours_are_not_merged() -> None:
    score = np.nextafter(np.float32(0.1), np.float32(1))
    assert exact_auc(torch.tensor([0.1, score]), torch.tensor([-1.0, 1.0])) == 1.0


@pytest.mark.parametrize("auc_bins", [None, 64])
def test_soft_labels_are_probabilities_and_ranked_nowhere(auc_bins: int | None) -> None:
    random = torch.Generator().manual_seed(0)
    logits_BK = torch.randn(200, 1, generator=random)
    weights_B = torch.randint(0, 3, (200,), generator=random).float()
    groups_B = torch.randint(0, 5, (200,), generator=random)
    labels_BK = (torch.randint(0, 5, (200, 1), generator=random) / 4.0).float()  # 0, 0.25, 0.5, 0.75 and 1
    metrics = Metrics(["click"], group="user", auc_bins=auc_bins)
    metrics.update(logits_BK, labels_BK, weights_B, groups_B)
    found = metrics.compute()
    probability, labels, weights = (
        column.double().numpy() for column in (logits_BK[:, 0].double().sigmoid(), labels_BK[:, 0], weights_B)
    )
    loss = -(labels * np.log(probability) + (1 - labels) * np.log1p(-probability))
    mean = np.average(labels, weights=weights)
    entropy = -(mean * math.log(mean) + (1 - mean) * math.log(1 - mean))
    assert found["logloss"] == pytest.approx(np.average(loss, weights=weights))
    assert found["ne"] == pytest.approx(found["logloss"] / entropy)
    assert found["calibration"] == pytest.approx(np.average(probability, weights=weights) / mean)
    counted_B = weights_B > 0
    soft_B = (labels_BK[:, 0] > 0) & (labels_BK[:, 0] < 1)
    assert found["soft_labels"] == int((soft_B & counted_B).sum())
    hard = Metrics(["click"], group="user", auc_bins=auc_bins)
    hard.update(logits_BK[~soft_B], labels_BK[~soft_B], weights_B[~soft_B], groups_B[~soft_B])
    expected = hard.compute()
    assert (found["auc"], found["gauc"]) == (expected["auc"], expected["gauc"])
    assert "soft_labels" not in expected
    all_soft = Metrics(["click"], group="user", auc_bins=auc_bins)
    all_soft.update(logits_BK[soft_B], labels_BK[soft_B], weights_B[soft_B], groups_B[soft_B])
    undefined = all_soft.compute()
    assert math.isnan(undefined["auc"])
    assert math.isnan(undefined["gauc"])
    assert math.isfinite(undefined["ne"])


def test_an_infinite_logit_is_a_finite_loss_where_it_is_right() -> None:
    metrics = Metrics(["click"])
    metrics.update(torch.tensor([[math.inf], [-math.inf]]), torch.tensor([[1.0], [0.0]]), torch.ones(2))
    assert metrics.compute()["logloss"] == 0.0


def test_user_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="auc_bins is 1: give 2 bins or more, or nothing for the exact AUC"):
        Metrics(["click"], auc_bins=1)
    with pytest.raises(ValueError, match=r"GAUC by 'user' needs groups_B.*found None"):
        Metrics(["click"], group="user").update(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2))
    metrics = Metrics(["click", "stars"])
    metrics.update(torch.zeros(3, 2), torch.tensor([[0.0, 5.0], [1.0, 1.0], [0.0, NAN]]), torch.ones(3))
    with pytest.raises(ValueError, match="2 labels of task 'stars' are not from 0 to 1"):
        metrics.compute()
    for bad in (-1.0, NAN, math.inf):
        metrics = Metrics(["click"])
        metrics.update(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([1.0, bad]))
        with pytest.raises(ValueError, match="1 weights are negative or not finite, expected 0 or more"):
            metrics.compute()


# rows, distinct scores, and the share of the rows that each rank gets
CASES = [
    (0, 3, [0.0, 0.0]),
    (1, 3, [0.0, 1.0]),
    (40, 3, [1.0]),
    (40, 1, [0.2, 0.8]),
    (60, 9, [0.5, 0.0, 0.5]),
    (4000, 5000, [0.05, 0.35, 0.6]),
    (4000, 20, [0.9, 0.1]),
]


def part(rows: Rows, shares: list[float], rank: int, world_size: int) -> Rows:
    """Rank r's rows; ranks beyond the shares have none, and the last rank has what is left."""
    cuts = [round(sum(shares[:r]) * len(rows[0])) for r in range(world_size)] + [len(rows[0])]
    a, b, c, d = (column[cuts[rank] : cuts[rank + 1]] for column in rows)
    return a, b, c, d


def compute_on_ranks(rank: int, world_size: int) -> dict[str, object]:
    result: dict[str, object] = {}
    for case, (count, distinct, shares) in enumerate(CASES):
        rows = part(random_rows(count, tasks=2, seed=case, distinct=distinct), shares, rank, world_size)
        for bins in (None, 64):
            metrics = Metrics(["click", "buy"], group="user", auc_bins=bins)
            if len(rows[0]):
                metrics.update(*rows)
            result[f"{case} {bins}"] = metrics.compute()
            if case == 4:
                assert metrics.compute() == result[f"{case} {bins}"], "computing changes nothing"
    bad = Metrics(["click"])
    bad.update(torch.zeros(1, 1), torch.full((1, 1), 2.0 if rank == 0 else 1.0), torch.ones(1))
    with pytest.raises(ValueError, match="1 labels of task 'click'") as error:
        bad.compute()
    result["error"] = str(error.value)
    world = torch.distributed.group.WORLD
    assert world is not None
    group_N = torch.arange(rank, 3000, world_size) * 64
    result["groups_received"] = len(route_by_group(group_N, world)(group_N))
    score_R = torch.randn(1000, generator=torch.Generator().manual_seed(rank)).sort().values
    result["scores_of_range"] = torch.searchsorted(splitters(score_R, world), score_R).bincount(minlength=world_size)
    return result


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_with_uneven_rows_agree_and_equal_scikit_learn(world_size: int, tmp_path: Path) -> None:
    results = run_ranks(world_size, compute_on_ranks, tmp_path)
    received = [result.pop("groups_received") for result in results]
    assert sum(received) == 3000
    assert max(received) < 1.2 * 3000 / world_size
    scores = torch.stack([result.pop("scores_of_range") for result in results]).sum(0)
    assert scores.max() < 1.1 * 1000
    # repr, because nan differs from itself: the same floats to the last bit on every rank
    assert len({repr(result) for result in results}) == 1
    for case, (count, distinct, _) in enumerate(CASES):
        exact, binned = results[0][f"{case} None"], results[0][f"{case} 64"]
        for task, expected in zip(("click", "buy"), reference(*random_rows(count, 2, case, distinct)), strict=True):
            assert {name: exact.get(f"{task}/{name}", exact.get(name)) for name in expected} == close(expected)
            error = abs(binned[f"{task}/auc"] - expected["auc"])
            assert math.isnan(error) or error <= binned[f"{task}/auc_error_bound"] + 1e-12
            assert binned[f"{task}/gauc"] == close(expected["gauc"])
