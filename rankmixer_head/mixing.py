"""Token mixing: the tokens exchange slices. It has no parameters."""

from jaxtyping import Float
from torch import Tensor


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


def _slices(x_TBD: Tensor) -> Tensor:
    return x_TBD.unflatten(2, (x_TBD.shape[0], -1))
