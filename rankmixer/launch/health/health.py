"""What the weights of a model look like, layer by layer, when training has gone wrong."""

from __future__ import annotations

import math
import re

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from rankmixer.pipeline.base.collective import rank, together

# `head.blocks.0.ffn`, `embeddings.embedding_bags.user`: a layer, whatever its parameters are.
_LAYER = re.compile(r"(?:.*\.)?((?:head\.blocks\.\d+|head|embedding_bags)\.\w+)")


def layer_statistics(model: nn.Module) -> dict[str, str]:
    """Largest absolute weight of every layer, or how many of its weights are not finite, over all ranks. Collective.

    >>> from rankmixer_head import RankMixer, RankMixerConfig
    >>> model = nn.ModuleDict({"head": RankMixer(RankMixerConfig.preset("tiny", layers=1), [16], num_tasks=1)})
    >>> _ = model.requires_grad_(False)
    >>> model["head"].blocks[0].ffn.up_TDM[3, 0, :2] = torch.nan
    >>> list(layer_statistics(model).items())[1:3]
    [('head.blocks.0.mixing_norm', 'up to 1'), ('head.blocks.0.ffn', '2 of 66,816 not finite')]
    """
    layers: dict[str, tuple[float, int, int]] = {}
    for found in together("cannot look at the weights", lambda: _layers_here(model)):
        for name, (largest, broken, count) in found.items():
            known = layers.get(name, (0.0, 0, 0))
            layers[name] = max(known[0], largest), known[1] + broken, known[2] + count
    return {
        name: f"{broken:,} of {count:,} not finite" if broken else f"up to {largest:.3g}"
        for name, (largest, broken, count) in layers.items()
    }


@torch.no_grad()
def _layers_here(model: nn.Module) -> dict[str, tuple[float, int, int]]:
    """By layer: the largest weight, how many are not finite, of how many; each weight is counted on one rank."""
    layers: dict[str, tuple[float, int, int]] = {}
    for name, parameter in model.named_parameters():
        match = _LAYER.match(name)
        layer = match[1] if match else name
        known = layers.setdefault(layer, (0.0, 0, 0))
        if _is_counted_here(layer, parameter):
            local = _local(parameter)
            largest = _largest(local)
            broken = 0 if math.isfinite(largest) else _count_broken(local)
            layers[layer] = max(known[0], largest), known[1] + broken, known[2] + local.numel()
    return layers


def _is_counted_here(layer: str, parameter: torch.Tensor) -> bool:
    """Tables and shared tokens lie in parts on the ranks, replicas hold the same; all else is whole on every rank."""
    if isinstance(parameter, DTensor):
        kinds = zip(parameter.device_mesh.get_coordinate() or (), parameter.placements, strict=True)
        return all(coordinate == 0 for coordinate, kind in kinds if kind.is_replicate())
    return layer.startswith("embedding_bags") or rank() == 0


@torch.no_grad()
def largest_weight(model: nn.Module) -> float:
    """The largest absolute weight on any rank; infinite if one is not finite. One pass, and no memory. Collective."""

    def here() -> float:
        return max((_largest(_local(parameter)) for parameter in model.parameters()), default=0.0)

    return max(together("cannot look at the weights", here))


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
