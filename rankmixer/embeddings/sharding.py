"""Which rank holds which part of which table: constraints, topology and TorchRec's planner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torchrec import EmbeddingBagCollection
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.embedding_configs import DataType

from rankmixer.embeddings.kinds import KERNELS, SHARDINGS
from rankmixer.embeddings.managed import MAP_BYTES
from rankmixer.embeddings.managed_tables import ManagedSharder
from rankmixer.pipeline.schema.schema import Schema, Table

VALUE_BYTES = {DataType.FP32: 4, DataType.FP16: 2}

# What the planner may choose from for a table that says nothing: kinds whose results do not depend on luck.
DEFAULT_SHARDINGS = {"cpu": ("table_wise", "row_wise"), "cuda": ("table_wise", "row_wise", "table_row_wise")}


class Sharder(EmbeddingBagCollectionSharder):
    """EmbeddingBagCollectionSharder that offers every kind on CPU too: gloo has had reduce-scatter since torch 2.13."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the kinds of SHARDINGS."""
        return list(SHARDINGS)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the fused kernels that the device has."""
        return list(KERNELS) if compute_device_type == "cuda" else [EmbeddingComputeKernel.FUSED.value]


def sharders() -> list[ModuleSharder[nn.Module]]:
    """For the planner and DistributedModelParallel: of plain tables and of managed ones."""
    return [Sharder(), ManagedSharder(Sharder())]


@dataclass(frozen=True)
class TablePlan:
    """What the user asks of one table; None leaves it to the planner."""

    sharding: str | None = None
    kernel: str | None = None
    dtype: str = "fp32"


@dataclass(frozen=True)
class Cluster:
    """The machines to plan for; they need not exist here.

    Args:
        device: `cpu` or `cuda`.
        world_size: ranks in all.
        local_world_size: ranks on one node.
        hbm_bytes: device memory a rank may use (CUDA).
        ddr_bytes: host memory a rank may use.
    """

    device: str
    world_size: int
    local_world_size: int
    hbm_bytes: int
    ddr_bytes: int

    def topology(self, reserved_bytes: int) -> Topology:
        """The planner's topology, less what the head takes on every rank."""
        on_cuda = self.device == "cuda"
        return TopologyFactory.create_topology(
            trainer_config=TrainerConfig(
                world_size=self.world_size,
                local_world_size=self.local_world_size,
                hbm_cap_bytes=max(self.hbm_bytes - reserved_bytes, 0) if on_cuda else 0,
                ddr_cap_bytes=self.ddr_bytes if on_cuda else max(self.ddr_bytes - reserved_bytes, 0),
            ),
            hardware_config=HardwareConfig(),
            kernel_config=KernelConfig(compute_device=self.device),
        )


def constraints(schema: Schema, tables: Mapping[str, TablePlan], cluster: Cluster) -> dict[str, ParameterConstraints]:
    """The planner's constraint for every table of the schema.

    Raises:
        ValueError: a table is too small for the kind asked for, or the kernel is one that the device has not.
    """
    on_cuda = cluster.device == "cuda"
    result = {}
    for table in schema.tables.values():
        asked = tables.get(table.name, TablePlan())
        shardings = _shardings(table, asked.sharding, cluster)
        if asked.kernel not in (None, EmbeddingComputeKernel.FUSED.value) and not on_cuda:
            raise ValueError(
                f"plan.tables.{table.name}.kernel is {asked.kernel}, which there is on CUDA only; on CPU remove it, or "
                "use fused"
            )
        result[table.name] = ParameterConstraints(
            sharding_types=list(shardings),
            compute_kernels=[asked.kernel or EmbeddingComputeKernel.FUSED.value],
            # Below 128 columns column-wise would not split at all; 4 is the least width FBGEMM's kernels take.
            min_partition=_column_shard(table.dim) if asked.sharding in ("column_wise", "table_column_wise") else None,
            is_weighted=schema.is_weighted,
            feature_names=list(table.features),
            num_poolings=[1.0] * len(table.features),
            pooling_factors=[1.0] * len(table.features),
        )
    return result


def _shardings(table: Table, asked: str | None, cluster: Cluster) -> tuple[str, ...]:
    """The kinds the planner may choose from."""
    if table.managed:
        return ("row_wise",)
    if cluster.world_size == 1:
        return ("table_wise",)  # every kind is the same there, and the planner refuses some
    # FBGEMM's lookup fails on a rank whose shard of a row-wise table is empty.
    ranks = {"row_wise": cluster.world_size, "table_row_wise": cluster.local_world_size}
    ranks["grid_shard"] = cluster.local_world_size
    too_small = [kind for kind, parts in ranks.items() if -(-table.rows // parts) * (parts - 1) >= table.rows]
    if asked in too_small:
        raise ValueError(
            f"plan.tables.{table.name}.sharding is {asked}, but {table.rows} rows leave some of {ranks[asked]} ranks "
            "without any; use table_wise or column_wise"
        )
    return (asked,) if asked else tuple(kind for kind in DEFAULT_SHARDINGS[cluster.device] if kind not in too_small)


def _column_shard(dim: int) -> int:
    half = dim // 2
    return half if half >= 4 and half % 4 == 0 else dim


def plan_tables(
    model: nn.Module,
    schema: Schema,
    tables: Mapping[str, TablePlan],
    cluster: Cluster,
    *,
    local_batch_size: int,
    reserved_bytes: int,
) -> ShardingPlan:
    """Let EmbeddingShardingPlanner place the tables of `model` on `cluster`. Pure: every rank computes the same plan.

    Raises:
        ValueError: no plan fits; the message is the planner's, with what to change.
    """
    planner = EmbeddingShardingPlanner(
        topology=cluster.topology(reserved_bytes + map_bytes(schema, cluster.world_size)),
        batch_size=local_batch_size,
        constraints=constraints(schema, tables, cluster),
        # The head's bytes are already out of the topology; 5 % stays for allocator slack.
        storage_reservation=FixedPercentageStorageReservation(percentage=0.05),
        debug=False,
    )
    try:
        return planner.plan(model, sharders())
    except PlannerError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"plan: no sharding plan fits {cluster.world_size} ranks with "
            f"{(cluster.hbm_bytes if cluster.device == 'cuda' else cluster.ddr_bytes) / 2**30:.1f} GiB each, "
            f"of which the head takes {reserved_bytes / 2**30:.1f} GiB ({reason}); "
            "use more ranks, raise plan.hbm_gb or plan.ddr_gb, allow row_wise, or shrink the tables"
        ) from error


def check_plan(plan: ShardingPlan, schema: Schema) -> None:
    """Assert that every table is planned with a fused kernel and none is data parallel."""
    planned = {name: sharding for module in plan.plan.values() for name, sharding in module.items()}
    assert set(planned) == set(schema.tables), f"planned {sorted(planned)}, schema has {sorted(schema.tables)}"
    for name, sharding in planned.items():
        assert sharding.sharding_type in SHARDINGS, f"table {name}: {sharding.sharding_type}"
        assert sharding.compute_kernel in KERNELS, f"table {name}: {sharding.compute_kernel}"


@dataclass(frozen=True)
class Shard:
    """A part of a table on a rank.

    Args:
        offset: (first row, first column) in the table.
        size: (rows, columns).
        bytes: of the weights.
    """

    table: str
    sharding: str
    kernel: str
    rank: int
    offset: tuple[int, int]
    size: tuple[int, int]
    bytes: int


def map_bytes(schema: Schema, world_size: int) -> int:
    """What the maps of managed tables take on every rank."""
    return sum(MAP_BYTES * table.rows // world_size for table in schema.tables.values() if table.managed)


def plan_shards(plan: ShardingPlan, tables: nn.Module) -> list[Shard]:
    """Every shard of a plan of these tables, for people and for checkpoints."""
    value_bytes = {
        config.name: VALUE_BYTES[config.data_type]
        for collection in tables.modules()
        if isinstance(collection, EmbeddingBagCollection)
        for config in collection.embedding_bag_configs()
    }
    return [
        Shard(
            table=name,
            sharding=sharding.sharding_type,
            kernel=sharding.compute_kernel,
            rank=shard.placement.rank(),
            offset=tuple(shard.shard_offsets),
            size=tuple(shard.shard_sizes),
            bytes=math.prod(shard.shard_sizes) * value_bytes[name],
        )
        for module in plan.plan.values()
        for name, sharding in module.items()
        for shard in sharding.sharding_spec.shards
    ]
