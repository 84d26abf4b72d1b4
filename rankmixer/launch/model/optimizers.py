"""One optimizer over two: tables updated inside the backward, the dense part after it; one schedule for both."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torchrec.optim
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,  # torchrec's wrapper of it is deprecated
)
from torch.distributed.tensor import DTensor
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from rankmixer.launch.config.optimizer import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from rankmixer.launch.model.muon import StackedMuon

SPARSE = {
    "rowwise_adagrad": torchrec.optim.RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


def fuse_sparse_optimizer(tables: nn.Module, config: SparseOptimizerConfig, device: torch.device) -> None:
    """Make every table update itself in the backward. Call before sharding.

    Raises:
        ValueError: the optimizer has no kernel on this device.
    """
    if config.kind == "adam" and device.type == "cpu":
        raise ValueError(
            "optimizer.sparse.kind is adam, which FBGEMM has on CUDA only; on CPU use rowwise_adagrad, adagrad or sgd"
        )
    arguments: dict[str, Any] = {"lr": config.lr}
    if config.kind != "sgd":
        arguments["eps"] = config.eps
    if config.kind == "adam":  # with the others FBGEMM ignores it, and launch/config/unused_keys.py refuses it
        arguments["weight_decay"] = config.weight_decay
    apply_optimizer_in_backward(SPARSE[config.kind], tables.parameters(), arguments)


def dense_optimizer(params: Mapping[str, nn.Parameter], config: DenseOptimizerConfig) -> KeyedOptimizer:
    """The optimizer of everything that is not a table, its state keyed by parameter name.

    `muon` takes the matrices inside the blocks, which stand in stacks, one a token or an expert; AdamW everything else,
    tokenizer, routers and task heads among it: what meets the data or makes an output is no inner map.
    """
    lr, decay = config.lr, config.weight_decay
    factories: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "adamw": lambda ps: torch.optim.AdamW(ps, lr=lr, weight_decay=decay),
        "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=lr, weight_decay=decay),
        "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=lr, weight_decay=decay),
        "muon": lambda ps: StackedMuon(ps, lr=lr, weight_decay=decay),
    }
    is_muon = config.kind == "muon"
    # torch's fast paths take no mixture of plain tensors and the DTensors of a token group.
    is_outer = re.compile(r"bias|router|\bheads\.")
    is_apart = {
        name: param.ndim > 2 and not is_outer.search(name) if is_muon else isinstance(param, DTensor)
        for name, param in params.items()
    }
    apart = {name: param for name, param in params.items() if is_apart[name]}
    rest = {name: param for name, param in params.items() if not is_apart[name]}
    kinds = (apart, config.kind), (rest, "adamw" if is_muon else config.kind)
    return CombinedOptimizer([("", KeyedOptimizerWrapper(some, factories[kind])) for some, kind in kinds if some])


def clip_(params: Sequence[nn.Parameter], max_norm: float, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Scale all gradients so that their norm is at most `max_norm`; return what it was. Arguments as below."""
    if group is None:
        return torch.nn.utils.clip_grad_norm_(params, max_norm)
    norm = norm_of_gradients(params, group)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_
    for param in params:
        if param.grad is not None:
            grad = param.grad.to_local() if isinstance(param.grad, DTensor) else param.grad
            grad.mul_(factor)
    return norm


def norm_of_gradients(params: Sequence[nn.Parameter], group: dist.ProcessGroup | None) -> torch.Tensor:
    """The norm of all gradients, all shards together.

    Args:
        params: plain ones, equal on all ranks, and DTensors, each with one shard on every rank of `group`.
        group: a token group; None: there are no DTensors.
    """
    grads = [param.grad for param in params if param.grad is not None]
    if group is None:
        return torch.nn.utils.get_total_norm(grads)
    square = torch.nn.utils.get_total_norm([grad.to_local() for grad in grads if isinstance(grad, DTensor)]).square()
    dist.all_reduce(square, group=group)
    whole = [grad for grad in grads if not isinstance(grad, DTensor)]
    return (square + torch.nn.utils.get_total_norm(whole).square()).sqrt()


def schedule_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor on every learning rate at `step`, of 0 to total_steps - 1: linear warm-up, then decay towards `final`.

    As in torch's schedulers `final` is reached when `total_steps` are done, one step behind the last: with 0 no step is
    taken in vain. There it stays.

    >>> config = ScheduleConfig(warmup_steps=2, decay="linear", final=0.0)
    >>> [schedule_factor(config, step, total_steps=6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    >>> schedule_factor(config, 6, total_steps=6)
    0.0
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    if config.decay == "linear":
        return 1 - (1 - config.final) * done
    if config.decay == "cosine":
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2
    return 1.0


class RankerOptimizer(CombinedOptimizer):
    """The tables' fused optimizer and the dense one, with clipping and a schedule.

    Args:
        fused: `DistributedModelParallel.fused_optimizer`. It must be in here: the tables read their learning rate from
            its param_groups at `zero_grad`, which the train pipeline calls before the forward.
        dense: from `dense_optimizer`.
        schedule: both follow it.
        total_steps: steps of the whole run, the end of the decay.
        clip_norm: bound on the global norm of the dense gradients; None: not clipped.
        norm_every: steps from one look at that norm to the next, where nothing is clipped.
        after_step: called when a step has been taken; None: nothing.
        token_group: the ranks that share the dense part's DTensors; None: it has none.
    """

    def __init__(
        self,
        fused: KeyedOptimizer,
        dense: KeyedOptimizer,
        schedule: ScheduleConfig,
        total_steps: int,
        clip_norm: float | None,
        norm_every: int = 1,
        after_step: Callable[[], None] | None = None,
        token_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__([("", fused), ("", dense)])
        self.dense = dense
        self.clip_norm = clip_norm
        self._norm_every, self._norm_is_due = norm_every, False
        self._after_step = after_step
        self._token_group = token_group
        self.grad_norm: torch.Tensor | None = None
        self._schedule, self._total_steps = schedule, total_steps
        self._base_lrs = [float(group["lr"]) for group in self.param_groups]

    def follow_schedule(self, step: int) -> None:
        """Set the learning rates of `step` (from 0); call before the step's `zero_grad`."""
        self._norm_is_due = (step + 1) % self._norm_every == 0
        factor = schedule_factor(self._schedule, step, self._total_steps)
        for group, base_lr in zip(self.param_groups, self._base_lrs, strict=True):
            group["lr"] = base_lr * factor

    @property
    def learning_rates(self) -> tuple[float, float]:
        """(tables, dense) as they are now."""
        groups = list(self.param_groups)
        return float(groups[0]["lr"]), float(groups[-1]["lr"])

    def step(self, closure: Any = None) -> None:
        """Clip, then update the dense part; the tables have updated themselves."""
        params = list(self.dense.params.values())
        if self.clip_norm is not None:
            self.grad_norm = clip_(params, self.clip_norm, self._token_group)
        elif self._norm_is_due:
            self.grad_norm = norm_of_gradients(params, self._token_group)
        super().step(closure)
        if self._after_step:
            self._after_step()

    def init_dense_state(self) -> None:
        """Create the dense optimizer's state, which is lazy, so that a checkpoint can be loaded into it.

        It takes a step with zero gradients, which moves decayed weights: load the weights afterwards.
        """
        for param in self.dense.params.values():
            param.grad = torch.zeros_like(param)
        self.dense.step()
        self.dense.zero_grad(set_to_none=True)
