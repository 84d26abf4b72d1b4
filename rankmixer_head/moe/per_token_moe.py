"""The Sparse-MoE: every token has experts of its own, and a router that opens some of them for an example."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankmixer_head.config import MoEConfig
from rankmixer_head.initialise import initialise
from rankmixer_head.moe.experts import all_experts, serve_experts

BALANCE_WEIGHT = 0.01  # of top_k's balance loss (Switch Transformer, arXiv 2101.03961)


class Examples(NamedTuple):
    """What the Sparse-MoEs of a model must know of the examples of a batch.

    Args:
        weight_B: of each example in the loss; 0 for padding.
        penalty_B: weight of each example's penalty in the loss; 0 where it is not on the path that serves.
        counted_B: 1 where the open experts of an example count in the statistics, else 0.
        serves_B: in training with two routers, whether the example takes the path that serves; None: all take one.
    """

    weight_B: Tensor
    penalty_B: Tensor
    counted_B: Tensor
    serves_B: Tensor | None


class PerTokenMoE(nn.Module):
    """`v_t = sum_j G_tj e_tj(s_t)`, `G_tj = ReLU(h_t(s_t))_j` (arXiv 2507.15551, section 3.4): experts e of token t.

    The router h is one affine map a token, in float32. An expert is a per-token FFN. Training computes all experts;
    evaluation, without gradients, those whose gate is positive. The penalty of an example, `mean_t sum_j u_tj G_tj`,
    enters the gradient where the experts' output does, without being part of any loss that is returned; u is the load
    of an expert over the mean load, so that a busy expert is pressed more and a rare one is not pressed to death
    (arXiv 2412.14711).

    Buffers: `load_TE`, share of the examples for which each expert is open, smoothed over steps and equal on all ranks;
    `open_TE` and `seen`, how many of the examples of the last forward each was open for, of how many. Where a process
    holds some of the tokens, they are still for all T: `open_TE` is zero for the others, and `seen` its share, so that
    sums over the ranks mean the same.

    Args:
        tokens: T.
        width: D, width of a token.
        hidden: M, hidden width of one expert.
        config: E, the budget and the routing.
        device: of the parameters, "meta" included.

    >>> moe = PerTokenMoE(tokens=4, width=12, hidden=6, config=MoEConfig(experts=8)).eval()
    >>> moe(torch.zeros(4, 2, 12)).shape
    torch.Size([4, 2, 12])
    """

    load_TE: Tensor
    open_TE: Tensor
    seen: Tensor

    def __init__(
        self, tokens: int, width: int, hidden: int, config: MoEConfig, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.first_token = 0  # of those whose experts this process holds
        T, D, M, E = tokens, width, hidden, config.experts
        self.router_TDE = nn.Parameter(torch.empty(T, D, E, device=device))
        self.router_bias_TE = nn.Parameter(torch.empty(T, E, device=device))
        if config.has_two_routers:
            self.train_router_TDE = nn.Parameter(torch.empty(T, D, E, device=device))
            self.train_router_bias_TE = nn.Parameter(torch.empty(T, E, device=device))
        self.up_TEMD = nn.Parameter(torch.empty(T, E, M, D, device=device))
        self.up_bias_TEM = nn.Parameter(torch.empty(T, E, M, device=device))
        self.down_TEMD = nn.Parameter(torch.empty(T, E, M, D, device=device))
        self.down_bias_TED = nn.Parameter(torch.empty(T, E, D, device=device))
        self.register_buffer("load_TE", torch.empty(T, E, device=device))
        self.register_buffer("open_TE", torch.empty(T, E, device=device), persistent=False)
        self.register_buffer("seen", torch.empty((), device=device), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start weights and statistics anew; see initialise.py."""
        initialise(self)

    def forward(self, s_TBD: Float[Tensor, "T B D"], examples: Examples | None = None) -> Float[Tensor, "T B D"]:
        """Without `examples` nothing is counted, and there is no penalty; with two routers, training's is used."""
        is_distilled = self.training and self.config.routing == "dtsi_distill"
        # What is distilled shapes nothing but its own router: neither imitation nor penalty reaches what it reads.
        read_TBD = s_TBD.detach() if is_distilled else s_TBD
        pressed_TBE, gates_TBE = self._gates(read_TBD, self.router_TDE, self.router_bias_TE)
        if examples is not None:
            self._count(gates_TBE, examples.counted_B)
        if not torch.is_grad_enabled() and not self.training:
            return self._serve(s_TBD, gates_TBE)
        used_TBE = gates_TBE
        if self.training and self.config.has_two_routers:
            _, used_TBE = self._gates(s_TBD, self.train_router_TDE, self.train_router_bias_TE)
            if examples is not None and examples.serves_B is not None:
                used_TBE = torch.where(examples.serves_B.unsqueeze(1), gates_TBE, used_TBE)
        weights = self.up_TEMD, self.up_bias_TEM, self.down_TEMD, self.down_bias_TED
        v_TBD = all_experts(s_TBD, used_TBE, *weights)
        if not self.training or examples is None:
            return v_TBD
        penalty = self._penalty(pressed_TBE, examples)
        if is_distilled:
            served_TBD = all_experts(read_TBD, gates_TBE, *(weight.detach() for weight in weights))
            penalty = penalty + imitation_loss(served_TBD, v_TBD.detach(), examples.weight_B)
        return _AddToLoss.apply(v_TBD, penalty * self._share_of_tokens)

    def _gates(self, s_TBD: Tensor, router_TDE: Tensor, bias_TE: Tensor) -> tuple[Tensor, Tensor]:
        """(what the penalty presses, gates), in float32 or better."""
        dtype = torch.promote_types(s_TBD.dtype, torch.float32)
        with torch.autocast(s_TBD.device.type, enabled=False):
            logits_TBE = torch.baddbmm(bias_TE.to(dtype).unsqueeze(1), s_TBD.to(dtype), router_TDE.to(dtype))
        if self.config.routing != "top_k":
            gates_TBE = logits_TBE.relu()
            return gates_TBE, gates_TBE
        # Not divided by the sum of the best: with one expert the gate would be 1, and the router would learn nothing.
        shares_TBE = logits_TBE.softmax(2)
        best_TBE = torch.zeros_like(shares_TBE).scatter(2, shares_TBE.topk(self.config.top_k, 2).indices, 1.0)
        return shares_TBE, shares_TBE * best_TBE

    @torch.no_grad()
    def _count(self, gates_TBE: Tensor, counted_B: Tensor) -> None:
        self.own(self.open_TE).copy_(((gates_TBE > 0) * counted_B.unsqueeze(1)).sum(1))
        self.seen.copy_(counted_B.sum() * self._share_of_tokens)

    def own(self, x_TE: Tensor) -> Tensor:
        """The rows of the tokens whose experts this process holds."""
        return x_TE.narrow(0, self.first_token, len(self.router_bias_TE))

    @property
    def _share_of_tokens(self) -> float:
        return len(self.router_bias_TE) / len(self.load_TE)

    def _penalty(self, pressed_TBE: Tensor, examples: Examples) -> Tensor:
        u_TE = self.own(self.load_TE / self.load_TE.mean().clamp(min=1e-12))
        return examples.penalty_B @ (pressed_TBE * u_TE.unsqueeze(1)).sum(2).mean(0)

    def _serve(self, s_TBD: Tensor, gates_TBE: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device := s_TBD.device.type) else None
        weights = self.up_TEMD, self.up_bias_TEM, self.down_TEMD, self.down_bias_TED
        arguments = [tensor.to(dtype) if dtype else tensor for tensor in (s_TBD, *weights)]
        return serve_experts(arguments[0], gates_TBE, *arguments[1:], self.config.dense_above)


def imitation_loss(served_TBD: Tensor, taught_TBD: Tensor, weight_B: Tensor) -> Tensor:
    """Mean squared error of the served output, over tokens and their values, weighted over examples.

    It is divided by no size of the taught output, which is zero where all gates of training are shut: both outputs are
    added to a residual of unit variance, and that is their scale. So it depends on no other example or token, and is
    the same on any number of ranks.

    >>> imitation_loss(torch.ones(1, 2, 3), torch.full((1, 2, 3), 2.0), torch.tensor([0.5, 0.5]))
    tensor(1.)
    """
    served_TBD, taught_TBD = served_TBD.to(weight_B.dtype), taught_TBD.to(weight_B.dtype)
    return (served_TBD - taught_TBD).square().mean((0, 2)) @ weight_B


class _AddToLoss(torch.autograd.Function):
    """Hand `v` on; in the backward, treat `penalty` as a part of the loss."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, v: Tensor, penalty: Tensor) -> Tensor:
        return v.view_as(v)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_ones(())
