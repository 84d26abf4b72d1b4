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

    `tokens_ID` holds the maps of the pieces under each other, equally many rows for each token, so that it can be cut
    between any two: as many as the widest piece has columns. What a token does not need, and all rows of the global
    token, whose map is `global_ID`, is padding: zero, and without gradient.

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
        cut = list(in_widths) if config.tokenizer == "per_group" else [-(-self.in_width // pieces)] * pieces
        self.widths = [0] * config.global_token + cut
        self.rows = max(cut)
        self.first_token = 0  # of those that this process holds
        self.tokens_ID = nn.Parameter(torch.empty(config.tokens * self.rows, config.width, device=device))
        if config.global_token:
            self.global_ID = nn.Parameter(torch.empty(self.in_width, config.width, device=device))
        self.tokens_bias_TD = nn.Parameter(torch.empty(config.tokens, config.width, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew; see initialise.py."""
        initialise(self)

    def forward(self, x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "T B D"]:
        """The tokens. Under autocast too, the tokens are of the parameters' type, and with them all residuals."""
        return self.project(self.cut(x_BI))

    @property
    def cut_widths(self) -> list[int]:
        """How many of the columns that `cut` returns each token is made from."""
        return [self.tokens_bias_TD.shape[1]] * self.has_global + self.widths[self.has_global :]

    def cut(self, x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "B R"]:
        """The pieces side by side, in the order of the tokens; for a global token, what its map makes of the input."""
        if x_BI.shape[1] != self.in_width:
            raise ValueError(f"the input is {x_BI.shape[1]} wide, in_widths of the tokenizer add up to {self.in_width}")
        padding = sum(self.widths) - self.in_width
        pieces_BR = F.pad(x_BI, (0, padding)) if padding else x_BI
        return torch.cat([x_BI @ self.global_ID, pieces_BR], dim=1) if self.has_global else pieces_BR

    def project(self, pieces_BR: Float[Tensor, "B R"]) -> Float[Tensor, "T B D"]:
        """The tokens that this process holds, from what `cut` returns for them."""
        bias_TD, maps_TID = self.tokens_bias_TD, self.tokens_ID.unflatten(0, (-1, self.rows))
        tokens, D = bias_TD.shape
        widths = self.widths[self.first_token : self.first_token + tokens]
        if self.has_global and self.first_token == 0:
            global_BD, pieces_BR = pieces_BR.split([D, sum(widths)], dim=1)
            others_TBD = _affine(pieces_BR, widths[1:], maps_TID[1:], bias_TD[1:])
            x_TBD = torch.cat([(global_BD + bias_TD[0]).unsqueeze(0), others_TBD])
        else:
            x_TBD = _affine(pieces_BR, widths, maps_TID, bias_TD)
        return x_TBD.to(self.tokens_ID.dtype)


def _affine(pieces_BR: Tensor, widths: list[int], maps_TID: Tensor, bias_TD: Tensor) -> Tensor:
    """One affine map for each piece: a batched product where all pieces are as wide as the maps have rows."""
    tokens, rows, _ = maps_TID.shape
    if widths == [rows] * tokens:
        pieces_TBI = pieces_BR.unflatten(1, (tokens, rows)).transpose(0, 1)
        return torch.baddbmm(bias_TD.unsqueeze(1), pieces_TBI, maps_TID)
    pieces = zip(bias_TD, pieces_BR.split(widths, dim=1), maps_TID, strict=True)
    return torch.stack([torch.addmm(bias_D, x_BI, map_ID[: x_BI.shape[1]]) for bias_D, x_BI, map_ID in pieces])
