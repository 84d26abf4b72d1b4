"""From the pooled token to one logit for each task."""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rankmixer_head.initialise import initialise


class TaskHeads(nn.Module):
    """One map per task from the pooled token to a logit: affine, or an MLP with GELU between its layers.

    Args:
        width: D, width of the pooled token.
        hidden: widths of the hidden layers; () is one affine map.
        num_tasks: K.
        device: of the parameters, "meta" included.

    >>> heads = TaskHeads(width=12, hidden=(7,), num_tasks=3)
    >>> heads(torch.zeros(2, 12)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self, width: int, hidden: Sequence[int], num_tasks: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, found {num_tasks}")
        self.num_tasks = num_tasks
        widths = itertools.pairwise((width, *hidden, 1))
        self.layers = nn.ModuleList(PerTaskAffine(num_tasks, i, o, device) for i, o in widths)

    def forward(self, pooled_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """The logits; under autocast too in the type of the pooled token, where rounding would make ties."""
        device = pooled_BD.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            x_KBO = pooled_BD.expand(self.num_tasks, -1, -1)
            for index, layer in enumerate(self.layers):
                x_KBO = layer(F.gelu(x_KBO) if index else x_KBO)
            return x_KBO.squeeze(2).transpose(0, 1)


class PerTaskAffine(nn.Module):
    """An affine map for each of K tasks: (K, B, in) -> (K, B, out)."""

    def __init__(self, tasks: int, in_width: int, out_width: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.weight_KIO = nn.Parameter(torch.empty(tasks, in_width, out_width, device=device))
        self.bias_KO = nn.Parameter(torch.empty(tasks, out_width, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew; see initialise.py."""
        initialise(self)

    def forward(self, x_KBI: Float[Tensor, "K B I"]) -> Float[Tensor, "K B O"]:
        return torch.baddbmm(self.bias_KO.unsqueeze(1), x_KBI, self.weight_KIO)
