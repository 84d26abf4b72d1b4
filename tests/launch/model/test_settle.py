"""What DDP needs to see before the first step changes nothing that a run is made of."""

from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from rankmixer.embeddings.managed import ManagedRows
from rankmixer.launch.config.config import load_config
from rankmixer.launch.model.build import Build, build
from rankmixer.launch.model.settle import BACKWARDS, padding, settle_buckets
from rankmixer.launch.ranks.distributed import cluster_here, process_group
from tests.helpers.job import Job

OVERRIDES = (
    "model.moe={experts: 3, active_ratio: 0.34}",
    "feature_schema.features.user={kind: id, managed: 1, dim: 8, group: user}",
)


def state(built: Build) -> dict[str, torch.Tensor]:
    """Copies of all weights and buffers, the tables' optimizer states among them, of one rank that has all."""
    found = dict(built.model.named_buffers())

    states = {
        f"{param}.{key}": value
        for param, some in built.optimizer.state_dict()["state"].items()
        for key, value in some.items()
    }
    for name, value in {**built.model.state_dict(), **states}.items():
        local = value.to_local() if isinstance(value, DTensor) else value
        found[name] = local.local_shards()[0] if hasattr(local, "local_shards") else local
    # What a forward overwrites, and FBGEMM's count of steps.
    return {
        name: value.detach().clone()
        for name, value in found.items()
        if not name.endswith((".open_TE", ".seen", ".iter", ".iter_cpu"))
    }


def test_padding_changes_neither_weights_nor_states_nor_random_numbers(tmp_path: Path) -> None:
    config = load_config(str(Job(tmp_path).config), OVERRIDES)
    with process_group(config) as ranks:
        built = build(config, ranks, cluster_here(ranks, config.plan), 10)
        maps = [module for module in built.model.modules() if isinstance(module, ManagedRows)]
        before, random = state(built), torch.get_rng_state()
        calls = []
        built.model.register_forward_hook(lambda *_: calls.append(built.model.training))
        settle_buckets(built, config, replace(ranks, world_size=2))
        after = state(built)
        assert calls == [True] * BACKWARDS
        assert before.keys() <= after.keys()
        assert any("momentum" in name for name in after)
        assert sum("id_N" in name for name in after) > 0
        for name, value in before.items():
            assert torch.equal(after[name], value), name
        assert torch.equal(torch.get_rng_state(), random)
        assert [(map_._step, len(map_._waiting), map_.training) for map_ in maps] == [(0, 0, True)]
        assert all(parameter.grad is None for parameter in built.model.parameters())


def test_padding_is_a_batch_of_nothing(tmp_path: Path) -> None:
    schema = load_config(str(Job(tmp_path).config), []).feature_schema
    batch = padding(schema, 5)
    assert (batch.sparse.keys(), batch.sparse.stride()) == (["user", "city", "tags"], 5)
    assert (batch.weight_sum, batch.dense_BF.shape, batch.labels_BK.shape) == (0.0, (5, 1), (5, 2))
