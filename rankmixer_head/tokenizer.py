"""From the embeddings of an example to its tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rankmixer_head.config import RankMixerConfig
from rankmixer_head.initialise import initialise


class Tokenizer(nn.Module):
    """`x_i = Proj_i(e[d(i-1):di])` (arXiv 2507.15551, section 3.2): a token is an affine map of a piece of the input.

    With "slices" the input, its tail padded with zeros, is cut into pieces of equal width, whatever the semantic groups
    are: T pieces of d = ceil(I/T). With "per_group" every semantic group is a piece. A global token, if asked for, is
    the first of the T, and its piece is the whole input.

    Args:
        config: T, D and the kind of tokenizer.
        in_widths: width of each semantic group, in the order of the input; I is their sum.
        device: of the parameters, "meta" included.

    Raises:
        ValueError: "per_group" with a number of groups that does not make T tokens, or a group without width.

    >>> config = RankMixerConfig(tokens=4, width=12, layers=1, expansion=2)
    >>> tokenizer = Tokenizer(config, in_widths=[5, 8, 1])
    >>> tokenizer.widths
    [4, 4, 4, 4]
    >>> tokenizer(torch.zeros(2, 14)).shape
    torch.Size([4, 2, 12])
    """

    def __init__(
        self, config: RankMixerConfig, in_widths: Sequence[int], device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        if not in_widths or min(in_widths) < 1:
            raise ValueError(
                f"in_widths must be the widths of the semantic groups, at least 1, found {list(in_widths)}"
            )
        pieces = config.tokens - config.global_token
        if config.tokenizer == "per_group" and len(in_widths) != pieces:
            also = " and a global one" if config.global_token else ""
            raise ValueError(
                f"tokenizer = per_group makes one token of each semantic group{also}: "
                f"found {len(in_widths)} groups and tokens = {config.tokens}; set tokens = "
                f"{len(in_widths) + config.global_token} or use tokenizer = slices"
            )
        self.in_width = sum(in_widths)
        self.has_global = config.global_token
        self.equal_width = None if config.tokenizer == "per_group" else -(-self.in_width // pieces)
        cut = [self.equal_width] * pieces if self.equal_width else list(in_widths)
        self.widths = [self.in_width] * config.global_token + cut
        self.tokens_ID = nn.Parameter(torch.empty(sum(self.widths), config.width, device=device))
        self.tokens_bias_TD = nn.Parameter(torch.empty(config.tokens, config.width, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew; see initialise.py."""
        initialise(self)

    def forward(self, x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "T B D"]:
        """Cut and project. Under autocast too, the tokens are of the parameters' type, and with them all residuals."""
        if x_BI.shape[1] != self.in_width:
            raise ValueError(f"the input is {x_BI.shape[1]} wide, in_widths of the tokenizer add up to {self.in_width}")
        if self.equal_width and not self.has_global:
            x_TBD = self._project_equal(x_BI, self.tokens_ID, self.tokens_bias_TD)
        elif self.equal_width:
            global_ID, slices_ID = self.tokens_ID.split([self.in_width, len(self.tokens_ID) - self.in_width])
            global_BD = torch.addmm(self.tokens_bias_TD[0], x_BI, global_ID)
            x_TBD = torch.cat([global_BD.unsqueeze(0), self._project_equal(x_BI, slices_ID, self.tokens_bias_TD[1:])])
        else:
            groups = x_BI.split(self.widths[self.has_global :], dim=1)
            pieces = (x_BI, *groups) if self.has_global else groups
            maps = zip(self.tokens_bias_TD, pieces, self.tokens_ID.split(self.widths), strict=True)
            x_TBD = torch.stack([torch.addmm(bias_D, x, weight) for bias_D, x, weight in maps])
        return x_TBD.to(self.tokens_ID.dtype)

    def _project_equal(self, x_BI: Tensor, weight_ID: Tensor, bias_TD: Tensor) -> Tensor:
        tokens, width = len(bias_TD), self.equal_width
        assert width is not None
        if tokens * width > self.in_width:
            x_BI = F.pad(x_BI, (0, tokens * width - self.in_width))
        pieces_TBd = x_BI.unflatten(1, (tokens, width)).transpose(0, 1)
        return torch.baddbmm(bias_TD.unsqueeze(1), pieces_TBd, weight_ID.unflatten(0, (tokens, width)))
