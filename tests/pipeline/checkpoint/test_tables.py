"""Checkpoints of sharded TorchRec tables, their fused optimizers, dense parameters and DTensors, on 1 and 2 ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from rankmixer.pipeline.base.collective import together
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsWriter
from tests.helpers.ranks import run_ranks
from tests.pipeline.checkpoint.test_checkpoint import forbid_pickle

# rows, columns and fused optimizer of each table; the last one keeps a value a weight, the others a value a row.
TABLES = {
    "t0": (9, 8, RowWiseAdagrad),
    "t1": (11, 12, RowWiseAdagrad),
    "t2": (13, 16, RowWiseAdagrad),
    "t3": (15, 20, RowWiseAdagrad),
    "t4": (17, 24, torch.optim.Adagrad),
}
fused_row_wise = partial(row_wise, compute_kernel="fused")
fused_table_wise = partial(table_wise, compute_kernel="fused")
fused_column_wise = partial(column_wise, compute_kernel="fused")
PLANS: dict[str, dict[str, Any]] = {
    "first": {
        "t0": fused_table_wise(rank=1),
        "t1": fused_row_wise(),
        "t2": fused_column_wise(ranks=[0, 0]),  # two shards on one rank
        "t3": table_row_wise(host_index=0),
        "t4": fused_column_wise(ranks=[1, 0]),
    },
    "second": {
        "t0": fused_column_wise(ranks=[1, 0]),
        "t1": fused_table_wise(rank=0),
        "t2": fused_row_wise(),
        "t3": fused_column_wise(ranks=[1, 1]),
        "t4": fused_table_wise(rank=1),
    },
    "one rank": {
        "t0": fused_table_wise(rank=0),
        "t1": fused_row_wise(),
        "t2": fused_column_wise(ranks=[0, 0, 0, 0]),
        "t3": fused_table_wise(rank=0),
        "t4": fused_row_wise(),
    },
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=name, embedding_dim=dim, num_embeddings=rows, feature_names=[f"f_{name}"])
            for name, (rows, dim, _) in TABLES.items()
        ]
        self.tables = EmbeddingBagCollection(tables, device=torch.device("meta"))
        self.head = nn.Linear(sum(dim for _, dim, _ in TABLES.values()), 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        embeddings = self.tables(features).to_dict()
        logits: Tensor = self.head(torch.cat([embeddings[f"f_{name}"] for name in TABLES], dim=1))
        return logits


class Job:
    """A sharded model with its optimizers and a DTensor beside it, as the launcher builds them."""

    def __init__(self, plan: str, seed: int) -> None:
        torch.manual_seed(seed)
        world_size = dist.get_world_size()
        model = Model()
        for name, (_, _, optimizer) in TABLES.items():
            _apply_optimizer_in_backward(
                optimizer, model.tables.embedding_bags[name].parameters(), {"lr": 0.1, "eps": 1e-8}
            )
        sharder = EmbeddingBagCollectionSharder()
        module_plan = construct_module_sharding_plan(
            model.tables, PLANS[plan], sharder, local_size=world_size, world_size=world_size, device_type="cpu"
        )
        self.model = DistributedModelParallel(
            model,
            env=ShardingEnv(world_size, dist.get_rank(), dist.group.WORLD, output_dtensor=True),
            device=torch.device("cpu"),
            plan=ShardingPlan({"tables": module_plan}),
            sharders=[sharder],
        )
        dense = dict(in_backward_optimizer_filter(self.model.named_parameters()))
        self.dense = KeyedOptimizerWrapper(dense, lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1))
        self.optimizer = CombinedOptimizer([self.model.fused_optimizer, self.dense])
        mesh = init_device_mesh("cpu", (world_size,))
        self.experts = distribute_tensor(torch.randn(6, 3, 2), mesh, [Shard(0)])

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "experts": {"weight": self.experts},
        }

    def load(self, checkpoints: Checkpoints, name: str) -> dict[str, Any]:
        self.dense.init_state()
        self.dense.zero_grad()
        state = self.state()
        meta = checkpoints.load(name, state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return meta

    def train(self, step: int) -> Tensor:
        """One step on a batch that is the same on all ranks; returns the logits."""
        generator = torch.Generator().manual_seed(step)
        values = [torch.randint(rows, (14,), generator=generator) for rows, _, _ in TABLES.values()]
        features = KeyedJaggedTensor.from_lengths_sync(
            keys=[f"f_{name}" for name in TABLES],
            values=torch.cat(values),
            lengths=torch.full((len(TABLES) * 7,), 2, dtype=torch.int32),
        )
        self.optimizer.zero_grad()
        logits: Tensor = self.model(features)
        (logits - 1).square().mean().backward()
        self.optimizer.step()
        return logits.detach()


def full(state: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor whole, on every rank: shards are summed over ranks into zeros."""
    flat: dict[str, Tensor] = {}

    def walk(prefix: str, value: Any) -> None:
        for key, inner in value.items():
            walk(f"{prefix}{key}.", inner) if isinstance(inner, dict) else flat.update({f"{prefix}{key}": inner})

    walk("", state)
    shapes = {}
    for names in together("", lambda: {name: list(value.shape) for name, value in flat.items()}):
        shapes.update(names)
    whole = {}
    for name, shape in sorted(shapes.items()):
        value = flat.get(name)
        if value is None or isinstance(value, DTensor):
            total = torch.zeros(shape)
            if isinstance(value, DTensor):
                local = value.to_local()
                shards = local.local_shards() if hasattr(local, "local_shards") else [local]
                for chunk, shard in zip(value.__create_chunk_list__(), shards, strict=bool(shards)):
                    place = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
                    total[place] = shard.detach()
            dist.all_reduce(total)
            whole[name] = total
        else:
            whole[name] = value.detach().clone()
    return whole


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], resharded: bool = False) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if resharded and found[name].shape != value.shape:  # a row-wise state of another number of column blocks
            assert value.dim() == 1
            table = name.split(".")[-2]
            rows = TABLES[table][0]
            saved, here = value.view(-1, rows), found[name].view(-1, rows)
            for block in range(len(here)):
                if len(here) > len(saved):  # a block that is split hands its values down
                    assert torch.equal(here[block], saved[block * len(saved) // len(here)]), name
                else:  # blocks that are joined give their mean
                    joined = saved.view(len(here), -1, rows)[block]
                    torch.testing.assert_close(here[block], joined.mean(dim=0), rtol=1e-6, atol=0)
        else:
            assert torch.equal(found[name], value), name


def save_and_reshard(rank: int, world_size: int, directory: str) -> tuple[int, dict[str, Tensor]]:
    checkpoints = Checkpoints(directory, keep=5)
    first = Job("first", seed=1)
    for step in range(3):
        first.train(step)
    saved = full(first.state())
    t2_state = "optimizer.state.tables.embedding_bags.t2.weight.t2.momentum1"
    assert not torch.equal(*saved[t2_state].view(2, 13))  # two column blocks, each with values of its own

    # Nothing is pickled, between ranks neither.
    with pytest.MonkeyPatch.context() as patch:
        forbid_pickle(patch)
        name = checkpoints.save(3, first.state(), {"plan": "first", "rank": rank})
        same = Job("first", seed=2)
        same.dense.init_state()
        assert checkpoints.load(name, same.state()) == {"plan": "first", "rank": 0}
    assert checkpoints.latest() == name == "step-00000003"
    assert_same(full(same.state()), saved)  # tables and states are loaded in place

    # A resumed job goes on as the one that was not interrupted, bit for bit.
    same.load(checkpoints, name)
    for step in range(3, 5):
        assert torch.equal(same.train(step), first.train(step))
    assert_same(full(same.state()), full(first.state()))

    # Another plan: the same weights and states, the same predictions.
    second = Job("second", seed=3)
    assert second.load(checkpoints, name) == {"plan": "first", "rank": 0}
    resharded = full(second.state())
    assert_same(resharded, saved, resharded=True)
    back = checkpoints.save(4, second.state(), {})
    third = Job("first", seed=4)
    third.load(checkpoints, back)
    assert_same(full(third.state()), saved | {t2_state: resharded[t2_state].repeat(2)})
    torch.testing.assert_close(second.train(3), third.train(3))

    errors_reach_all_ranks(rank, checkpoints, second)
    payloads = sum(1 for _ in Path(directory, name).glob("*.safetensors"))
    return payloads, saved


def errors_reach_all_ranks(rank: int, checkpoints: Checkpoints, job: Job) -> None:
    latest = checkpoints.latest()
    original = SafetensorsWriter.write_data

    def full_disk(self: SafetensorsWriter, *args: Any) -> Any:
        if rank == 1:
            raise OSError(28, "No space left on device")
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafetensorsWriter, "write_data", full_disk)
        with pytest.raises(RuntimeError, match=r"cannot save .*step-00000009: No space left on device \(rank 1, which"):
            checkpoints.save(9, job.state(), {})
    assert checkpoints.latest() == latest
    assert "step-00000009" not in checkpoints._files.directories()

    state = {"experts": {"weight": job.experts}, "model": {"head.bias": torch.zeros(1 + rank)}}
    with pytest.raises(ValueError, match=r"\(rank 1\): .*\n.*head.bias: shape \(1,\) in the checkpoint, \(2,\) here"):
        checkpoints.load(latest or "", state)

    lazy = Job("first", seed=6).state()  # AdamW has no state before its first step
    missing = (
        r"step-00000004: nothing here takes optimizer.state.head.bias.exp_avg, .* and 1 more .*need init_state\(\)"
    )
    with pytest.raises(ValueError, match=missing):
        checkpoints.load(latest or "", lazy)


def load_on_one(rank: int, world_size: int, directory: str, saved: dict[str, Tensor]) -> None:
    checkpoints = Checkpoints(directory, keep=5)
    job = Job("one rank", seed=5)
    assert job.load(checkpoints, "step-00000003") == {"plan": "first", "rank": 0}
    assert_same(full(job.state()), saved, resharded=True)


@pytest.mark.slow
def test_tables_on_two_ranks_and_one(tmp_path: Path) -> None:
    directory = str(tmp_path / "checkpoints")
    results = run_ranks(2, save_and_reshard, tmp_path, directory)
    assert [payloads for payloads, _ in results] == [2, 2]
    run_ranks(1, load_on_one, tmp_path, directory, results[0][1])
