"""The blocks: RankMixer's, and that of its successor."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankmixer_head.ablations import (
    AllConcatMixing,
    AllShareFFN,
    MixingWithoutSkip,
    SelfAttentionMixing,
    SharedFFN,
    WithoutMixing,
)
from rankmixer_head.config import RankMixerConfig
from rankmixer_head.mixing import GainedMixing, Mixing, mix_tokens
from rankmixer_head.moe.per_token_moe import Examples, PerTokenMoE
from rankmixer_head.per_token_ffn import PerTokenFFN, PerTokenSwiGLU


class RankMixerBlock(nn.Module):
    """`S = LN(Mix(X) + X)`, `X' = LN(PFFN(S) + S)` (arXiv 2507.15551, equation 2): Post-LN, after the residual.

    The tokens share one LayerNorm(D) for each of the two places.

    Args:
        config: T, D, M; Sparse-MoE, gain of the mixing and ablation if any.
        device: of the parameters, "meta" included.

    >>> block = RankMixerBlock(RankMixerConfig(tokens=4, width=12, layers=1, expansion=3))
    >>> block(torch.zeros(4, 2, 12)).shape
    torch.Size([4, 2, 12])
    """

    def __init__(self, config: RankMixerConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.mixing = _mixing(config, device)
        self.mixing_norm = _layer_norm(config, device)
        self.ffn = _ffn(config, device)
        self.ffn_norm = _layer_norm(config, device)
        self.has_skip = config.ablation != "no_skip"

    def forward(self, x_TBD: Float[Tensor, "T B D"], examples: Examples | None = None) -> Float[Tensor, "T B D"]:
        """`examples`: what a Sparse-MoE must know of the batch."""
        s_TBD = self.mixing_norm(self.mixing(x_TBD))
        v_TBD = self.ffn(s_TBD, examples) if isinstance(self.ffn, PerTokenMoE) else self.ffn(s_TBD)
        # Under autocast v is of a lower type than s, and a sum is of the higher one.
        return self.ffn_norm(v_TBD + s_TBD if self.has_skip else v_TBD.to(s_TBD.dtype))


class TokenMixerLargeBlock(nn.Module):
    """`X' = X + Mix(SwiGLU(RMSNorm(Mix(X))))`, `X'' = X' + SwiGLU'(RMSNorm'(X'))` (arXiv 2602.06563).

    Mixing is undone before it meets the residual, so that a token is added to itself; mixing twice is no mixing, so it
    undoes itself. Every token has SwiGLUs of its own.

    Args:
        config: T, D, M.
        device: of the parameters, "meta" included.

    >>> config = RankMixerConfig(tokens=4, width=12, layers=1, expansion=3, block="tokenmixer_large")
    >>> TokenMixerLargeBlock(config)(torch.zeros(4, 2, 12)).shape
    torch.Size([4, 2, 12])
    """

    def __init__(self, config: RankMixerConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.mix: Callable[[Tensor], Tensor] = mix_tokens
        self.mixed_norm = nn.RMSNorm(config.width, device=device)
        self.mixed_swiglu = PerTokenSwiGLU(config.tokens, config.width, config.hidden, device)
        self.token_norm = nn.RMSNorm(config.width, device=device)
        self.token_swiglu = PerTokenSwiGLU(config.tokens, config.width, config.hidden, device)

    def forward(self, x_TBD: Float[Tensor, "T B D"], examples: Examples | None = None) -> Float[Tensor, "T B D"]:
        """`examples` is not used: the block is dense."""
        x_TBD = x_TBD + self.mix(self.mixed_swiglu(self.mixed_norm(self.mix(x_TBD))))
        return x_TBD + self.token_swiglu(self.token_norm(x_TBD))


def _mixing(config: RankMixerConfig, device: torch.device | str | None) -> nn.Module:
    T, D, M = config.tokens, config.width, config.hidden
    match config.ablation:
        case "no_skip":
            return MixingWithoutSkip()
        case "no_mixing" | "all_share":
            return WithoutMixing()
        case "all_concat":
            return AllConcatMixing(T, D, M, device)
        case "self_attention":
            return SelfAttentionMixing(T, D, device)
    return GainedMixing(D, device) if config.mixing_gain else Mixing()


def _ffn(config: RankMixerConfig, device: torch.device | str | None) -> nn.Module:
    sizes = config.tokens, config.width, config.hidden
    if config.moe is not None:
        return PerTokenMoE(*sizes, config.moe, device)
    kinds = {"shared_ffn": SharedFFN, "all_share": AllShareFFN}
    return kinds.get(config.ablation, PerTokenFFN)(*sizes, device)


def _layer_norm(config: RankMixerConfig, device: torch.device | str | None) -> nn.Module:
    return nn.Identity() if config.ablation == "no_layer_norm" else nn.LayerNorm(config.width, device=device)
