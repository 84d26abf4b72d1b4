"""Managed tables on one and two ranks: one map, rows that start where they stood, and checkpoints between them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed.shards_wrapper import LocalShardsWrapper

from rankmixer.embeddings.managed import FREE
from rankmixer.embeddings.managed_tables import ShardedManagedTables
from rankmixer.embeddings.sharding import Cluster
from rankmixer.launch.config.config import Config, check_world
from rankmixer.launch.job.job import outputs, random_state, sizes_of, waiting_state
from rankmixer.launch.job.restoring import restore
from rankmixer.launch.model.build import Build, build
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.schema.schema import MANAGED_HASHES
from rankmixer.pipeline.train.train_pipeline import AgreedPipeline
from tests.helpers.ranks import run_ranks

FEATURES: dict[str, dict[str, Any]] = {
    "seen": {"kind": "id_list", "managed": 1, "dim": 16, "table": "user", "weights": "w", "group": "user"},
    "city": {"kind": "id", "range": 30, "dim": 8, "group": "user"},
    "user": {"kind": "id", "managed": 1, "dim": 16, "group": "user"},
    "price": {"kind": "number", "group": "item"},
    "tags": {"kind": "id_list", "managed": 1, "dim": 12, "pooling": "mean", "group": "item"},
}
GLOBAL_BATCH, STEPS, SAVED = 48, 26, 21  # in step 21 ids wait: 20 and 22 are due


def config(**changes: Any) -> Config:
    tree: dict[str, Any] = {
        "feature_schema": {"features": FEATURES, "labels": {"click": {}}},
        "data": {"train": "unused", "batch_size": GLOBAL_BATCH, "evaluate_batch_size": GLOBAL_BATCH},
        "model": {"tokens": 4, "width": 12, "layers": 1},
        "plan": {"init_scale": 0.5},
    }
    return Config.model_validate({**tree, **changes})


def batch(step: int, rank: int, world_size: int, keys: list[str]) -> Batch:
    """This rank's rows of a step; of its ids some are new in every step, and more come than have room."""
    generator = torch.Generator().manual_seed(step)
    hashes = torch.randint(MANAGED_HASHES, (3, 1500), generator=torch.Generator().manual_seed(99))
    values, lengths, weights = [], [], []
    local = GLOBAL_BATCH // world_size
    mine = slice(rank * local, (rank + 1) * local)
    for key in keys:
        is_list = FEATURES[key]["kind"] == "id_list"
        counts = torch.randint(1, 5, (GLOBAL_BATCH,), generator=generator) if is_list else torch.ones(GLOBAL_BATCH)
        draws = (torch.rand(int(counts.sum()), generator=generator) ** 2 * 1500).long()
        ids = draws % 30 if key == "city" else hashes[2 if key == "tags" else 0][draws]
        here = ids.split(counts.long().tolist())[mine]
        values += here
        lengths += [len(bag) for bag in here]
        weight = torch.rand(len(ids), generator=generator) if key == "seen" else torch.ones(len(ids))
        weights += weight.split(counts.long().tolist())[mine]
    return Batch(
        sparse=KeyedJaggedTensor(
            keys=keys,
            values=torch.cat(values),
            lengths=torch.tensor(lengths, dtype=torch.int32),
            weights=torch.cat(weights),
        ),
        dense_BF=torch.randn(GLOBAL_BATCH, 1, generator=generator)[mine],
        labels_BK=torch.randint(2, (GLOBAL_BATCH, 1), generator=generator).float()[mine],
        weights_B=torch.ones(local),
    )


def gathered(value: DTensor) -> torch.Tensor:
    """The whole of a row-wise sharded tensor, on every rank."""
    local = value.to_local()
    shards = local.local_shards() if isinstance(local, LocalShardsWrapper) else [local]
    pieces: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, [shard.clone() for shard in shards])
    return torch.cat([piece for part in pieces for piece in part])


def whole(built: Build) -> dict[str, torch.Tensor]:
    """Maps, tables and their optimizer's state, by name."""
    state = built.state()
    named = {name: value for name, value in state["model"].items() if isinstance(value, DTensor)}
    for parameter, states in state["optimizer"]["state"].items():
        named |= {f"{parameter}.{name}": value for name, value in states.items() if isinstance(value, DTensor)}
    return {name: gathered(value) for name, value in sorted(named.items()) if "managed" in name}


class Reader:
    """What `outputs` wants of a BatchReader: one evaluation batch of known and unknown ids."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def epoch(self, number: int) -> Iterator[Batch]:
        yield self._batch

    def steps(self) -> int:
        return 1


def train_on_ranks(rank: int, world_size: int, folder: str, first: int) -> dict[str, Any]:
    """Steps `first` to STEPS, the earlier ones from the checkpoint; saves after SAVED. And an evaluation at the end."""
    assert dist.group.WORLD is not None
    ranks = Ranks(rank, world_size, rank, world_size, torch.device("cpu"), dist.new_group(backend="gloo"))
    run, checkpoints = config(), Checkpoints(folder)
    built = build(run, ranks, Cluster("cpu", world_size, world_size, 0, 8 << 30), total_steps=STEPS)
    keys = run.feature_schema.sparse_features
    if first > 1:
        restore(built, ranks, checkpoints, f"step-{first - 1:08d}", run, to_resume=True)
    result: dict[str, Any] = {"losses": [], "at_start": whole(built), "waiting": sizes_of(waiting_state(built, ranks))}
    pipeline = AgreedPipeline(built.model, built.optimizer, ranks.device, ranks.control)
    batches = iter([batch(step, rank, world_size, keys) for step in range(first, STEPS + 1)])
    for step in range(first, STEPS + 1):
        loss = pipeline.progress(batches).loss.clone()
        dist.all_reduce(loss)
        result["losses"].append(loss.item() / world_size)
        if step == SAVED and first == 1:
            waiting = waiting_state(built, ranks)
            meta = {"schema_digest": run.feature_schema.digest(), "world_size": world_size, "device": "cpu"}
            meta |= {"config": {}, "waiting": sizes_of(waiting)}
            checkpoints.save(step, {**built.state(), "random": random_state(ranks), "waiting": waiting}, meta)
            result["at_save"] = whole(built)
    pipeline.detach()
    result["after"] = whole(built)
    [output] = outputs(built, ranks, Reader(batch(1000, rank, world_size, keys)))  # type: ignore[arg-type]
    logits: list[Any] = [None] * world_size
    dist.all_gather_object(logits, output.logits_BK)
    assert all(torch.equal(value, result["after"][name]) for name, value in whole(built).items()), "evaluation trained"
    return {**result, "logits": torch.cat(logits)}


def check_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert sum(name.endswith("id_N") for name in one) == 2
    assert sum(name.endswith("weight") for name in one) == 2
    for name, value in one.items():
        if value.dtype == torch.int64:
            assert torch.equal(value, other[name]), name  # the map, to the last bit
        else:
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_one_map_on_any_number_of_ranks_and_through_checkpoints(tmp_path: Path) -> None:
    one, two = (run_ranks(ranks, train_on_ranks, tmp_path, f"{tmp_path}/{ranks}", 1) for ranks in (1, 2))
    id_N = next(value for name, value in one[0]["after"].items() if name.endswith("user.id_N"))
    before = next(value for name, value in one[0]["at_save"].items() if name.endswith("user.id_N"))
    taken, left = set(before.tolist()) - {FREE}, set(before.tolist()) - set(id_N.tolist()) - {FREE}
    assert len(taken) > 300
    assert left, "nobody was evicted"
    check_same(one[0]["after"], two[0]["after"])
    assert two[0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-4)
    torch.testing.assert_close(two[0]["logits"], one[0]["logits"], rtol=1e-3, atol=1e-4)

    for ranks, saved_by, undisturbed in ((2, 2, two), (1, 2, two), (2, 1, one)):
        resumed = run_ranks(ranks, train_on_ranks, tmp_path, f"{tmp_path}/{saved_by}", SAVED + 1)
        for name, value in undisturbed[0]["at_save"].items():
            assert torch.equal(resumed[0]["at_start"][name], value), name
        assert sum(tables["user"] for tables in resumed[0]["waiting"].values()) > 0
        check_same(undisturbed[0]["after"], resumed[0]["after"])
        if ranks == saved_by:
            assert resumed[0]["losses"] == undisturbed[0]["losses"][SAVED:]
            assert torch.equal(resumed[0]["logits"], undisturbed[0]["logits"])
            assert all(torch.equal(value, resumed[0]["after"][name]) for name, value in undisturbed[0]["after"].items())
        else:
            assert resumed[0]["losses"] == pytest.approx(undisturbed[0]["losses"][SAVED:], rel=1e-4)


@pytest.fixture(scope="module")
def single_rank() -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield Ranks(0, 1, 0, 1, torch.device("cpu"), dist.group.WORLD)
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad", "sgd"])
def test_a_row_that_is_given_out_starts_as_the_shared_one_and_without_optimizer_state(
    single_rank: Ranks, kind: str
) -> None:
    run = config(optimizer={"sparse": {"kind": kind}})
    built = build(run, single_rank, Cluster("cpu", 1, 1, 0, 8 << 30), total_steps=9)
    pipeline = AgreedPipeline(built.model, built.optimizer, single_rank.device, single_rank.control)
    batches = iter([batch(step, 0, 1, run.feature_schema.sparse_features) for step in range(1, 4)])
    for _ in range(3):
        pipeline.progress(batches)
    [tables] = [module for module in built.model.modules() if isinstance(module, ShardedManagedTables)]
    before = whole(built)
    rows = torch.tensor([0, 6, 7, 1918])  # segments of two rows: the second is shared
    tables._evict({"user": rows, "tags": None})
    for name, value in whole(built).items():
        expected = before[name].clone()
        if name.endswith("user.weight"):
            expected[rows] = before[name][[1, 7, 7, 1919]]
        elif "user.weight." in name:
            assert expected.abs().sum() > 0
            expected[rows] = 0
        assert torch.equal(value, expected), name
    assert any("user.weight." in name for name in before) == (kind != "sgd")


@pytest.mark.parametrize("arch", ["dlrm", "dcn", "deepfm", "mlp"])
def test_other_dense_parts_have_managed_tables_too(single_rank: Ranks, arch: str) -> None:
    features = {name: {**feature, "dim": 12} for name, feature in FEATURES.items() if name != "price"}
    features["price"] = FEATURES["price"]
    run = config(model={"arch": arch}, feature_schema={"features": features, "labels": {"click": {}}})
    built = build(run, single_rank, Cluster("cpu", 1, 1, 0, 8 << 30), total_steps=9)
    pipeline = AgreedPipeline(built.model, built.optimizer, single_rank.device, single_rank.control)
    before = whole(built)
    pipeline.progress(iter([batch(1, 0, 1, run.feature_schema.sparse_features)]))
    assert all(not torch.equal(value, before[name]) for name, value in whole(built).items())


def test_a_job_of_managed_tables_alone(single_rank: Ranks) -> None:
    features = {"user": {"kind": "id", "managed": 1, "dim": 16}}
    run = config(feature_schema={"features": features, "labels": {"click": {}}})
    built = build(run, single_rank, Cluster("cpu", 1, 1, 0, 8 << 30), total_steps=9)
    assert [(shard.table, shard.sharding, shard.kernel) for shard in built.plan] == [("user", "row_wise", "fused")]


def test_what_cannot_be_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"plan.tables.user.sharding is table_wise, but user is managed, .* remove"):
        config(plan={"tables": {"user": {"sharding": "table_wise"}}})
    with pytest.raises(ValueError, match=r"plan.tables.tags.kernel is fused_uvm_caching, .* use fused or fused_uvm"):
        config(plan={"tables": {"tags": {"kernel": "fused_uvm_caching"}}})
    config(
        plan={"tables": {"tags": {"kernel": "fused_uvm", "sharding": "row_wise"}, "city": {"sharding": "table_wise"}}}
    )
    with pytest.raises(
        ValueError, match=r"\['user', 'tags'\] are cut into 960 segments, .* 7 ranks .* use 6 or 8 ranks"
    ):
        check_world(config(data={"train": "unused", "batch_size": 49, "evaluate_batch_size": 49}), 7)
