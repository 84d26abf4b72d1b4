"""FLOPs of the head, exactly: two for each multiplication of a matrix product, of every module that has some."""

from collections.abc import Callable
from typing import Any

from torch import nn

from rankmixer_head.ablations import AllConcatMixing, AllShareFFN, SelfAttentionMixing, SharedFFN
from rankmixer_head.heads import PerTaskAffine
from rankmixer_head.moe import PerTokenMoE
from rankmixer_head.per_token_ffn import PerTokenFFN, PerTokenSwiGLU
from rankmixer_head.tokenizer import Tokenizer

# Multiplications for one example. Mostly every weight of a map meets one value.
PRODUCTS: dict[type[nn.Module], Callable[[Any], int]] = {
    Tokenizer: lambda tokenizer: tokenizer.tokens_ID.numel(),
    PerTokenFFN: lambda ffn: ffn.up_TDM.numel() + ffn.down_TMD.numel(),
    PerTokenSwiGLU: lambda ffn: ffn.gate_TDM.numel() + ffn.up_TDM.numel() + ffn.small_down_TMD.numel(),
    PerTokenMoE: lambda moe: moe.router_TDE.numel() + moe.down_bias_TED.numel(),  # and the experts that are open
    SharedFFN: lambda ffn: ffn.tokens * (ffn.up_TDM.numel() + ffn.down_TMD.numel()),
    AllShareFFN: lambda ffn: ffn.up_TDM.numel() + ffn.down_TMD.numel(),
    AllConcatMixing: lambda mlp: mlp.up_IM.numel() + mlp.down_MO.numel(),
    SelfAttentionMixing: lambda attention: (
        4 * attention.tokens * attention.out_DD.numel() + 2 * attention.tokens**2 * len(attention.out_DD)
    ),
    PerTaskAffine: lambda affine: affine.weight_KIO.numel(),
}


def flops_per_example(head: nn.Module, active_ratio: float | None = None) -> int:
    """FLOPs of the matrix products of one example's forward through `head`, as it is served.

    Args:
        head: a RankMixer, or a part of one.
        active_ratio: share of the experts of a Sparse-MoE that are open; default: its budget.

    >>> flops_per_example(PerTokenFFN(tokens=4, width=12, hidden=36))
    6912
    """
    products = sum(PRODUCTS[type(module)](module) for module in head.modules() if type(module) in PRODUCTS)
    for moe in (module for module in head.modules() if isinstance(module, PerTokenMoE)):
        ratio = moe.config.active_ratio if active_ratio is None else active_ratio
        products += round(ratio * (moe.up_TEMD.numel() + moe.down_TEMD.numel()))
    return 2 * products
