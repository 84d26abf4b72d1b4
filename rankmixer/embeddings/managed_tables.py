"""Managed tables as torchrec shards them, and the ids that wait for a row there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torchrec import EmbeddingBagCollection
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.mc_modules import ManagedCollisionCollectionSharder, ShardedManagedCollisionCollection
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection

from rankmixer.embeddings.managed import FREE, ManagedRows


def managed_collection(bags: EmbeddingBagCollection) -> ManagedCollisionEmbeddingBagCollection:
    """`bags` with a map from ids to rows before every table, on the same device."""
    configs = bags.embedding_bag_configs()
    maps = {config.name: ManagedRows(config.num_embeddings, bags.device) for config in configs}
    # Without a preprocessing of ids, torchrec keeps the weights of lists.
    return ManagedCollisionEmbeddingBagCollection(
        bags, ManagedCollisionCollection(maps, configs, need_preprocess=False)
    )


class ShardedMaps(ShardedManagedCollisionCollection):
    """torchrec's, with DTensors in its state in place of ShardedTensors, which torch is about to drop."""

    def _initialize_torch_state(self) -> None:
        """Called at the end of the constructor."""
        mesh = self._env.device_mesh
        names = list(self.sharded_parameter_names("_managed_collision_modules"))

        def shard(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
            for name in names:
                key = prefix + name
                state[key] = DTensor.from_local(state[key], mesh, [Shard(0)], run_check=False)

        def unshard(module: nn.Module, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
            for name in names:
                key = prefix + name
                if isinstance(value := state.get(key), DTensor):
                    state[key] = value.to_local()

        self._register_state_dict_hook(shard)
        self._register_load_state_dict_pre_hook(unshard, with_module=True)


class MapSharder(ManagedCollisionCollectionSharder):
    """Makes ShardedMaps."""

    def shard(
        self,
        module: ManagedCollisionCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        embedding_shardings: list[Any],
        device: torch.device | None = None,
        use_index_dedup: bool = False,
    ) -> ShardedMaps:
        """Return the maps of this rank."""
        assert device is not None
        return ShardedMaps(module, params, env, device, embedding_shardings)


class ShardedManagedTables(ShardedManagedCollisionEmbeddingBagCollection):
    """torchrec's, but a row that is given to an id starts as the row that the id shared until then.

    torchrec would draw it anew: what the model says of the id would jump to what it says of noise, and depend on the
    rank's random numbers. The optimizer's state of the row starts at zero, of every optimizer.
    """

    @torch.no_grad()
    def _evict(self, evictions_per_table: Mapping[str, Tensor | None]) -> None:
        """Called before the lookup of the step that gave out these rows, counted from the rank's first."""
        for table, rows in evictions_per_table.items():
            if rows is None:
                continue
            lookup, index = self._table_to_tbe_and_index[table]
            map_ = cast(ManagedRows, self._managed_collision_collection._managed_collision_modules[table])
            weight_ND = lookup.split_embedding_weights()[int(index)]
            weight_ND[rows] = weight_ND[map_.shared_row(rows // map_.segment_rows)]
            states = lookup.split_optimizer_states()  # [] of SGD
            for state in states[int(index)] if states else ():
                state[rows] = 0


class ManagedSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """Row-wise only, since only so torchrec sends an id to the rank that has its segment.

    Args:
        bags_sharder: shards the tables behind the maps.
    """

    def __init__(self, bags_sharder: EmbeddingBagCollectionSharder) -> None:
        super().__init__(ebc_sharder=bags_sharder, mc_sharder=MapSharder())

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedTables:
        """Return the tables and maps of this rank."""
        assert device is not None
        return ShardedManagedTables(module, params, self._e_sharder, self._mc_sharder, env, device)


def taken_rows(model: nn.Module) -> dict[str, int]:
    """Table -> how many of this rank's rows belong to an id."""
    return {table: int((map_.id_N != FREE).sum()) for table, map_ in _maps(model)}


def waiting_ids(model: nn.Module) -> dict[str, Tensor]:
    """Table -> the ids that wait on this rank for a row (ManagedRows.waiting_3P), if there are any."""
    return {table: map_.waiting_3P for table, map_ in _maps(model) if map_.waiting_3P.numel()}


def wait_again(model: nn.Module, waiting: Sequence[Mapping[str, Tensor]]) -> None:
    """Take over, after loading, the ids that waited on all ranks, as many as there were."""
    for table, map_ in _maps(model):
        found = [ids[table] for ids in waiting if table in ids]
        if found:
            map_.wait_again(torch.cat(found, dim=1))


def _maps(model: nn.Module) -> Iterator[tuple[str, ManagedRows]]:
    for name, module in model.named_modules():
        if isinstance(module, ManagedRows):
            yield name.rpartition(".")[2], module
