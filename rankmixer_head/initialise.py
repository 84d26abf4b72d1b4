"""How every parameter and buffer of the head starts, in one table."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankmixer_head.config import Initialisation

# A number is the value of all entries. "maps" are affine maps, one or a stack, each (in, out); "transposed maps" are
# each (out, in); "small maps" start at a hundredth; "padded maps" lie under each other, zeros after each.
INITIAL: dict[str, float | str] = {
    "tokens_ID": "padded maps",  # Tokenizer
    "global_ID": "maps",
    "tokens_bias_TD": 0.0,
    "up_TDM": "maps",  # PerTokenFFN, also shared by the tokens: one map a token
    "up_bias_TM": 0.0,
    "down_TMD": "maps",
    "down_bias_TD": 0.0,
    "gate_TDM": "maps",  # PerTokenSwiGLU
    "small_down_TMD": "small maps",
    "router_TDE": "maps",  # PerTokenMoE: a router and E experts a token
    "router_bias_TE": 0.0,
    "train_router_TDE": "maps",
    "train_router_bias_TE": 0.0,
    "up_TEMD": "transposed maps",
    "up_bias_TEM": 0.0,
    "down_TEMD": "maps",
    "down_bias_TED": 0.0,
    "load_TE": 0.5,  # a ReLU gate without bias is open for half of all inputs
    "open_TE": 0.0,
    "seen": 0.0,
    "log_penalty": 0.0,  # RoutingController
    "excess": 0.0,
    "gain_D": 0.5,  # GainedMixing: at 1 it would be singular
    "up_IM": "maps",  # ablations
    "up_bias_M": 0.0,
    "down_MO": "maps",
    "down_bias_O": 0.0,
    "query_key_value_3DD": "maps",
    "out_DD": "maps",
    "weight_KIO": "maps",  # TaskHeads: one map a task
    "bias_KO": 0.0,
    "weight": 1.0,  # LayerNorm, RMSNorm
    "bias": 0.0,
}


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Start all parameters and buffers below `module` by the table above; on the meta device, do nothing.

    A map is uniform within 1/sqrt(fan-in), as in nn.Linear, or, if its owner's attribute `initialisation` is "xavier",
    within sqrt(6/(fan-in + fan-out)); RankMixer sets the attribute for all its parts. Each map of a stack by itself:
    torch.nn.init would take the fan of the whole stack for that of one map.
    Map i of a parameter depends on torch's seed, the parameter's turn and i alone, so a process that holds only some
    of the tokens can draw the same values.

    Raises:
        LookupError: a parameter or buffer is not in the table.
    """
    for owner in module.modules():
        scheme: Initialisation = getattr(owner, "initialisation", "fan_in")
        for name, _ in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            if name not in INITIAL:
                raise LookupError(f"{type(owner).__name__}.{name} has no rule in rankmixer_head/initialise.py: add one")
            rule, tensor = INITIAL[name], getattr(owner, name)  # as the owner sees it: its own tokens
            if tensor.is_meta:
                continue
            if isinstance(rule, float):
                tensor.fill_(rule)
            else:
                maps, first = _maps(owner, tensor, rule)
                _uniform([weight.mT for weight in maps] if rule == "transposed maps" else maps, first, scheme)
                if rule == "small maps":
                    tensor.mul_(0.01)


def _maps(owner: Any, tensor: Tensor, rule: str) -> tuple[Sequence[Tensor], int]:
    """The maps of which `tensor` is made, and the number of the first of them among all tokens'."""
    if rule == "padded maps":
        tensor.zero_()
        stack_TID = tensor.unflatten(0, (-1, owner.rows))
        widths = owner.widths[owner.first_token : owner.first_token + len(stack_TID)]
        return [map_ID[:width] for map_ID, width in zip(stack_TID, widths, strict=True)], owner.first_token
    maps = tensor.flatten(0, -3).unbind() if tensor.dim() > 2 else [tensor]
    return maps, getattr(owner, "first_token", 0) * (len(maps) // len(tensor))


def _uniform(maps: Sequence[Tensor], first: int, scheme: Initialisation) -> None:
    seed = int(torch.randint(2**62, (), device="cpu"))
    generator = torch.Generator(maps[0].device)
    for index, weight_IO in enumerate(maps, first):
        fan_in, fan_out = weight_IO.shape
        if not fan_in:
            continue
        bound = 1 / math.sqrt(fan_in) if scheme == "fan_in" else math.sqrt(6 / (fan_in + fan_out))
        weight_IO.uniform_(-bound, bound, generator=generator.manual_seed(seed + index))
