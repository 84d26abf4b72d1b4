"""What the weights of a model look like, layer by layer, when training has gone wrong."""

from __future__ import annotations

import re

import torch
from torch import nn

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
        layers.setdefault(found[1] if found else name, []).append(parameter.detach())
    statistics = {}
    for name, parameters in layers.items():
        broken = sum(int((~parameter.isfinite()).sum()) for parameter in parameters)
        count = sum(parameter.numel() for parameter in parameters)
        largest = max((float(parameter.abs().max()) for parameter in parameters if parameter.numel()), default=0.0)
        statistics[name] = f"{broken:,} of {count:,} not finite" if broken else f"up to {largest:.3g}"
    return statistics


def are_finite(parameters: list[nn.Parameter]) -> bool:
    """Whether no weight is infinite or not a number."""
    return all(bool(parameter.isfinite().all()) for parameter in parameters)
