"""`rankmixer plan`: where every table and the head would go, for machines that need not exist here."""

from __future__ import annotations

from dataclasses import asdict

import torch
from rich.table import Table

from rankmixer.embeddings.sharding import Cluster, Shard, map_bytes, plan_shards
from rankmixer.launch.config.config import Config, check_world, token_group
from rankmixer.launch.config.optimizer import SparseOptimizerConfig
from rankmixer.launch.model.build import build_ranker, head_bytes, plan
from rankmixer.launch.report.output import show
from rankmixer_head.counters import parameters

GIB = 2**30


def show_plan(config: Config, cluster: Cluster, *, as_json: bool = False) -> None:
    """Print the shards of every table, and the memory of every rank.

    Counted are weights and optimizer states of the tables, the maps of managed ones, and five fp32 copies of the head
    (weights, gradients, two optimizer states, DDP's buckets; no buckets for what a token group shares); not counted are
    activations, batches and communication buffers.

    Raises:
        ValueError: the batch does not divide by the ranks, or no plan fits their memory.
    """
    check_world(config, cluster.world_size, cluster.local_world_size)
    token_ranks = token_group(config, cluster.world_size, cluster.local_world_size)
    ranker = build_ranker(config, torch.device(cluster.device))
    shards = plan_shards(plan(config, ranker, cluster), ranker.embeddings)
    head = head_bytes(ranker, token_ranks)
    head_parameters, flops = parameters(ranker.head), ranker.head.flops_per_example()
    training_flops = ranker.head.training_flops_per_example()
    table_parameters = sum(table.rows * table.dim for table in config.feature_schema.tables.values())
    sentence = (
        f"head: {head_parameters:,} parameters, {flops:,} forward FLOPs an example, {training_flops:,} in training; "
        f"tables: {table_parameters:,} parameters"
    )
    found = {
        "cluster": asdict(cluster),
        "shards": [asdict(shard) for shard in shards],
        "bytes": planned_memory(config, cluster.world_size, shards, head),
        "head_parameters": head_parameters,
        "flops_per_example": flops,
        "training_flops_per_example": training_flops,
        "table_parameters": table_parameters,
    }
    show(found, _shards(shards), _ranks(config, cluster, shards, head), sentence, as_json=as_json)


def _shards(shards: list[Shard]) -> Table:
    view = Table("table", "sharding", "kernel", "rank", "rows", "columns", "MiB", title="Shards")
    for shard in shards:
        (row, column), (rows, columns) = shard.offset, shard.size
        view.add_row(
            shard.table,
            shard.sharding,
            shard.kernel,
            str(shard.rank),
            f"{row:,} to {row + rows:,}",
            f"{column} to {column + columns}",
            f"{shard.bytes / 2**20:.2f}",
        )
    return view


def _ranks(config: Config, cluster: Cluster, shards: list[Shard], head: int) -> Table:
    limit = cluster.hbm_bytes if cluster.device == "cuda" else cluster.ddr_bytes
    view = Table(
        "rank", "node", "tables GiB", "their states and maps GiB", "head GiB", "total GiB", "of limit", title="Memory"
    )
    for rank, sizes in enumerate(planned_memory(config, cluster.world_size, shards, head)):
        total = sum(sizes.values())
        view.add_row(
            str(rank),
            str(rank // cluster.local_world_size),
            *(f"{size / GIB:.3f}" for size in (*sizes.values(), total)),
            f"{total / limit:.1%}",
        )
    return view


def planned_memory(config: Config, world_size: int, shards: list[Shard], head: int) -> list[dict[str, int]]:
    """Bytes on every rank: `tables`, `states` (of the tables' optimizer, and maps of managed tables) and `head`."""
    maps = map_bytes(config.feature_schema, world_size)
    found = [{"tables": 0, "states": maps, "head": head} for _ in range(world_size)]
    for shard in shards:
        found[shard.rank]["tables"] += shard.bytes
        found[shard.rank]["states"] += state_bytes(config.optimizer.sparse, *shard.size)
    return found


def state_bytes(optimizer: SparseOptimizerConfig, rows: int, columns: int) -> int:
    """Bytes of the fused optimizer's state for a shard, fp32.

    >>> state_bytes(SparseOptimizerConfig(kind="rowwise_adagrad"), rows=1000, columns=16)
    4000
    >>> state_bytes(SparseOptimizerConfig(kind="adam"), rows=1000, columns=16)
    128000
    """
    values = {"sgd": 0, "rowwise_adagrad": rows, "adagrad": rows * columns, "adam": 2 * rows * columns}
    return 4 * values[optimizer.kind]
