"""From a configuration to a model sharded over the ranks, in one documented order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim.optimizers import in_backward_optimizer_filter

from rankmixer.embeddings.initialise import initialise_tables
from rankmixer.embeddings.managed_tables import wait_again
from rankmixer.embeddings.sharding import Cluster, Shard, TablePlan, check_plan, plan_shards, plan_tables, sharders
from rankmixer.embeddings.tables import FeatureEmbeddings, embedding_tables
from rankmixer.launch.config.config import Config, token_group
from rankmixer.launch.model.optimizers import RankerOptimizer, dense_optimizer, fuse_sparse_optimizer
from rankmixer.launch.model.ranker import Ranker
from rankmixer.launch.model.torchrec_models import TorchrecModel
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer_head import PerTokenMoE, RankMixer
from rankmixer_head.counters import parameters
from rankmixer_head.token_parallel import per_token_parameters, shard_tokens

EXCHANGE = {"fp32": None, "bf16": torch.bfloat16}  # what autocast has made bf16 is sent so in any case


@dataclass
class Build:
    """A model ready to train, evaluate, save or load.

    Args:
        model: the sharded Ranker.
        optimizer: tables and dense part.
        head: the dense part, inside `model`.
        plan: every shard of every table.
        dense_parameters: number of parameters outside the tables.
        flops_per_example: forward FLOPs of the head's matrix products, as it is served.
        training_flops_per_example: ... forward and backward, as it trains; without what `model.recompute` repeats.
        head_bytes: what the dense part takes on every rank, as `rankmixer plan` counts it.
    """

    model: DistributedModelParallel
    optimizer: RankerOptimizer
    head: RankMixer | TorchrecModel
    plan: list[Shard]
    dense_parameters: int
    flops_per_example: int
    training_flops_per_example: int
    head_bytes: int

    @property
    def moes(self) -> list[PerTokenMoE]:
        """The Sparse-MoE of every layer; most models have none."""
        return self.head.moes if isinstance(self.head, RankMixer) else []

    def routing_state(self) -> dict[str, float]:
        """The share of open experts and the weight of their penalty; {} without a Sparse-MoE."""
        return self.head.routing_state() if isinstance(self.head, RankMixer) else {}

    def state(self) -> dict[str, Any]:
        """Nested dict of tensors, for checkpoints: model, tables and both optimizers."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state that a checkpoint has been read into."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        wait_again(self.model, list(state.get("waiting", {}).values()))


def build_ranker(config: Config, device: torch.device) -> Ranker:
    """The unsharded Ranker, tables and head on the meta device.

    Raises:
        ValueError: a size is so large that a tensor's bytes cannot be counted.
    """
    try:
        return _ranker(config, device)
    except RuntimeError as error:
        if "Storage size" not in str(error):
            raise
        raise ValueError(
            f"a tensor would be larger than any memory ({str(error).splitlines()[0]}); expected smaller sizes under "
            "model, or fewer rows or a smaller dim of a table"
        ) from None


def _ranker(config: Config, device: torch.device) -> Ranker:
    schema = config.feature_schema
    tables = embedding_tables(schema, {name: table.dtype for name, table in config.plan.tables.items()})
    embeddings = FeatureEmbeddings(schema, tables)
    head: RankMixer | TorchrecModel
    if config.model.is_ours:
        head = RankMixer(config.model.head(), embeddings.in_widths, len(schema.tasks), device="meta")
    else:
        head = TorchrecModel(config.model, schema, device="meta")
    task_weights = [label.weight for label in schema.labels.values()]
    return Ranker(embeddings, head, task_weights, autocast(config, device), device.type)


def autocast(config: Config, device: torch.device) -> torch.dtype | None:
    """The head's dtype under autocast: bf16 on CUDA unless told otherwise; most CPUs are far slower at bf16."""
    precision = config.model.precision
    use_bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if use_bf16 else None


def head_bytes(ranker: Ranker, token_ranks: int) -> int:
    """What the dense part takes on every rank: weights, gradients, two optimizer states and DDP's buckets, fp32."""
    sharded = set(per_token_parameters(ranker.head)) if token_ranks > 1 else set()
    values = {name: parameter.numel() for name, parameter in ranker.head.named_parameters()}
    return 4 * sum(4 * values[name] // token_ranks if name in sharded else 5 * values[name] for name in values)


def plan(config: Config, ranker: Ranker, cluster: Cluster) -> ShardingPlan:
    """Where every table goes on `cluster`.

    Raises:
        ValueError: no plan fits.
    """
    asked = {name: TablePlan(table.sharding, table.kernel, table.dtype) for name, table in config.plan.tables.items()}
    sharding_plan = plan_tables(
        ranker,
        config.feature_schema,
        asked,
        cluster,
        local_batch_size=config.data.batch_size // cluster.world_size,
        reserved_bytes=head_bytes(ranker, token_group(config, cluster.world_size, cluster.local_world_size)),
    )
    check_plan(sharding_plan, config.feature_schema)
    return sharding_plan


def token_mesh(ranks: Ranks, token_ranks: int, timeout_seconds: float) -> DeviceMesh:
    """Neighbouring ranks share the tokens, so that a group lies on one node. Collective.

    init_device_mesh would make groups that wait for torch's half hour, whatever the job's limit is.
    """
    grid, timeout = torch.arange(ranks.world_size).view(-1, token_ranks), timedelta(seconds=timeout_seconds)
    groups = [dist.new_subgroups_by_enumeration(lines.tolist(), timeout=timeout)[0] for lines in (grid.T, grid)]
    return DeviceMesh.from_group(groups, ranks.device.type, mesh=grid, mesh_dim_names=("replica", "token"))


def build(config: Config, ranks: Ranks, cluster: Cluster, total_steps: int) -> Build:
    """Plan, shard, initialise, compile and wrap, in this order. Collective.

    Args:
        config: the run.
        ranks: this process.
        cluster: memory the planner may use.
        total_steps: the end of the learning-rate schedule.
    """
    ranker = build_ranker(config, ranks.device)
    head = ranker.head
    # Before sharding: the sharder looks for the optimizers that the tables carry.
    fuse_sparse_optimizer(ranker.embeddings, config.optimizer.sparse, ranks.device)
    sharding_plan = plan(config, ranker, cluster)
    shards = plan_shards(sharding_plan, ranker.embeddings)
    dense_parameters = parameters(head)
    token_ranks = token_group(config, ranks.world_size, ranks.local_world_size)
    dense_bytes = head_bytes(ranker, token_ranks)
    flops = head.flops_per_example()
    once = {"recompute": False} if isinstance(head, RankMixer) else {}
    training_flops = head.training_flops_per_example(**once)
    # Initialised here, not by DistributedModelParallel, which draws numbers for the tables that depend on the plan.
    torch.manual_seed(config.train.seed)
    mesh = token_mesh(ranks, token_ranks, config.run.timeout_seconds) if token_ranks > 1 else None
    # BatchReader makes batches of one size: nothing to check.
    dtype = EXCHANGE[config.parallel.exchange]
    sharded = shard_tokens(ranker, mesh, dtype, check_batches=False) if mesh else []
    if not mesh:
        head.to_empty(device=ranks.device).reset_parameters()
        if isinstance(head, RankMixer) and head.controller is not None:
            head.controller.batch_index = ranks.rank
    if config.model.compile:
        head.compile()
    group = dist.group.WORLD
    assert group is not None
    model = DistributedModelParallel(
        ranker,
        # DTensors in the state dict: what torch.distributed.checkpoint reshards to another plan or world size.
        env=ShardingEnv(ranks.world_size, ranks.rank, group, output_dtensor=True),
        device=ranks.device,
        plan=sharding_plan,
        sharders=sharders(),
        data_parallel_wrapper=DefaultDataParallelWrapper(params_to_ignore=sharded),
    )
    initialise_tables(model, config.train.seed, config.plan.init_scale)
    optimizer = RankerOptimizer(
        model.fused_optimizer,
        dense_optimizer(dict(in_backward_optimizer_filter(model.named_parameters())), config.optimizer.dense),
        config.optimizer.schedule,
        total_steps,
        config.optimizer.clip_norm,
        config.train.log_steps,
        after_step=partial(head.adapt_penalty, dist.all_reduce) if isinstance(head, RankMixer) else None,
        token_group=mesh.get_group("token") if mesh else None,
    )
    return Build(model, optimizer, head, shards, dense_parameters, flops, training_flops, dense_bytes)
