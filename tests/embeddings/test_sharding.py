"""Tables sharded over ranks equal the same tables in one process: outputs, loss and weights after a step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec import KeyedJaggedTensor

from rankmixer.embeddings import initialise
from rankmixer.embeddings.initialise import draw_shard, initialise_tables, local_shards
from rankmixer.embeddings.sharding import Cluster, TablePlan, plan_tables
from rankmixer.embeddings.tables import FeatureEmbeddings, embedding_tables
from rankmixer.launch.config.config import Config
from rankmixer.launch.model.build import build, build_ranker
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.schema.schema import Schema
from rankmixer.pipeline.train.train_pipeline import AgreedPipeline
from tests.helpers.ranks import run_ranks

FEATURES: dict[str, dict[str, Any]] = {
    "user": {"kind": "id", "range": 50, "dim": 16, "group": "user"},
    "price": {"kind": "number", "group": "user"},
    "city": {"kind": "id", "range": 30, "dim": 8, "group": "user"},
    "item": {"kind": "id", "range": 40, "dim": 12, "group": "item"},
    "tags": {"kind": "id_list", "range": 20, "dim": 8, "pooling": "mean", "group": "item"},
    "seen": {"kind": "id_list", "range": 40, "dim": 12, "table": "item", "group": "item"},
}
PLANS = {
    "a": {"user": "row_wise", "city": "table_wise", "item": "column_wise", "tags": "table_row_wise"},
    "b": {"user": "column_wise", "city": "row_wise", "item": "table_row_wise", "tags": "table_wise"},
    "planner": {},
}
GLOBAL_BATCH = 24


def config(plan: str) -> Config:
    return Config.model_validate(
        {
            "feature_schema": {"features": FEATURES, "labels": {"click": {}, "like": {"weight": 0.5}}},
            "data": {"train": "unused", "batch_size": GLOBAL_BATCH},
            "model": {"tokens": 4, "width": 12, "layers": 1},
            "optimizer": {"sparse": {"kind": "sgd", "lr": 0.7}},
            "plan": {"tables": {name: {"sharding": kind} for name, kind in PLANS[plan].items()}, "init_scale": 0.5},
        }
    )


def global_batch(weights: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    columns: dict[str, Any] = {}
    for name, feature in FEATURES.items():
        if feature["kind"] == "id":
            columns[name] = [torch.randint(feature["range"], (1,), generator=generator) for _ in range(GLOBAL_BATCH)]
        elif feature["kind"] == "id_list":
            lengths = torch.randint(4, (GLOBAL_BATCH,), generator=generator).tolist()
            columns[name] = [torch.randint(feature["range"], (length,), generator=generator) for length in lengths]
    columns["dense"] = torch.randn(GLOBAL_BATCH, 1, generator=generator)
    columns["labels"] = torch.randint(2, (GLOBAL_BATCH, 2), generator=generator).float()
    columns["weights"] = torch.rand(GLOBAL_BATCH, generator=generator) if weights is None else weights
    return columns


def batch_of(columns: dict[str, Any], keys: list[str], rows: slice) -> Batch:
    lists = {key: columns[key][rows] for key in keys}
    return Batch(
        sparse=KeyedJaggedTensor(
            keys=keys,
            values=torch.cat([value for key in keys for value in lists[key]]),
            lengths=torch.tensor([len(value) for key in keys for value in lists[key]], dtype=torch.int32),
        ),
        dense_BF=columns["dense"][rows],
        labels_BK=columns["labels"][rows],
        weights_B=columns["weights"][rows],
    )


def gathered(weight: torch.Tensor) -> torch.Tensor:
    """The full table on every rank."""
    shards: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shards, [(shard.clone(), offset) for shard, offset in local_shards(weight)])
    full = torch.full(weight.shape, float("nan"))
    for shard, (row, column) in (piece for pieces in shards for piece in pieces):
        full[row : row + shard.shape[0], column : column + shard.shape[1]] = shard
    return full


def step_on_ranks(rank: int, world_size: int, plan: str, weights: torch.Tensor | None) -> dict[str, Any]:
    """One training step through the pipeline; the loss, the logits and all weights before and after."""
    assert dist.group.WORLD is not None
    ranks = Ranks(rank, world_size, rank, world_size, torch.device("cpu"), dist.new_group(backend="gloo"))
    run = config(plan)
    built = build(run, ranks, Cluster("cpu", world_size, world_size, 0, 8 << 30), total_steps=10)

    def weights_now() -> dict[str, torch.Tensor]:
        state = built.model.state_dict()
        return {name: gathered(value) if "embedding_bags" in name else value.clone() for name, value in state.items()}

    local = GLOBAL_BATCH // world_size
    batch = batch_of(global_batch(weights), run.feature_schema.sparse_features, slice(rank * local, (rank + 1) * local))
    before = weights_now()
    pipeline = AgreedPipeline(built.model, built.optimizer, ranks.device, ranks.control)
    output = pipeline.progress(iter([batch]))
    loss = output.loss.clone()
    dist.all_reduce(loss)
    logits = [torch.empty(local, 2) for _ in range(world_size)]
    dist.all_gather(logits, output.logits_BK)
    return {
        "loss": loss.item() / world_size,
        "logits": torch.cat(logits),
        "before": before,
        "after": weights_now(),
        "kinds": {shard.table: shard.sharding for shard in built.plan},
    }


def step_in_one_process(before: dict[str, torch.Tensor], weights: torch.Tensor | None) -> dict[str, Any]:
    """The same step without sharding, pipeline or process group: plain autograd and SGD on the tables."""
    run = config("planner")
    ranker = build_ranker(run, torch.device("cpu")).to_empty(device="cpu")
    ranker.loss.weight_K = torch.tensor([1.0, 0.5])  # to_empty has emptied the buffer
    ranker.load_state_dict(before)
    columns = global_batch(weights)
    batch = batch_of(columns, run.feature_schema.sparse_features, slice(None))
    batch.loss_scale = 1 / columns["weights"].sum()
    loss, output = ranker(batch)
    loss.backward()
    tables = [parameter for name, parameter in ranker.named_parameters() if "embedding_bags" in name]
    dense = [parameter for name, parameter in ranker.named_parameters() if "embedding_bags" not in name]
    torch.optim.SGD(tables, lr=0.7).step()
    torch.optim.AdamW(dense, lr=1e-3, weight_decay=0.0).step()
    return {"loss": loss.item(), "logits": output.logits_BK, "after": dict(ranker.state_dict())}


@pytest.mark.parametrize("world_size", [2, 4])
def test_sharded_equals_unsharded(world_size: int, tmp_path: Path) -> None:
    # The last rank of four is all padding, the other weights are unequal.
    weights = torch.linspace(0.1, 3.0, GLOBAL_BATCH)
    weights[-GLOBAL_BATCH // 4 :] = 0.0
    results = {}
    for plan in ("a", "b") if world_size == 4 else ("a", "planner"):
        sharded = run_ranks(world_size, step_on_ranks, tmp_path, plan, weights)
        reference = step_in_one_process(sharded[0]["before"], weights)
        for result in sharded:
            assert result["loss"] == pytest.approx(reference["loss"], rel=1e-6)
            torch.testing.assert_close(result["logits"], reference["logits"], rtol=1e-5, atol=1e-6)
            for name, value in reference["after"].items():
                torch.testing.assert_close(result["after"][name], value, rtol=1e-5, atol=1e-6, msg=name)
        assert any(not torch.equal(sharded[0]["before"][name], value) for name, value in sharded[0]["after"].items()), (
            "nothing was trained"
        )
        if PLANS[plan]:
            assert sharded[0]["kinds"] == PLANS[plan]
        results[plan] = sharded[0]
    # Neither the initial weights nor the outputs depend on the plan.
    first, second = results.values()
    for name, value in first["before"].items():
        torch.testing.assert_close(second["before"][name], value, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(first["logits"], second["logits"], rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def single_rank() -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield Ranks(0, 1, 0, 1, torch.device("cpu"), dist.group.WORLD)
    dist.destroy_process_group()


def test_every_parameter_is_initialised(single_rank: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    # Memory that nobody fills would be NaN.
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(float("nan")))
    built = build(config("planner"), single_rank, Cluster("cpu", 1, 1, 0, 8 << 30), total_steps=1)
    for name, parameter in built.model.named_parameters():
        assert parameter.isfinite().all(), name
    tables = {name: p for name, p in built.model.named_parameters() if "embedding_bags" in name}
    assert tables
    for name, table in tables.items():
        assert 0 < table.abs().max() <= 0.5, name


@pytest.mark.parametrize("dim", [6, 8])
def test_every_shard_draws_its_part_of_the_table(monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    monkeypatch.setattr(initialise, "ROWS_AT_ONCE", 7)
    whole = torch.empty(20, dim)
    draw_shard(whole, (0, 0), dim, seed=5, table="item", scale=0.25)
    assert whole.abs().max() <= 0.25
    for row, column, rows, columns in ((0, 0, 10, dim), (10, 0, 10, dim), (3, 2, 15, 4), (19, dim - 1, 1, 1)):
        shard = torch.empty(rows, columns)
        draw_shard(shard, (row, column), dim, seed=5, table="item", scale=0.25)
        assert torch.equal(shard, whole[row : row + rows, column : column + columns])


def test_tables_seeds_and_rows_start_with_values_of_their_own() -> None:
    # More rows than are drawn at once; seeds that agree in their low 32 bits too.
    rows, dim = initialise.ROWS_AT_ONCE + 100, 4
    values = []
    for table in ("item", "user", "user0"):
        for seed in (0, 1, 2, 2**31, 2**32 - 1):
            values.append(torch.empty(rows, dim))
            draw_shard(values[-1], (0, 0), dim, seed, table, scale=1.0)
    drawn = torch.cat(values)
    # Of 24-bit draws about a third of a row's dim meet by chance somewhere, whole rows never.
    assert len(torch.unique(drawn, dim=0)) == len(drawn)
    standardised = torch.stack([value.flatten() for value in values]) / (1 / 3) ** 0.5
    correlation = standardised @ standardised.T / (rows * dim)
    assert (correlation - torch.eye(len(values))).abs().max() < 0.01
    assert drawn.mean().abs() < 0.01


def test_a_plan_that_does_not_fit_says_what_to_change() -> None:
    schema = Schema.model_validate({"features": FEATURES, "labels": {"click": {}}})
    model = FeatureEmbeddings(schema, embedding_tables(schema))
    with pytest.raises(ValueError, match=r"no sharding plan fits 2 ranks .* use more ranks, raise plan.hbm_gb"):
        plan_tables(
            model,
            schema,
            {"user": TablePlan("table_wise")},
            Cluster("cpu", 2, 2, 0, 1 << 10),
            local_batch_size=4,
            reserved_bytes=0,
        )


def test_initialisation_leaves_other_modules_alone() -> None:
    linear = nn.Linear(2, 2)
    before = linear.weight.clone()
    initialise_tables(linear, seed=0, scale=9.0)
    assert torch.equal(linear.weight, before)
