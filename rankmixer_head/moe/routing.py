"""What controls the routers of all layers: which path an example takes, the penalty and its weight, the statistics."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rankmixer_head.config import MoEConfig
from rankmixer_head.initialise import initialise
from rankmixer_head.moe.per_token_moe import BALANCE_WEIGHT, Examples, PerTokenMoE

# Smoothing of the loads over steps. The logarithm of lambda is a controller's output: a part that grows with the excess
# of open experts at each step, which finds the level, and a part proportional to it, which damps the overshoot.
START, LOAD_DECAY, INTEGRAL, PROPORTIONAL = 1e-4, 0.9, 0.03, 3.0
# Experts with less than this share of the budget's load have their router's bias raised by so much a step.
RARE, REVIVAL = 0.01, 0.01
# Below the budget, and with log_penalty below 0, all biases rise by so much times the lack a step.
OPENING = 0.02


class RoutingController(nn.Module):
    """Controls the routers of all layers: adapts lambda, the weight of the l1 penalty, until the budget is met.

    Its state, `log_penalty`, the logarithm of lambda over its start, and `excess`, are buffers, and so a part of every
    checkpoint; they start at zero, as DistributedModelParallel leaves buffers that were on the meta device.

    Args:
        config: the budget and the routing.
        device: of the buffer, "meta" included.
    """

    log_penalty: Tensor
    excess: Tensor

    def __init__(self, config: MoEConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = config
        self.batch_index = 0  # of the batch of this process among those that make the global batch
        self.register_buffer("log_penalty", torch.empty((), device=device))
        self.register_buffer("excess", torch.empty((), device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the penalty anew; see initialise.py."""
        initialise(self)

    @property
    def has_two_paths(self) -> bool:
        """Whether training sends every example along both paths."""
        return self.config.routing == "dtsi"

    @property
    def penalty(self) -> Tensor:
        """Weight of the penalty in the loss: lambda, or the fixed one of top_k's balance loss."""
        if self.config.routing == "top_k":
            return torch.full_like(self.log_penalty, BALANCE_WEIGHT)
        return START * (self.log_penalty + PROPORTIONAL * self.excess).exp()

    def examples(self, weight_B: Tensor) -> Examples:
        """What the layers must know of a batch whose examples weigh `weight_B` in the loss.

        In training with `dtsi` that is the batch twice, with `dtsi_split` every second example of the global
        batch serves.
        """
        serves_B, share = None, 1.0
        if self.training and self.has_two_paths:
            serves_B = torch.arange(2 * len(weight_B), device=weight_B.device) >= len(weight_B)
            weight_B = torch.cat([weight_B, weight_B])
        elif self.training and self.config.routing == "dtsi_split":
            first = self.batch_index * len(weight_B)
            serves_B, share = torch.arange(first, first + len(weight_B), device=weight_B.device) % 2 == 0, 0.5
        served_B = weight_B if serves_B is None else weight_B * serves_B
        return Examples(weight_B, served_B * (self.penalty / share), (served_B > 0).to(weight_B.dtype), serves_B)

    @torch.no_grad()
    def adapt(self, moes: Sequence[PerTokenMoE], all_reduce: Callable[[Tensor], object] | None = None) -> None:
        """Take in which experts the last forward opened: smooth the loads, move the penalty, open what is shut.

        Above the budget lambda grows, by up to 3 % a step; below it, it shrinks.
        """
        counts = torch.cat([*(moe.open_TE.flatten() for moe in moes), moes[0].seen.view(1)])
        if all_reduce is not None:
            all_reduce(counts)
        seen = counts[-1]
        is_news = (seen > 0).float()  # a batch of padding alone is none
        share_LTE = (counts[:-1] / seen.clamp(min=1)).view(len(moes), *moes[0].load_TE.shape)
        for moe, share_TE in zip(moes, share_LTE, strict=True):
            moe.load_TE.lerp_(share_TE, is_news * (1 - LOAD_DECAY))
        ratio = torch.stack([moe.load_TE for moe in moes]).mean()
        self.excess.copy_((ratio / self.config.active_ratio - 1).clamp(-1, 1))
        self.log_penalty.add_(INTEGRAL * is_news * self.excess).clamp_(-10, 14)
        # Where hardly a penalty is left, it is not what keeps the gates shut.
        opening = OPENING * self.excess.clamp(max=0).neg() * (self.log_penalty < 0)
        for moe in moes:
            # A ReLU that no example opens has no gradient either: nothing else would bring such an expert back.
            is_rare_TE = moe.own(moe.load_TE < RARE * self.config.active_ratio)
            moe.router_bias_TE.add_((REVIVAL * is_rare_TE + opening) * is_news)


class Activity:
    """How often every expert of a model was open, over several forwards and all ranks: what `evaluate` reports.

    Args:
        moes: the Sparse-MoEs of the model, one a layer.

    >>> from rankmixer_head.config import MoEConfig
    >>> config = MoEConfig(experts=2)
    >>> moe, controller = PerTokenMoE(4, 12, 6, config).eval().requires_grad_(False), RoutingController(config).eval()
    >>> moe.router_bias_TE[:] = torch.tensor([100.0, -100.0])
    >>> _ = moe(torch.ones(4, 3, 12), controller.examples(torch.ones(3)))
    >>> activity = Activity([moe])
    >>> activity.add()
    >>> activity.load_LTE().tolist()
    [[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]
    """

    def __init__(self, moes: Sequence[PerTokenMoE]) -> None:
        self.moes = moes
        self.open_LTE = torch.zeros(len(moes), *moes[0].open_TE.shape, dtype=torch.float64)
        self.seen = torch.zeros((), dtype=torch.float64)

    def add(self) -> None:
        """Count the last forward."""
        self.open_LTE += torch.stack([moe.open_TE for moe in self.moes]).cpu()
        self.seen += self.moes[0].seen.cpu()

    def load_LTE(self, all_reduce: Callable[[Tensor], object] | None = None) -> Tensor:
        """Share of the examples for which each expert was open.

        Args:
            all_reduce: sums a CPU tensor over all ranks, in place.
        """
        counts = torch.cat([self.open_LTE.flatten(), self.seen.view(1)])
        if all_reduce is not None:
            all_reduce(counts)
        return (counts[:-1] / counts[-1].clamp(min=1)).view_as(self.open_LTE)
