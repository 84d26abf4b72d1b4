"""FLOPs and parameters of the head, exactly. FLOPs: two for each multiplication of a matrix product."""

from collections.abc import Callable
from typing import Any

from torch import nn

from rankmixer_head.ablations import AllConcatMixing, SelfAttentionMixing, SharedFFN
from rankmixer_head.block import RankMixerBlock, TokenMixerLargeBlock
from rankmixer_head.heads import PerTaskAffine
from rankmixer_head.moe.per_token_moe import PerTokenMoE
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
    products = _products(head)
    for moe in (module for module in head.modules() if isinstance(module, PerTokenMoE)):
        ratio = moe.config.active_ratio if active_ratio is None else active_ratio
        products += round(ratio * _sizes(moe, "up_TEMD", "down_TEMD"))
    return 2 * products


def training_flops_per_example(head: Any, input_gradient: bool = True, recompute: bool | None = None) -> int:
    """FLOPs of the matrix products of one example's forward and backward in training, optimizer and loss left out.

    Of a dense head that is three times the forward: the gradient of a product is two as large. A Sparse-MoE computes
    all its experts in training, whatever the gates: `dtsi` for both paths of an example, `dtsi_distill` once more with
    the gates that serve. So at a budget of 1/4 `dtsi` takes up to 24 times what it serves.

    Args:
        head: a RankMixer, all of whose parameters learn.
        input_gradient: the input is made of something that learns, as tables do.
        recompute: count what the backward computes again; default: if the configuration says so.

    >>> from rankmixer_head import MoEConfig, RankMixer, RankMixerConfig
    >>> head = RankMixer(RankMixerConfig.preset("tiny", expansion=1, moe=MoEConfig(8)), [128], 1, device="meta")
    >>> head.flops_per_example(), head.training_flops_per_example()
    (155712, 3318144)
    """
    tokenizer, heads = head.tokenizer, _products(head.heads)
    pieces = sum(tokenizer.widths) * tokenizer.tokens_bias_TD.shape[1]
    # The pieces stand beside the global token, which learns: with it they get a gradient in any case.
    to_input = _products(tokenizer) if input_gradient else pieces * tokenizer.has_global
    forward, backward = _products(head.blocks), 2 * _products(head.blocks)
    for moe in (module for module in head.blocks.modules() if isinstance(module, PerTokenMoE)):
        more_forward, more_backward = _further_products_in_training(moe)
        forward, backward = forward + more_forward, backward + more_backward
    if head.config.recompute if recompute is None else recompute:
        backward += forward - sum(map(_not_computed_again, head.blocks))
    paths = 2 if head.controller is not None and head.controller.has_two_paths else 1
    return 2 * (2 * _products(tokenizer) + to_input + paths * (forward + backward + 3 * heads))


def _products(part: nn.Module) -> int:
    """Multiplications of a forward, but for the experts of a Sparse-MoE."""
    products = 0
    for module in part.modules():
        kinds = [kind for kind in type(module).__mro__ if kind in PRODUCTS]
        products += PRODUCTS[kinds[0]](module) if kinds else 0
    return products


def _further_products_in_training(moe: PerTokenMoE) -> tuple[int, int]:
    """(forward, backward) of a Sparse-MoE in training: all experts, and what a second router brings with it."""
    router, bias, down = (_sizes(moe, name) for name in ("router_TDE", "down_bias_TED", "down_TEMD"))
    experts = _sizes(moe, "up_TEMD") + down
    forward, backward = experts, 2 * experts
    if moe.config.has_two_routers:
        forward, backward = forward + router, backward + 2 * router
    if moe.config.routing == "dtsi_distill":
        # The experts once more, held fixed, and a router whose input gets no gradient.
        forward, backward = forward + experts + bias, backward + down + bias - router
    return forward, backward


def _not_computed_again(block: nn.Module) -> int:
    """The last product of a block where nothing is kept of its result: a recomputation stops before it."""
    match block:
        case TokenMixerLargeBlock():
            return _sizes(block.token_swiglu, "small_down_TMD")
        case RankMixerBlock(ffn=PerTokenFFN() as ffn, ffn_norm=nn.Identity()):
            return _sizes(ffn, "down_TMD")
    return 0


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
