"""How every parameter of the head starts, in one table."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

INITIAL = {
    "tokens_ID": "uniform",  # Tokenizer: the rows of a token are one map
    "tokens_bias_TD": "zeros",
    "up_TDM": "uniform",  # PerTokenFFN: one map a token
    "up_bias_TM": "zeros",
    "down_TMD": "uniform",
    "down_bias_TD": "zeros",
    "weight_KIO": "uniform",  # TaskHeads: one map a task
    "bias_KO": "zeros",
    "weight": "ones",  # LayerNorm
    "bias": "zeros",
}


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Start all parameters below `module` by the table above; on the meta device, do nothing.

    "uniform" is within 1/sqrt(fan-in), as in nn.Linear, for each map of a stack by itself: torch.nn.init would take the
    fan of the whole stack for that of one map. Map i of a parameter depends on torch's seed, the parameter's turn and
    i alone, so a process that holds only some of the tokens can draw the same values.

    Raises:
        LookupError: a parameter is not in the table.
    """
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if name not in INITIAL:
                raise LookupError(f"{type(owner).__name__}.{name} has no rule in rankmixer_head/initialise.py: add one")
            if parameter.is_meta:
                continue
            if INITIAL[name] == "uniform":
                _uniform(_maps(owner, parameter))
            else:
                parameter.fill_(1.0 if INITIAL[name] == "ones" else 0.0)


def _maps(owner: nn.Module, parameter: Tensor) -> Sequence[Tensor]:
    return parameter.unbind() if parameter.dim() == 3 else parameter.split(cast(list[int], owner.widths))


def _uniform(maps: Sequence[Tensor]) -> None:
    seed = int(torch.randint(2**62, (), device="cpu"))
    generator = torch.Generator(maps[0].device)
    for index, weight_IO in enumerate(maps):
        bound = 1 / math.sqrt(weight_IO.shape[0])
        weight_IO.uniform_(-bound, bound, generator=generator.manual_seed(seed + index))
