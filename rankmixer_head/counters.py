"""FLOPs and parameters of the head, exactly. FLOPs: two for each multiplication of a matrix product."""

from collections.abc import Callable
from typing import Any

from torch import nn

from rankmixer_head.ablations import AllConcatMixing, SelfAttentionMixing, SharedFFN
from rankmixer_head.heads import PerTaskAffine
from rankmixer_head.moe import PerTokenMoE
from rankmixer_head.per_token_ffn import PerTokenFFN, PerTokenSwiGLU
from rankmixer_head.tokenizer import Tokenizer

# Multiplications for one example. Mostly every weight of a map meets one value.
PRODUCTS: dict[type[nn.Module], Callable[[Any], int]] = {
    Tokenizer: lambda tokenizer: (
        (sum(tokenizer.widths) + tokenizer.has_global * tokenizer.in_width) * tokenizer.tokens_bias_TD.shape[1]
    ),
    PerTokenFFN: lambda ffn: _sizes(ffn, "up_TDM", "down_TMD"),
    PerTokenSwiGLU: lambda ffn: _sizes(ffn, "gate_TDM", "up_TDM", "small_down_TMD"),
    PerTokenMoE: lambda moe: _sizes(moe, "router_TDE", "down_bias_TED"),  # and the experts that are open
    SharedFFN: lambda ffn: ffn.tokens * _sizes(ffn, "up_TDM", "down_TMD"),
    AllConcatMixing: lambda mlp: _sizes(mlp, "up_IM", "down_MO"),
    SelfAttentionMixing: lambda attention: (
        4 * attention.tokens * attention.out_DD.numel() + 2 * attention.tokens**2 * len(attention.out_DD)
    ),
    PerTaskAffine: lambda affine: _sizes(affine, "weight_KIO"),
}


def flops_per_example(head: nn.Module, active_ratio: float | None = None) -> int:
    """FLOPs of the matrix products of one example's forward through `head`, as it is served.

    Args:
        head: a RankMixer, or a part of one.
        active_ratio: share of the experts of a Sparse-MoE that are open; default: its budget.

    >>> flops_per_example(PerTokenFFN(tokens=4, width=12, hidden=36))
    6912
    """
    products = 0
    for module in head.modules():
        kinds = [kind for kind in type(module).__mro__ if kind in PRODUCTS]
        products += PRODUCTS[kinds[0]](module) if kinds else 0
    for moe in (module for module in head.modules() if isinstance(module, PerTokenMoE)):
        ratio = moe.config.active_ratio if active_ratio is None else active_ratio
        products += round(ratio * _sizes(moe, "up_TEMD", "down_TEMD"))
    return 2 * products


def parameters(head: nn.Module) -> int:
    """Parameters that can learn, all shards together: all but the rows that only pad a tokenizer's maps.

    >>> from rankmixer_head.config import RankMixerConfig
    >>> config = RankMixerConfig(tokens=3, width=12, layers=1, expansion=2, tokenizer="per_group")
    >>> parameters(Tokenizer(config, in_widths=[5, 1, 2]))  # (5 + 1 + 2) * 12 weights, 3 * 12 biases
    132
    """
    count = sum(parameter.numel() for parameter in head.parameters())
    for tokenizer in (module for module in head.modules() if isinstance(module, Tokenizer)):
        rows, width = dict(tokenizer.named_parameters(recurse=False))["tokens_ID"].shape
        count -= (rows - sum(tokenizer.widths)) * width
    return count


def _sizes(module: nn.Module, *names: str) -> int:
    """Values of the parameters, all shards together."""
    parameters = dict(module.named_parameters(recurse=False))
    return sum(parameters[name].numel() for name in names)
