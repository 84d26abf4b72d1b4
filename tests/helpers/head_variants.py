"""Every choice that RankMixerConfig offers, at sizes that are all different: what holds for the head holds for each."""

from dataclasses import replace
from typing import get_args

from rankmixer_head import MoEConfig, RankMixerConfig
from rankmixer_head.config import Ablation, Routing

PLAIN = RankMixerConfig(tokens=4, width=16, layers=2, expansion=2.5, head_hidden=(5,))
LARGE = replace(PLAIN, block="tokenmixer_large")

VARIANTS: dict[str, RankMixerConfig] = {
    "plain": PLAIN,
    "per_group": replace(PLAIN, tokenizer="per_group"),
    "global_token": replace(PLAIN, global_token=True),
    "tokenmixer_large": LARGE,
    "tokenmixer_large_per_group": replace(LARGE, tokens=8, tokenizer="per_group", global_token=True),
    "mixing_gain": replace(PLAIN, mixing_gain=True),
    "xavier": replace(PLAIN, initialisation="xavier"),
    **{name: replace(PLAIN, ablation=name) for name in get_args(Ablation) if name != "none"},
    **{f"moe_{name}": replace(PLAIN, moe=MoEConfig(6, 0.5, name)) for name in get_args(Routing)},
}


def in_widths(config: RankMixerConfig) -> list[int]:
    """Widths of semantic groups that fit the tokenizer; they sum to I = 18."""
    groups = config.tokens - config.global_token if config.tokenizer == "per_group" else 2
    return [1] * (groups - 1) + [18 - (groups - 1)]
