"""torch's Muon for weights that stack one matrix a token, or one an expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class StackedMuon(torch.optim.Optimizer):
    """torch.optim.Muon, which takes matrices only, on stacks (..., rows, columns): each slice is a matrix of its own.

    Its momentum is kept as one stack a weight, so that a checkpoint reshards it like the weight.

    Args:
        params: parameters of three dimensions or more.
        lr: learning rate, adjusted to the matrix as torch's `match_rms_adamw` does: AdamW's values carry over.
        weight_decay: decoupled.

    >>> stack = torch.nn.Parameter(torch.zeros(2, 3, 5))
    >>> stack.grad = torch.randn(2, 3, 5)
    >>> StackedMuon([stack], lr=0.1, weight_decay=0.0).step()
    >>> bool((stack != 0).all())
    True
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        # A slice shares its weight's storage: what Muon does to it, it does to the weight.
        self._slices = {
            param: [nn.Parameter(matrix) for matrix in _matrices(param.detach())]
            for group in self.param_groups
            for param in group["params"]
        }
        self._muon = torch.optim.Muon(
            [matrix for matrices in self._slices.values() for matrix in matrices],
            lr=lr,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        assert closure is None
        assert len(self.param_groups) == 1
        group = self.param_groups[0]
        for param, slices in self._slices.items():
            if param.grad is not None:
                state: dict[str, Any] = self.state[param]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(param)
                gradients, momenta = _matrices(param.grad), _matrices(state["momentum_buffer"])
                for matrix, grad, momentum in zip(slices, gradients, momenta, strict=True):
                    matrix.grad = grad
                    self._muon.state[matrix]["momentum_buffer"] = momentum
        self._muon.param_groups[0].update(lr=group["lr"], weight_decay=group["weight_decay"])
        self._muon.step()
        self._muon.zero_grad()


def _matrices(stack: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return stack.flatten(0, -3).unbind()
