"""A RankMixer trained on one process or on many ranks, with the same global batches: what token parallelism must equal.

Spawned processes import it: torch and the head alone.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rankmixer_head import RankMixer
from rankmixer_head.config import READS_ALL_TOKENS
from rankmixer_head.token_parallel import shard_tokens
from tests.helpers.head_variants import PLAIN, VARIANTS, in_widths

G, I, K = 12, 18, 2  # noqa: E741  # G/4 is odd: the ranks' batches start at examples of either parity
CONFIGS = {
    **{name: config for name, config in VARIANTS.items() if config.ablation not in READS_ALL_TOKENS},
    "recompute": replace(PLAIN, recompute=True),
    "moe_recompute": replace(VARIANTS["moe_dtsi_split"], recompute=True),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


@cache
def token_mesh(ranks: int) -> DeviceMesh:
    """(replica, token), with `ranks` in a token group."""
    return init_device_mesh("cpu", (dist.get_world_size() // ranks, ranks), mesh_dim_names=("replica", "token"))


def build(variant: str, dtype: torch.dtype = torch.float64) -> RankMixer:
    """A head whose weights are all at random, biases too."""
    torch.manual_seed(12)
    config = CONFIGS[variant]
    head = RankMixer(config, in_widths(config), num_tasks=K)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "tokens_ID" not in name:  # it contains padding
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return head.to(dtype)


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Input, labels and weights of a global batch; one example of each has no weight."""
    generator = torch.Generator().manual_seed(100 + step)
    x_GI = torch.randn(G, I, generator=generator)
    labels_GK = (x_GI[:, :K] + x_GI[:, 5 : 5 + K] * x_GI[:, 9 : 9 + K] > 0).to(dtype)
    weight_G = torch.rand(G, generator=generator) + 0.5
    weight_G[step % G] = 0.0
    return x_GI.to(dtype), labels_GK, weight_G.to(dtype)


class Training:
    """One rank of a training: `head` on this rank's rows of each global batch, its tokens shared by `ranks`."""

    def __init__(self, head: RankMixer, ranks: int, optimizer: str = "sgd", dtype: torch.dtype | None = None) -> None:
        self.head = head
        self.model: nn.Module = head
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if dist.is_initialized():
            names = shard_tokens(head, token_mesh(ranks), dtype, check_batches=False)
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(head, names)
            self.model = DistributedDataParallel(head, forward_sync_buffers=False)
        self.optimizer = OPTIMIZERS[optimizer](head.parameters())
        self.dtype = next(head.parameters()).dtype

    def rows(self, step: int) -> list[Tensor]:
        """This rank's rows of a global batch; the weights scaled as DDP's mean over ranks wants them."""
        x_GI, labels_GK, weight_G = batch(step, self.dtype)
        size = G // self.world
        weight_G = weight_G * self.world / weight_G.sum()
        return [tensor[self.rank * size :][:size] for tensor in (x_GI, labels_GK, weight_G)]

    def loss(self, step: int) -> Tensor:
        x_BI, labels_BK, weight_B = self.rows(step)
        logits_NK = self.model(x_BI, weight_B)
        paths = len(logits_NK) // len(x_BI)
        each_N = F.binary_cross_entropy_with_logits(logits_NK, labels_BK.repeat(paths, 1), reduction="none").mean(1)
        return each_N @ weight_B.repeat(paths) / paths

    def step(self, step: int) -> float:
        """Take a step; the loss of the global batch."""
        self.optimizer.zero_grad()
        loss = self.loss(step)
        loss.backward()
        self.optimizer.step()
        self.head.adapt_penalty(dist.all_reduce if dist.is_initialized() else None)
        return self.mean(loss.detach())

    def mean(self, loss: Tensor) -> float:
        if dist.is_initialized():
            dist.all_reduce(loss)
        return loss.item() / self.world

    @torch.no_grad()
    def logits(self, step: int = 50) -> Tensor:
        """Of the global batch, as it is served."""
        self.head.eval()
        logits_BK = self.head(self.rows(step)[0])
        self.head.train()
        if not dist.is_initialized():
            return logits_BK
        logits_WBK = [torch.empty_like(logits_BK) for _ in range(self.world)]
        dist.all_gather(logits_WBK, logits_BK)
        return torch.cat(logits_WBK)

    def whole(self, kind: str = "weights") -> dict[str, Tensor]:
        """All shards of all parameters together, or of their gradients."""
        parameters = {name: p if kind == "weights" else p.grad for name, p in self.head.named_parameters()}
        return {name: whole(p) for name, p in parameters.items() if p is not None}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def trained(variant: str, ranks: int, optimizer: str) -> dict[str, Any]:
    """Everything that must not depend on the ranks, of three steps."""
    training = Training(build(variant), ranks, optimizer)
    losses = [training.step(0)]
    gradients = training.whole("gradients")
    losses += [training.step(step) for step in (1, 2)]
    return {
        "losses": losses,
        "gradients": gradients,
        "weights": training.whole(),
        "buffers": {
            name: buffer.clone()
            for name, buffer in training.head.named_buffers()
            if "open" not in name and "seen" not in name
        },
        "logits": training.logits(),
        "flops": (training.head.flops_per_example(), training.head.training_flops_per_example()),
    }


def fifty_losses(variant: str, ranks: int) -> list[float]:
    """Of fifty steps in float32, on four batches again and again."""
    training = Training(build(variant, torch.float32), ranks)
    return [training.step(step % 4) for step in range(50)]
