"""What the paper takes away from a RankMixer, or puts in its place, to show what it is good for (its tables 2 and 3).

Each has the place of token mixing, X -> what the first LayerNorm reads, or of the per-token FFN.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rankmixer_head.initialise import initialise
from rankmixer_head.mixing import mix_tokens
from rankmixer_head.per_token_ffn import PerTokenFFN, gelu


class WithoutMixing(nn.Module):
    """`X`: the tokens never meet before they are averaged. The residual would only double it."""

    def forward(self, x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        return x_TBD


class MixingWithoutSkip(nn.Module):
    """`Mix(X)` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mix: Callable[[Tensor], Tensor] = mix_tokens

    def forward(self, x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        return self.mix(x_TBD)


class AllConcatMixing(nn.Module):
    """`split(MLP(concat(X))) + X`: one MLP over all tokens side by side, cut into as many tokens again.

    The paper does not state its size; its one hidden layer is M wide, so that it has as many weights as the FFNs.

    Args:
        tokens: T.
        width: D.
        hidden: M.
        device: of the parameters, "meta" included.
    """

    def __init__(self, tokens: int, width: int, hidden: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.up_IM = nn.Parameter(torch.empty(tokens * width, hidden, device=device))
        self.up_bias_M = nn.Parameter(torch.empty(hidden, device=device))
        self.down_MO = nn.Parameter(torch.empty(hidden, tokens * width, device=device))
        self.down_bias_O = nn.Parameter(torch.empty(tokens * width, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew; see initialise.py."""
        initialise(self)

    def forward(self, x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        hidden_BM = gelu(torch.addmm(self.up_bias_M, side_by_side(x_TBD), self.up_IM))
        out_BO = torch.addmm(self.down_bias_O, hidden_BM, self.down_MO)
        return x_TBD + out_BO.unflatten(1, (x_TBD.shape[0], -1)).transpose(0, 1)


class SelfAttentionMixing(nn.Module):
    """`Attention(X) + X` over the tokens, with T heads of width C and maps that all tokens share.

    Args:
        tokens: T.
        width: D.
        device: of the parameters, "meta" included.
    """

    def __init__(self, tokens: int, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.tokens = tokens
        self.query_key_value_3DD = nn.Parameter(torch.empty(3, width, width, device=device))
        self.out_DD = nn.Parameter(torch.empty(width, width, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew; see initialise.py."""
        initialise(self)

    def forward(self, x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        query_BHTC, key_BHTC, value_BHTC = (
            (x_TBD @ weight_DD).unflatten(2, (self.tokens, -1)).permute(1, 2, 0, 3)
            for weight_DD in self.query_key_value_3DD
        )
        mixed_BHTC = F.scaled_dot_product_attention(query_BHTC, key_BHTC, value_BHTC)
        return x_TBD + mixed_BHTC.permute(2, 0, 1, 3).flatten(2) @ self.out_DD


class SharedFFN(PerTokenFFN):
    """One FFN for all tokens.

    Args:
        width: D.
        hidden: M.
        tokens: T, how often it is applied.
        device: of the parameters, "meta" included.
    """

    def __init__(self, tokens: int, width: int, hidden: int, device: torch.device | str | None = None) -> None:
        super().__init__(1, width, hidden, device)
        self.tokens = tokens

    def forward(self, s_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        return self._two_maps(s_TBD.flatten(0, 1).unsqueeze(0)).view_as(s_TBD)


class AllShareFFN(PerTokenFFN):
    """`v_t = FFN_t(concat(S))`: every token's FFN reads all tokens, as the experts of a MoE share their input.

    Args:
        tokens: T.
        width: D, width of what an FFN returns; it reads T*D.
        hidden: M.
        device: of the parameters, "meta" included.
    """

    def __init__(self, tokens: int, width: int, hidden: int, device: torch.device | str | None = None) -> None:
        super().__init__(tokens, width, hidden, device)
        self.up_TDM = nn.Parameter(torch.empty(tokens, tokens * width, hidden, device=device))
        self.reset_parameters()

    def forward(self, s_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        return self._two_maps(side_by_side(s_TBD).expand(len(s_TBD), -1, -1))


def side_by_side(x_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "B O"]:
    """The tokens of an example as one vector of O = T*D values.

    >>> side_by_side(torch.tensor([[[11, 12]], [[21, 22]]]).float()).tolist()
    [[11.0, 12.0, 21.0, 22.0]]
    """
    return x_TBD.transpose(0, 1).flatten(1)
