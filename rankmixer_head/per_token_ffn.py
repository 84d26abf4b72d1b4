"""The feed-forward network of which every token has its own."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rankmixer_head.initialise import initialise


class PerTokenFFN(nn.Module):
    """`v_t = GELU(s_t W1_t + b1_t) W2_t + b2_t` (arXiv 2507.15551, section 3.3.2): no weight is shared by two tokens.

    Args:
        tokens: T.
        width: D, width of a token.
        hidden: M, hidden width.
        device: of the parameters, "meta" included.

    >>> ffn = PerTokenFFN(tokens=4, width=12, hidden=36)
    >>> ffn(torch.zeros(4, 2, 12)).shape
    torch.Size([4, 2, 12])
    """

    def __init__(self, tokens: int, width: int, hidden: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.up_TDM = nn.Parameter(torch.empty(tokens, width, hidden, device=device))
        self.up_bias_TM = nn.Parameter(torch.empty(tokens, hidden, device=device))
        self.down_TMD = nn.Parameter(torch.empty(tokens, hidden, width, device=device))
        self.down_bias_TD = nn.Parameter(torch.empty(tokens, width, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew; see initialise.py."""
        initialise(self)

    def forward(self, s_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        return self._two_maps(s_TBD)

    def _two_maps(self, s_TBI: Tensor) -> Tensor:
        hidden_TBM = gelu(torch.baddbmm(self.up_bias_TM.unsqueeze(1), s_TBI, self.up_TDM))
        return torch.baddbmm(self.down_bias_TD.unsqueeze(1), hidden_TBM, self.down_TMD)


class PerTokenSwiGLU(nn.Module):
    """`v_t = (SiLU(s_t Wg_t) * (s_t Wu_t)) Wd_t` (arXiv 2602.06563), no biases; Wd starts at a hundredth.

    So a new block hardly changes its input, and depth can be added.

    Args:
        tokens: T.
        width: D, width of a token.
        hidden: M, hidden width.
        device: of the parameters, "meta" included.

    >>> swiglu = PerTokenSwiGLU(tokens=4, width=12, hidden=36)
    >>> swiglu(torch.zeros(4, 2, 12)).shape
    torch.Size([4, 2, 12])
    """

    def __init__(self, tokens: int, width: int, hidden: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.gate_TDM = nn.Parameter(torch.empty(tokens, width, hidden, device=device))
        self.up_TDM = nn.Parameter(torch.empty(tokens, width, hidden, device=device))
        self.small_down_TMD = nn.Parameter(torch.empty(tokens, hidden, width, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew; see initialise.py."""
        initialise(self)

    def forward(self, s_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, "T B D"]:
        hidden_TBM = F.silu(torch.bmm(s_TBD, self.gate_TDM)) * torch.bmm(s_TBD, self.up_TDM)
        return torch.bmm(hidden_TBM, self.small_down_TMD)


def gelu(x: Tensor) -> Tensor:
    """GELU, without gradients over its input: fresh memory costs a CPU as much as a quarter of the products."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)
