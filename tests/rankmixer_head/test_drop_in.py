"""A RankMixer inside torchrec's DLRM: in one process, sharded, and as the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from rankmixer_head import ConcatenateEmbeddings, MoEConfig, RankMixer, RankMixerConfig
from rankmixer_head.token_parallel import shard_tokens
from tests.embeddings.test_sharding import gathered
from tests.helpers.ranks import run_ranks
from tests.helpers.token_group import whole

ROOT = Path(__file__).parents[2]
B, D, NUMBERS = 12, 8, 3
TABLES = {"people": (11, ["user"]), "things": (13, ["item", "seen"]), "places": (9, ["city"])}
FEATURES = ["user", "item", "seen", "city"]  # in the order of the tables
KEYS = ["seen", "city", "user", "item"]  # in the order of the batch
CONFIG = RankMixerConfig(tokens=4, width=12, layers=2, expansion=2.5, moe=MoEConfig(3, routing="dtsi_split"))
PLANS: dict[str, dict[str, Any]] = {
    "a": {"people": row_wise(), "things": table_wise(rank=1), "places": row_wise()},
    "b": {"people": column_wise(ranks=[0, 1]), "things": row_wise(), "places": table_wise(rank=0)},
}
MORE: dict[type[DLRM], dict[str, Any]] = {
    DLRM: {},
    DLRM_DCN: {"dcn_num_layers": 1, "dcn_low_rank_dim": 2},
    DLRM_Projection: {
        "interaction_branch1_layer_sizes": [5, 2 * D],
        "interaction_branch2_layer_sizes": [5, 2 * D],
    },
}


def tables_on(device: str) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        device=torch.device(device),
        tables=[
            EmbeddingBagConfig(name=name, embedding_dim=D, num_embeddings=rows, feature_names=features)
            for name, (rows, features) in TABLES.items()
        ],
    )


def dlrm_on(device: str, kind: type[DLRM] = DLRM) -> DLRM:
    """A DLRM, and the two lines."""
    dlrm = kind(
        tables_on(device),
        dense_in_features=NUMBERS,
        dense_arch_layer_sizes=[5, D],
        over_arch_layer_sizes=[6, 1],
        dense_device=torch.device(device),
        **MORE[kind],
    )
    dlrm.inter_arch = ConcatenateEmbeddings()
    dlrm.over_arch = RankMixer(CONFIG, in_widths=[D] * (len(FEATURES) + 1), num_tasks=1, device=device)
    return dlrm


def batch_of(rows: slice) -> Batch:
    """Rows of one global batch."""
    generator = torch.Generator().manual_seed(4)
    bags = {
        key: [
            torch.randint(9, (int(torch.randint(4, (), generator=generator)),), generator=generator) for _ in range(B)
        ]
        for key in KEYS
    }
    mine = [bag for key in KEYS for bag in bags[key][rows]]
    return Batch(
        dense_features=torch.randn(B, NUMBERS, generator=generator)[rows],
        sparse_features=KeyedJaggedTensor(
            KEYS, torch.cat(mine), lengths=torch.tensor([len(bag) for bag in mine], dtype=torch.int32)
        ),
        labels=torch.randint(2, (B,), generator=generator)[rows],
    )


@pytest.mark.parametrize("kind", MORE, ids=lambda kind: kind.__name__)
def test_mixes_the_numbers_and_every_feature_in_the_order_of_the_tables(kind: type[DLRM]) -> None:
    torch.manual_seed(5)
    dlrm = dlrm_on("cpu", kind)
    batch = batch_of(slice(None))
    pieces = [dlrm.dense_arch(batch.dense_features)]
    for name in FEATURES:
        table = next(table for table, (_, features) in TABLES.items() if name in features)
        weight = dlrm.sparse_arch.embedding_bag_collection.embedding_bags[table].weight
        bags = batch.sparse_features[name].to_dense()
        pieces.append(torch.stack([weight[ids.long()].sum(0) for ids in bags]))
    x_BI = torch.stack(pieces, dim=1).flatten(1)
    loss, (_, logits_B, _) = DLRMTrain(dlrm)(batch)
    torch.testing.assert_close(logits_B, dlrm.over_arch(x_BI).squeeze(1))
    loss.backward()
    for name, parameter in dlrm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name


def sharded_step(rank: int, world_size: int, plan: str, token_ranks: int) -> dict[str, Any]:
    """Build on the meta device, shard, and take one step in torchrec's pipeline."""
    dlrm = dlrm_on("meta")
    tables = dlrm.sparse_arch.embedding_bag_collection
    apply_optimizer_in_backward(torch.optim.SGD, tables.parameters(), {"lr": 0.7})
    shards = construct_module_sharding_plan(tables, PLANS[plan], device_type="cpu")
    torch.manual_seed(rank)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN: what nobody initialises shows
    module = DLRMTrain(dlrm)
    mesh = init_device_mesh("cpu", (world_size // token_ranks, token_ranks), mesh_dim_names=("replica", "token"))
    model = DistributedModelParallel(
        module,
        device=torch.device("cpu"),
        plan=ShardingPlan({"model.sparse_arch.embedding_bag_collection": shards}),
        data_parallel_wrapper=DefaultDataParallelWrapper(params_to_ignore=shard_tokens(module, mesh)),
    )
    torch.use_deterministic_algorithms(False)

    def weights() -> dict[str, torch.Tensor]:
        state = model.state_dict()
        return {name: gathered(value) if "embedding_bags" in name else whole(value) for name, value in state.items()}

    before = weights()
    local = B // world_size
    batch = batch_of(slice(rank * local, (rank + 1) * local))
    keys = dlrm.sparse_arch.embedding_bag_collection(batch.sparse_features).keys()
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    optimizer = CombinedOptimizer(
        [model.fused_optimizer, KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.SGD(parameters, lr=0.3))]
    )
    _, logits_B, _ = TrainPipelineSparseDist(model, optimizer, torch.device("cpu")).progress(iter([batch]))
    dlrm.over_arch.adapt_penalty(dist.all_reduce)
    logits = [torch.empty(local) for _ in range(world_size)]
    dist.all_gather(logits, logits_B)
    return {"before": before, "after": weights(), "logits": torch.cat(logits), "keys": keys, "dense": sorted(dense)}


def test_several_tasks() -> None:
    dlrm = dlrm_on("cpu")
    dlrm.over_arch = RankMixer(CONFIG, in_widths=[D] * (len(FEATURES) + 1), num_tasks=2)
    batch = batch_of(slice(None))
    batch.labels = torch.stack([batch.labels, 1 - batch.labels], dim=1)
    loss, (_, logits_BK, _) = DLRMTrain(dlrm)(batch)
    right = torch.where(batch.labels == 1, logits_BK, -logits_BK)
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(right).mean())


@pytest.mark.slow
@pytest.mark.parametrize("token_ranks", [1, 2])
@pytest.mark.parametrize(("plan", "keys"), [("a", ["user", "city", "item", "seen"]), ("b", FEATURES)])
def test_sharded_equals_unsharded(plan: str, keys: list[str], token_ranks: int, tmp_path: Path) -> None:
    results = run_ranks(2, sharded_step, tmp_path, plan, token_ranks)
    before = results[0]["before"]
    assert all(weight.isfinite().all() for weight in before.values())
    assert before["model.over_arch.blocks.0.mixing_norm.weight"].eq(1).all()
    model = DLRMTrain(dlrm_on("cpu"))
    model.load_state_dict(before)
    loss, (_, logits_B, _) = model(batch_of(slice(None)))
    loss.backward()
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter -= (0.7 if "embedding_bags" in name else 0.3) * parameter.grad
    model.model.over_arch.adapt_penalty()
    for result in results:
        assert result["keys"] == keys  # what the collection returns depends on the plan; sparse_arch picks by name
        assert result["dense"] == sorted(name for name, _ in model.named_parameters() if "embedding_bags" not in name)
        torch.testing.assert_close(result["logits"], logits_B)
        assert result["after"].keys() == before.keys()
        for name, weight in model.state_dict().items():
            assert not torch.equal(weight, before[name]), f"{name} has not moved"
            torch.testing.assert_close({name: result["after"][name]}, {name: weight})


@pytest.mark.slow
def test_the_example_on_the_page_runs_and_learns(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "drop_in.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    script = tmp_path / "drop_in.py"
    script.write_text(example)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    losses = re.fullmatch(r"loss (\d\.\d+) -> (\d\.\d+)\n", done.stdout)
    assert losses, done.stdout
    assert float(losses[1]) > 0.6
    assert float(losses[2]) < 0.2
