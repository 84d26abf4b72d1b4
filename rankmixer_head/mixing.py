"""Token mixing: the tokens exchange slices."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankmixer_head.initialise import initialise


def mix_tokens(x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
    """Cut every token into T slices; new token h is slice h of all the tokens, in their order.

    `s^h = concat_t x_t^(h)` (arXiv 2507.15551, section 3.3.1), with as many heads as tokens so that the shape returns.
    Mixing twice changes nothing.

    >>> import torch
    >>> x_TBD = torch.tensor([[[11, 12]], [[21, 22]]]).float()
    >>> mix_tokens(x_TBD).tolist()
    [[[11.0, 21.0]], [[12.0, 22.0]]]
    """
    return _slices(x_TBD).transpose(0, 2).flatten(2)


def mix_and_add(x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
    """`mix_tokens(x_TBD) + x_TBD`, without storing the first: one pass over memory, and one for the gradient."""
    x_TBHC = _slices(x_TBD)
    return (x_TBHC + x_TBHC.transpose(0, 2)).flatten(2)


class Mixing(nn.Module):
    """`Mix(X) + X`, without parameters.

    >>> Mixing()(torch.tensor([[[11, 12]], [[21, 22]]]).float()).tolist()
    [[[22.0, 33.0]], [[33.0, 44.0]]]
    """

    def __init__(self) -> None:
        super().__init__()
        self.mix_and_add: Callable[[Tensor], Tensor] = mix_and_add

    def forward(self, x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        return self.mix_and_add(x_TBD)


class GainedMixing(nn.Module):
    """`g * Mix(X) + X` with a learned gain g for each of the D channels, started at 1/2.

    Mixing is its own inverse, so I + Mix is singular: slice h of token t and slice t of token h come out equal, and
    nearly half of what the tokens held is lost. With a gain it is not, while the gains of no two such slices multiply
    to 1.

    Args:
        width: D.
        device: of the parameters, "meta" included.

    >>> GainedMixing(width=2)(torch.tensor([[[11, 12]], [[21, 22]]]).float()).tolist()
    [[[16.5, 22.5]], [[27.0, 33.0]]]
    """

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.mix: Callable[[Tensor], Tensor] = mix_tokens
        self.gain_D = nn.Parameter(torch.empty(width, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the gains anew; see initialise.py."""
        initialise(self)

    def forward(self, x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        return torch.addcmul(x_TBD, self.mix(x_TBD), self.gain_D)


def _slices(x_TBD: Tensor) -> Tensor:
    return x_TBD.unflatten(2, (x_TBD.shape[0], -1))
