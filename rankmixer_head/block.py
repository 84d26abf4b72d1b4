"""One RankMixer block."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankmixer_head.mixing import mix_and_add
from rankmixer_head.per_token_ffn import PerTokenFFN


class RankMixerBlock(nn.Module):
    """`S = LN(Mix(X) + X)`, `X' = LN(PFFN(S) + S)` (arXiv 2507.15551, equation 2): Post-LN, after the residual.

    The tokens share one LayerNorm(D) for each of the two places.

    Args:
        tokens: T; divides `width`.
        width: D, width of a token.
        hidden: M, hidden width of the per-token FFN.
        device: of the parameters, "meta" included.

    >>> block = RankMixerBlock(tokens=4, width=12, hidden=36)
    >>> block(torch.zeros(4, 2, 12)).shape
    torch.Size([4, 2, 12])
    """

    def __init__(self, tokens: int, width: int, hidden: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.mixing_norm = nn.LayerNorm(width, device=device)
        self.ffn = PerTokenFFN(tokens, width, hidden, device)
        self.ffn_norm = nn.LayerNorm(width, device=device)

    def forward(self, x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        s_TBD = self.mixing_norm(mix_and_add(x_TBD))
        return self.ffn_norm(self.ffn(s_TBD) + s_TBD)
