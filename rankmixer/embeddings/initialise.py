"""Initial table values that do not depend on the sharding plan."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import xxhash
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.shards_wrapper import LocalShardsWrapper

ROWS_AT_ONCE = 65_536  # bounds the memory that drawing takes beside the table
DRAWS_A_STEP = 8  # float32 values that Philox draws for each step of its counter


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
    """Fill every sharded table with uniform values in [-scale, scale).

    The value at (table, row, column) is a function of `seed`, the table's name, its dim and the place alone: any world
    size, plan and rank start from the same weights.
    """
    for module in model.modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            for name, weight in module.state_dict().items():
                table = name.removeprefix("embedding_bags.").removesuffix(".weight")
                for shard, offset in local_shards(weight):
                    draw_shard(shard, offset, weight.shape[1], seed, table, scale)


def draw_shard(shard: torch.Tensor, offset: tuple[int, ...], dim: int, seed: int, table: str, scale: float) -> None:
    """Fill a shard with its part of the uniform values of a whole table of `dim` columns.

    Every table has a stream of its own, Philox under a key of 128 bits made of seed and name, which can begin anywhere:
    value row * dim + column of it is the one at (row, column). A torch generator on the CPU would keep 32 bits.

    >>> whole, shard = torch.empty(5, 3), torch.empty(2, 2)
    >>> draw_shard(whole, (0, 0), 3, seed=0, table="item", scale=0.1)
    >>> draw_shard(shard, (3, 1), 3, seed=0, table="item", scale=0.1)
    >>> torch.equal(shard, whole[3:, 1:])
    True
    """
    (first_row, first_column), (rows, columns) = offset, shard.shape
    key = xxhash.xxh3_128_intdigest(f"{seed}/{table}".encode())
    for start in range(0, rows, ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, rows)
        steps, skipped = divmod((first_row + start) * dim, DRAWS_A_STEP)
        stream = np.random.Generator(np.random.Philox(key=key).advance(steps))
        drawn = stream.random(skipped + (end - start) * dim, dtype=np.float32)[skipped:]
        values = torch.from_numpy(drawn).mul_(2 * scale).sub_(scale).view(end - start, dim)
        shard[start:end].copy_(values[:, first_column : first_column + columns])
