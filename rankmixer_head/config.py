"""The sizes of a RankMixer, by name or by number."""

import difflib
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

TokenizerKind = Literal["slices", "per_group"]


@dataclass(frozen=True)
class RankMixerConfig:
    """Sizes of a RankMixer (arXiv 2507.15551).

    Args:
        tokens: T, number of tokens and of mixing heads; divides `width`.
        width: D, width of a token.
        layers: L, number of blocks.
        expansion: k, hidden width of the per-token FFN in units of D.
        tokenizer: "slices" cuts the concatenated embeddings into T equal slices; "per_group" makes one token of each
            semantic group, of which there must then be T.
        head_hidden: hidden widths of the MLP from pooled token to the logit of a task; () is one affine map.

    Raises:
        ValueError: a size is not positive, T does not divide D, or the tokenizer is unknown.

    >>> RankMixerConfig(tokens=16, width=100, layers=2, expansion=4)
    Traceback (most recent call last):
    ...
    ValueError: tokens = 16 does not divide width = 100, and mixing cuts every token into 16 equal slices; nearest \
valid widths: 96, 112
    """

    tokens: int
    width: int
    layers: int
    expansion: float
    tokenizer: TokenizerKind = "slices"
    head_hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for key in ("tokens", "width", "layers", "hidden"):
            if getattr(self, key) < 1:
                found = f"expansion * width = {self.expansion * self.width}" if key == "hidden" else getattr(self, key)
                raise ValueError(f"{key} must be at least 1, found {found}")
        if min(self.head_hidden, default=1) < 1:
            raise ValueError(f"head_hidden must be widths of at least 1, found {self.head_hidden}")
        if self.tokenizer not in get_args(TokenizerKind):
            raise ValueError(_unknown("tokenizer", self.tokenizer, get_args(TokenizerKind)))
        if self.width % self.tokens:
            below = self.width - self.width % self.tokens
            nearest = ", ".join(str(width) for width in (below, below + self.tokens) if width)
            raise ValueError(
                f"tokens = {self.tokens} does not divide width = {self.width}, and mixing cuts every token into "
                f"{self.tokens} equal slices; nearest valid widths: {nearest}"
            )

    @property
    def hidden(self) -> int:
        """M, hidden width of the per-token FFN: k*D, rounded."""
        return round(self.expansion * self.width)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "RankMixerConfig":
        """A named size, with single fields replaced.

        >>> RankMixerConfig.preset("tiny", layers=3)
        RankMixerConfig(tokens=8, width=32, layers=3, expansion=4, tokenizer='slices', head_hidden=())
        """
        if name not in PRESETS:
            raise ValueError(_unknown("preset", name, tuple(PRESETS)))
        return replace(PRESETS[name], **overrides)


# The last two are the sizes of the paper, which does not state their expansion.
PRESETS = {
    "tiny": RankMixerConfig(tokens=8, width=32, layers=2, expansion=4),
    "small": RankMixerConfig(tokens=16, width=256, layers=2, expansion=4),
    "100m": RankMixerConfig(tokens=16, width=768, layers=2, expansion=3),
    "1b": RankMixerConfig(tokens=32, width=1536, layers=2, expansion=3.5),
}


def _unknown(key: str, found: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(found, known, n=2, cutoff=0)
    return f"unknown {key} {found!r}; nearest: {', '.join(nearest)}; known: {', '.join(known)}"
