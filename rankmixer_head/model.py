"""RankMixer: embeddings of an example in, one logit for each task out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankmixer_head.block import RankMixerBlock, TokenMixerLargeBlock
from rankmixer_head.config import RankMixerConfig
from rankmixer_head.counters import flops_per_example, training_flops_per_example
from rankmixer_head.heads import TaskHeads
from rankmixer_head.initialise import initialise
from rankmixer_head.moe.per_token_moe import PerTokenMoE
from rankmixer_head.moe.routing import RoutingController
from rankmixer_head.tokenizer import Tokenizer


class RankMixer(nn.Module):
    """The RankMixer of arXiv 2507.15551: tokens, L blocks, the mean of the tokens, a head per task.

    Inside, activations are token-major, (T, B, D): every per-token product is one batched matrix product over memory
    as it lies.

    With a Sparse-MoE call `adapt_penalty` after every step of the optimizer.

    Args:
        config: sizes and choices; see RankMixerConfig.preset.
        in_widths: width of each semantic group of the input, in order; I is their sum.
        num_tasks: K.
        device: of the parameters, "meta" included.

    >>> model = RankMixer(RankMixerConfig.preset("tiny"), in_widths=[48, 16, 5], num_tasks=2)
    >>> model(torch.zeros(3, 69)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        config: RankMixerConfig,
        in_widths: Sequence[int],
        num_tasks: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_tasks = num_tasks
        self.tokenizer = Tokenizer(config, in_widths, device)
        is_large = config.block == "tokenmixer_large"
        block = TokenMixerLargeBlock if is_large else RankMixerBlock
        self.blocks = nn.ModuleList(block(config, device) for _ in range(config.layers))
        # Pre-norm blocks leave the sum of all their outputs; Post-norm blocks end with a LayerNorm of their own.
        self.norm = nn.RMSNorm(config.width, device=device) if is_large else nn.Identity()
        self.heads = TaskHeads(config.width, config.head_hidden, num_tasks, device)
        self.controller = None if config.moe is None else RoutingController(config.moe, device)
        if config.initialisation != "fan_in":
            # For each part: DistributedModelParallel resets those that were on the meta device one by one.
            parts: list[Any] = list(self.modules())
            for part in parts:
                part.initialisation = config.initialisation
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start all weights and statistics anew, by the table in initialise.py."""
        initialise(self)

    def forward(self, x_BI: Float[Tensor, "B I"], weight_B: Float[Tensor, "B"] | None = None) -> Float[Tensor, "N K"]:
        """Logits of the tasks, float32 under autocast too.

        In training with `moe.routing = dtsi` there are two logits for each example, (2B, K): first those of the path
        that is trained only, then those of the path that serves. The loss is the mean over both. Otherwise N = B.

        Args:
            x_BI: the input.
            weight_B: weight of each example in the loss, 0 for padding; only a Sparse-MoE uses it. Default: 1/B.
        """
        if self.controller is None:
            weight_B = None
        elif weight_B is None:
            weight_B = torch.full((len(x_BI),), 1 / max(1, len(x_BI)), device=x_BI.device)
        x_TBD, weight_B = self.enter(x_BI, weight_B)
        examples = None
        if self.controller is not None and weight_B is not None:
            if self.training and self.controller.has_two_paths:
                x_TBD = torch.cat([x_TBD, x_TBD], dim=1)
            examples = self.controller.examples(weight_B)
        for block in self.blocks:
            if self.config.recompute and torch.is_grad_enabled():
                x_TBD = checkpoint(block, x_TBD, examples, use_reentrant=False)
            else:
                x_TBD = block(x_TBD, examples)
        return self.heads(self.leave(self.norm(x_TBD), len(x_BI)))

    def enter(self, x_BI: Tensor, weight_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The tokens that this process holds, and the weights of their examples. Token parallelism has its own."""
        return self.tokenizer(x_BI), weight_B

    def leave(self, x_TBD: Tensor, batch_size: int) -> Tensor:
        """The mean over all tokens, for the examples of this process. Token parallelism has its own."""
        return x_TBD.mean(0)

    @property
    def moes(self) -> list[PerTokenMoE]:
        """The Sparse-MoE of every layer; none if the model is dense."""
        return [module for module in self.modules() if isinstance(module, PerTokenMoE)]

    def adapt_penalty(self, all_reduce: Callable[[Tensor], object] | None = None) -> None:
        """Move the weight of the l1 penalty towards the budget of active experts, by the gates of the last forward.

        Call it after every step of the optimizer; without a Sparse-MoE it does nothing.

        Args:
            all_reduce: sums a tensor over all ranks, in place; needed with more than one, or they drift apart.
        """
        if self.controller is not None:
            self.controller.adapt(self.moes, all_reduce)

    def routing_state(self) -> dict[str, float]:
        """The share of open experts, smoothed over steps, and the penalty's weight lambda; {} without a Sparse-MoE."""
        if self.controller is None:
            return {}
        ratio = torch.stack([moe.load_TE for moe in self.moes]).mean()
        return {"active_ratio": ratio.item(), "penalty": self.controller.penalty.item()}

    def flops_per_example(self, active_ratio: float | None = None) -> int:
        """FLOPs of the matrix products of one example's forward, as it is served.

        Args:
            active_ratio: share of the experts of a Sparse-MoE that are open; default: the budget.

        >>> RankMixer(RankMixerConfig.preset("small"), [1024], num_tasks=1, device="meta").flops_per_example()
        34079232
        """
        return flops_per_example(self, active_ratio)

    def training_flops_per_example(self, input_gradient: bool = True, recompute: bool | None = None) -> int:
        """FLOPs of the matrix products of one example's forward and backward in training.

        Args:
            input_gradient: the input is made of something that learns, as tables do.
            recompute: count what the backward computes again; default: if the configuration says so. MFU is without.

        >>> RankMixer(RankMixerConfig.preset("small"), [1024], num_tasks=1, device="meta").training_flops_per_example()
        102237696
        """
        return training_flops_per_example(self, input_gradient, recompute)
