"""The sizes and choices of a RankMixer, by name or by number."""

import difflib
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

TokenizerKind = Literal["slices", "per_group"]
BlockKind = Literal["rankmixer", "tokenmixer_large"]
Initialisation = Literal["fan_in", "xavier"]
Routing = Literal["dtsi", "dtsi_split", "dtsi_distill", "single", "top_k"]
Ablation = Literal[
    "none", "no_skip", "no_mixing", "no_layer_norm", "shared_ffn", "all_concat", "all_share", "self_attention"
]
REPLACES_MIXING = ("no_skip", "no_mixing", "all_concat", "all_share", "self_attention")
READS_ALL_TOKENS = ("all_concat", "all_share", "self_attention")


@dataclass(frozen=True)
class MoEConfig:
    """A Sparse-MoE in place of every per-token FFN (arXiv 2507.15551, section 3.4).

    Args:
        experts: E, experts of each token, each as wide as the FFN of the configuration.
        active_ratio: budget: share of the experts that are active, as a mean over examples, tokens and layers.
        routing: how gates are made and trained. All but `top_k` are ReLU gates under an adaptive l1 penalty.
            `dtsi`: dense training, sparse inference with two routers; each example is trained on both paths.
            `dtsi_split`: the same, every second example on one path, the others on the other.
            `dtsi_distill`: trained on the dense path alone; the router that serves learns to imitate it.
            `single`: one router, sparse in training too (ReMoE).
            `top_k`: softmax, the best experts, a balance loss; the classical baseline.
        dense_above: activity in a batch above which evaluation computes all experts, because gathering costs more.

    Raises:
        ValueError: a number outside its range, or an unknown routing.
    """

    experts: int
    active_ratio: float = 0.25
    routing: Routing = "dtsi"
    dense_above: float = 0.9

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise ValueError(f"moe.experts must be at least 1, found {self.experts}")
        if not 0 < self.active_ratio <= 1:
            raise ValueError(f"moe.active_ratio must be above 0 and at most 1, found {self.active_ratio}")
        if not 0 <= self.dense_above <= 1:
            raise ValueError(f"moe.dense_above must be between 0 and 1, found {self.dense_above}")
        if self.routing not in get_args(Routing):
            raise ValueError(_unknown("moe.routing", self.routing, get_args(Routing)))
        if self.routing == "top_k" and self.top_k != self.experts * self.active_ratio:
            whole = ", ".join(f"{k}/{self.experts}" for k in range(1, self.experts + 1))
            raise ValueError(
                f"moe.routing = top_k activates a whole number of the {self.experts} experts, and moe.active_ratio = "
                f"{self.active_ratio} is not one; use one of {whole}"
            )

    @property
    def has_two_routers(self) -> bool:
        """Whether training has a router of its own, beside the one that serves."""
        return self.routing.startswith("dtsi")

    @property
    def top_k(self) -> int:
        """Number of active experts that the budget stands for, at least 1.

        >>> MoEConfig(experts=8, active_ratio=0.25).top_k
        2
        """
        return max(1, round(self.experts * self.active_ratio))


@dataclass(frozen=True)
class RankMixerConfig:
    """Sizes and choices of a RankMixer (arXiv 2507.15551).

    Args:
        tokens: T, number of tokens and of mixing heads; divides `width`.
        width: D, width of a token.
        layers: L, number of blocks.
        expansion: k, hidden width of a per-token FFN, or of one expert, in units of D.
        tokenizer: "slices" cuts the concatenated embeddings into T equal slices; "per_group" makes one token of each
            semantic group, of which there must then be T.
        head_hidden: hidden widths of the MLP from pooled token to the logit of a task; () is one affine map.
        block: "rankmixer", or "tokenmixer_large" (arXiv 2602.06563).
        global_token: the first of the T tokens is made from the whole input, the others as `tokenizer` says.
        moe: a Sparse-MoE in place of the per-token FFN; None: dense.
        mixing_gain: learn a gain on the mixing branch, started at 1/2: I + Mix alone is singular.
        ablation: one thing that the paper takes away or replaces, to show what it is good for.
        initialisation: "fan_in", uniform within 1/sqrt(fan-in), or "xavier"; each map of a stack by its own fans.
        recompute: keep only the input of each block for the backward, and compute the rest again.

    Raises:
        ValueError: a size is not positive, T does not divide D, a choice is unknown, or two contradict each other.

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
    block: BlockKind = "rankmixer"
    global_token: bool = False
    moe: MoEConfig | None = None
    mixing_gain: bool = False
    ablation: Ablation = "none"
    initialisation: Initialisation = "fan_in"
    recompute: bool = False

    def __post_init__(self) -> None:
        for key in ("tokens", "width", "layers"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, found {getattr(self, key)}")
        if self.hidden < 1:
            raise ValueError(f"expansion * width must be at least 1, found {self.expansion * self.width}")
        if min(self.head_hidden, default=1) < 1:
            raise ValueError(f"head_hidden must be widths of at least 1, found {self.head_hidden}")
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(_unknown(key, getattr(self, key), choices))
        if self.width % self.tokens:
            below = self.width - self.width % self.tokens
            nearest = ", ".join(str(width) for width in (below, below + self.tokens) if width)
            raise ValueError(
                f"tokens = {self.tokens} does not divide width = {self.width}, and mixing cuts every token into "
                f"{self.tokens} equal slices; nearest valid widths: {nearest}"
            )
        for contradiction, do in self._contradictions():
            raise ValueError(f"{contradiction}; {do}")

    def _contradictions(self) -> list[tuple[str, str]]:
        """Pairs of choices that cannot both hold, each with what to do."""
        large, ablation = self.block == "tokenmixer_large", self.ablation
        pairs = {
            ("global_token = true", "tokens = 1"): self.global_token and self.tokens == 1,
            ("block = tokenmixer_large", f"ablation = {ablation}"): large and ablation != "none",
            ("block = tokenmixer_large", "mixing_gain = true"): large and self.mixing_gain,
            ("block = tokenmixer_large", "moe"): large and self.moe is not None,
            (f"ablation = {ablation}", "mixing_gain = true"): self.mixing_gain and ablation in REPLACES_MIXING,
            (f"ablation = {ablation}", "moe"): self.moe is not None and ablation in ("shared_ffn", "all_share"),
        }
        return [(f"{a} and {b} contradict each other", "give up one of them") for (a, b), both in pairs.items() if both]

    @property
    def hidden(self) -> int:
        """M, hidden width of the per-token FFN: k*D, rounded."""
        return round(self.expansion * self.width)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "RankMixerConfig":
        """A named size, with single fields replaced.

        >>> config = RankMixerConfig.preset("tiny", layers=3)
        >>> config.tokens, config.width, config.layers, config.expansion
        (8, 32, 3, 4)
        """
        if name not in PRESETS:
            raise ValueError(_unknown("preset", name, tuple(PRESETS)))
        return replace(PRESETS[name], **overrides)


def check_token_group(config: RankMixerConfig, ranks: int) -> None:
    """Can the tokens be shared among so many ranks?

    Raises:
        ValueError: no; says what can.

    >>> check_token_group(RankMixerConfig.preset("tiny"), 3)
    Traceback (most recent call last):
    ...
    ValueError: tokens = 8 cannot be shared evenly among the 3 ranks of a token group; groups of 1, 2, 4, 8 can share \
them
    """
    if config.tokens % ranks:
        fitting = ", ".join(str(n) for n in range(1, config.tokens + 1) if config.tokens % n == 0)
        raise ValueError(
            f"tokens = {config.tokens} cannot be shared evenly among the {ranks} ranks of a token group; groups of "
            f"{fitting} can share them"
        )
    if ranks > 1 and config.ablation in READS_ALL_TOKENS:
        raise ValueError(
            f"ablation = {config.ablation} reads all tokens at once, which no exchange of slices gives to the {ranks} "
            "ranks of a token group; use a group of 1 rank"
        )


CHOICES: dict[str, tuple[str, ...]] = {
    "tokenizer": get_args(TokenizerKind),
    "block": get_args(BlockKind),
    "ablation": get_args(Ablation),
    "initialisation": get_args(Initialisation),
}

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
