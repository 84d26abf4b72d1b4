"""Sharding kinds and compute kernels a table may have. Imports no torchrec: checking a configuration is quick."""

from __future__ import annotations

from rankmixer.pipeline.schema.schema import SEGMENTS, Schema

# data_parallel is absent: such a table would silently join the dense optimizer (torchrec #2394).
SHARDINGS = ("table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard")

# With any kernel but a fused one the table would lose its optimizer in the backward.
KERNELS = ("fused", "fused_uvm", "fused_uvm_caching")

DTYPES = ("fp32", "fp16")


def check_managed_plan(table: str, sharding: str | None, kernel: str | None) -> None:
    """Refuse what a managed table cannot have.

    Raises:
        ValueError: the key, and what to use.
    """
    if sharding not in (None, "row_wise"):
        raise ValueError(
            f"plan.tables.{table}.sharding is {sharding}, but {table} is managed, and TorchRec sends ids to rows by "
            "row_wise sharding only; remove the key"
        )
    if kernel == "fused_uvm_caching":
        raise ValueError(
            f"plan.tables.{table}.kernel is {kernel}, but {table} is managed: what the cache holds of a row would "
            "outlive its id; use fused or fused_uvm"
        )


def check_segments(schema: Schema, world_size: int) -> None:
    """Refuse ranks that cannot share the segments of managed tables.

    Raises:
        ValueError: with the nearest numbers of ranks that can.
    """
    managed = [table.name for table in schema.tables.values() if table.managed]
    if managed and SEGMENTS % world_size:
        fits = [ranks for ranks in range(1, SEGMENTS + 1) if SEGMENTS % ranks == 0]
        near = sorted(sorted(fits, key=lambda ranks: abs(ranks - world_size))[:2])
        raise ValueError(
            f"managed tables {managed} are cut into {SEGMENTS} segments, which {world_size} ranks cannot share "
            f"equally; use {near[0]} or {near[1]} ranks"
        )
