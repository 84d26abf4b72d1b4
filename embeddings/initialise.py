"""Initial table values that do not depend on the sharding plan."""

from __future__ import annotations

import zlib
from typing import cast

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.shards_wrapper import LocalShardsWrapper

# Rows are drawn in blocks of this many, each from a generator of its own: a shard draws few rows it does not own.
BLOCK_ROWS = 65_536


def local_shards(table: torch.Tensor) -> list[tuple[torch.Tensor, tuple[int, ...]]]:
    """The shards of a table's weight (or row state) on this rank, each with its offset in the full table.

    Accepts what TorchRec's state dicts hold: a DTensor over LocalShardsWrapper, a ShardedTensor or a plain tensor.
    """
    if isinstance(table, DTensor):
        shards = cast(LocalShardsWrapper, table.to_local())
        # A rank without a shard still names an offset, hence not strict.
        return list(zip(shards.local_shards(), map(tuple, shards.local_offsets()), strict=False))
    if isinstance(table, ShardedTensor):
        return [(shard.tensor, tuple(shard.metadata.shard_offsets)) for shard in table.local_shards()]
    return [(table, (0,) * table.ndim)]


@torch.no_grad()
def initialise_tables(model: nn.Module, seed: int, scale: float) -> None:
    """Fill every sharded table with uniform values in [-scale, scale].

    The value at (table, row, column) is a function of `seed`, the table's name and its shape alone: any world size,
    plan and rank start from the same weights.
    """
    for module in model.modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            for name, weight in module.state_dict().items():
                table = name.removeprefix("embedding_bags.").removesuffix(".weight")
                for shard, offset in local_shards(weight):
                    _fill(shard, offset, weight.shape, zlib.crc32(f"{seed}/{table}".encode()), scale)


def _fill(shard: torch.Tensor, offset: tuple[int, ...], table_shape: torch.Size, key: int, scale: float) -> None:
    (first_row, first_column), (rows, columns), (table_rows, dim) = offset, shard.shape, table_shape
    for block in range(first_row // BLOCK_ROWS, -(-(first_row + rows) // BLOCK_ROWS)):
        start, end = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, table_rows)
        # A block is always drawn whole, so that a shard that ends inside it draws the same values.
        generator = torch.Generator().manual_seed((key << 32) + block)
        values = torch.empty(end - start, dim).uniform_(-scale, scale, generator=generator)
        low, high = max(first_row, start), min(first_row + rows, end)
        shard[low - first_row : high - first_row].copy_(
            values[low - start : high - start, first_column : first_column + columns]
        )
