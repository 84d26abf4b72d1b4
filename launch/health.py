"""What the weights of a model look like, layer by layer, when training has gone wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

# `head.blocks.0.ffn`, `embeddings.embedding_bags.user`: a layer, whatever its parameters are.
_LAYER = re.compile(r"(?:.*\.)?((?:head\.blocks\.\d+|head|embedding_bags)\.\w+)")


@torch.no_grad()
def layer_statistics(model: nn.Module) -> dict[str, str]:
    """Largest absolute weight of every layer, as this rank holds it, or how many of its weights are not finite.

    >>> from rankmixer_head import RankMixer, RankMixerConfig
    >>> model = nn.ModuleDict({"head": RankMixer(RankMixerConfig.preset("tiny", layers=1), [16], num_tasks=1)})
    >>> _ = model.requires_grad_(False)
    >>> model["head"].blocks[0].ffn.up_TDM[3, 0, :2] = torch.nan
    >>> list(layer_statistics(model).items())[1:3]
    [('head.blocks.0.mixing_norm', 'up to 1'), ('head.blocks.0.ffn', '2 of 66,816 not finite')]
    """
    layers: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        found = _LAYER.match(name)
        layers.setdefault(found[1] if found else name, []).append(_local(parameter))
    statistics = {}
    for name, parameters in layers.items():
        largest = max(map(_largest, parameters))
        broken = 0 if math.isfinite(largest) else sum(map(_count_broken, parameters))
        count = sum(parameter.numel() for parameter in parameters)
        statistics[name] = f"{broken:,} of {count:,} not finite" if broken else f"up to {largest:.3g}"
    return statistics


@torch.no_grad()
def are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether no weight that this rank holds is infinite or not a number. Takes one pass, and no memory."""
    return all(math.isfinite(_largest(_local(parameter))) for parameter in parameters)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _largest(weights: torch.Tensor) -> float:
    """The largest absolute value; infinite if any is not finite. torch.isfinite would copy a table twice."""
    if not weights.numel():
        return 0.0
    bounds = [abs(float(bound)) for bound in weights.aminmax()]  # both nan if one weight is
    return max(bounds) if all(map(math.isfinite, bounds)) else math.inf


def _count_broken(weights: torch.Tensor) -> int:
    return sum(int((~piece.isfinite()).sum()) for piece in weights.flatten().split(2**24))
