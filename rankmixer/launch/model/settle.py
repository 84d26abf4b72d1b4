"""Before the first step: what torch makes up once a process must not make a resumed run another one."""

from __future__ import annotations

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from rankmixer.launch.config.config import Config
from rankmixer.launch.model.build import Build
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.schema.schema import Schema

# In the first backward of a static graph DDP counts how often each gradient comes, in the second it notes their order;
# the next forward makes the new buckets.
BACKWARDS = 2


def settle_buckets(built: Build, config: Config, ranks: Ranks) -> None:
    """Send a batch of padding forward and backward, so that DDP has seen in which order gradients come. Collective.

    DDP sums gradients in buckets, and after the second backward of a process it fills them anew, in the order in which
    gradients came. From three ranks on, gloo's and NCCL's order of summation depends on where a gradient lies in its
    bucket: without this the first steps of every attempt would round in another way than the later ones, and a job that
    was restarted would not end as one that was not, bit for bit.

    Neither weights nor states of optimizers, managed tables, routers and random numbers change: padding has no ids and
    weight 0, no step is taken, and what a Sparse-MoE has counted is overwritten by the next forward. Only FBGEMM counts
    a step: set it afterwards.
    """
    if ranks.world_size == 1:
        return
    batch = padding(config.feature_schema, config.data.batch_size // ranks.world_size).to(ranks.device)
    built.model.train()
    built.model.module.embeddings.eval()  # managed tables count the steps of training
    for _ in range(BACKWARDS):
        loss, _ = built.model(batch)
        loss.backward()
    built.optimizer.zero_grad(set_to_none=True)
    built.model.train()


def padding(schema: Schema, size: int) -> Batch:
    """B = `size` examples that count for nothing, as at the end of an epoch that does not divide."""
    keys = schema.sparse_features
    sparse = KeyedJaggedTensor(
        keys=list(keys),
        values=torch.empty(0, dtype=torch.int64),
        weights=torch.empty(0) if schema.is_weighted else None,
        lengths=torch.zeros(len(keys) * size, dtype=torch.int32),
        stride=size,
        length_per_key=[0] * len(keys),
    )
    dense_BF, labels_BK = torch.zeros(size, len(schema.dense_features)), torch.zeros(size, len(schema.tasks))
    return Batch(sparse, dense_BF, labels_BK, torch.zeros(size), loss_scale=torch.tensor(0.0))
