"""Token parallelism: the tokens of a RankMixer shared among the ranks of a group, mixing as the all-to-all.

A rank holds T/P of the tokens, with all their weights, for the examples of all P ranks: mixing, which cuts every token
into T slices and sends slice h to token h, is one exchange among them, and all that follows is local.
docs/token_parallelism.md draws it.
"""

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from rankmixer_head.ablations import SharedFFN
from rankmixer_head.config import check_token_group
from rankmixer_head.mixing import Mixing
from rankmixer_head.model import RankMixer
from rankmixer_head.moe.per_token_moe import PerTokenMoE
from rankmixer_head.per_token_ffn import PerTokenFFN, PerTokenSwiGLU
from rankmixer_head.token_group import TokenGroup
from rankmixer_head.tokenizer import Tokenizer

# Their parameters have one part for each token, in the first dimension; but the global token's map is no token's own.
PER_TOKEN = Tokenizer, PerTokenFFN, PerTokenSwiGLU, PerTokenMoE
WHOLE = "global_ID"


def shard_tokens(
    module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None = None, check_batches: bool = True
) -> list[str]:
    """Share the tokens of every RankMixer in `module` among the ranks of a mesh. Collective.

    Per-token weights become DTensors, Shard(0), with rank 0's values; if the head is on the meta device its parameters
    are made and drawn here, own tokens only. From then on the ranks of a group run forward and backward together, each
    with its own batch, all of one size. Call it before compiling, before DistributedDataParallel or
    DistributedModelParallel, and before anything collects parameters. A group of one rank changes nothing: that is
    data parallelism.

    Gradients are what DDP makes of them, those of the mean over all ranks of their losses, and they come averaged; the
    average is taken of what one backward contributes, so that micro-batches may add up. All other parameters are DDP's.

    Args:
        module: a RankMixer, or a model that contains some.
        mesh: of all ranks, (token,) or (replica, token); replicas have the same tokens.
        dtype: of what is sent, torch.bfloat16 for half the bytes; default: as it is.
        check_batches: compare the batch sizes of a group before each forward, one number a rank over gloo, and raise
            ValueError on all its ranks if they differ; without it such a job hangs or crashes in the exchange. A loop
            whose batches are of one size by construction may leave it out. A compiled head does not check.

    Returns:
        Names of the sharded parameters in `module`, which DDP must ignore.

    Raises:
        ValueError: there is no RankMixer, or its tokens cannot be shared so.
    """
    heads = [(path, head) for path, head in module.named_modules() if isinstance(head, RankMixer)]
    if not heads:
        parts = {
            type(part).__name__ for part in module.modules() if type(part).__module__.startswith("rankmixer_head.")
        }
        raise ValueError(
            f"{type(module).__name__} contains no RankMixer whose tokens could be shared"
            + (f", only parts of one ({', '.join(sorted(parts))}); give the RankMixer, or what holds it" * bool(parts))
        )
    for _, head in heads:
        check_token_group(head.config, mesh.size(mesh.ndim - 1))
    check_group = _gloo_group(mesh) if check_batches and mesh.size(mesh.ndim - 1) > 1 else None
    names = []
    for path, head in heads:
        group = TokenGroup(mesh, head.config.tokens, dtype, check_group)
        if head.controller is not None:
            head.controller.batch_index = group.replica
        if group.size > 1:
            names += [f"{path}.{name}".lstrip(".") for name in share(head, mesh, group)]
    return names


def per_token_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that shard_tokens shards: a rank of a group of P holds 1/P of each."""
    return [f"{path}.{name}".lstrip(".") for path, owner in module.named_modules() for name in _per_token_names(owner)]


def _per_token_names(owner: nn.Module) -> list[str]:
    has_own = isinstance(owner, PER_TOKEN) and not isinstance(owner, SharedFFN)
    return [name for name, _ in owner.named_parameters(recurse=False) if name != WHOLE] if has_own else []


def _gloo_group(mesh: DeviceMesh) -> dist.ProcessGroup:
    """The token group of this rank once more, on the CPU: what it compares stalls no stream. Collective."""
    lines = mesh.mesh.reshape(-1, mesh.size(mesh.ndim - 1)).tolist()
    group: dist.ProcessGroup = dist.new_subgroups_by_enumeration(lines, backend="gloo")[0]
    return group


def share(head: RankMixer, mesh: DeviceMesh, group: TokenGroup) -> list[str]:
    """Share the tokens of one head; in a group of one rank too, which shows all but the network. Collective.

    Returns:
        Names of the parameters that are DTensors now.
    """
    names = per_token_parameters(head)
    owners: list[Any] = list(head.modules())
    for owner in owners:
        own_names = tuple(_per_token_names(owner))
        if own_names:
            for name in own_names:
                setattr(owner, name, _shard(owner.get_parameter(name), mesh))
            owner.__class__ = _with_own_tokens(type(owner), own_names)  # type: ignore[arg-type]
            owner.first_token = group.first_token
            owner.token_group = group
        if isinstance(owner, Mixing):
            owner.mix_and_add = group.mix_and_add
        elif hasattr(owner, "mix"):
            owner.mix = group.mix
    head.token_group = group  # type: ignore[assignment]
    head.__class__ = type(type(head).__name__, (type(head),), {"enter": _enter, "leave": _leave})
    if head.tokenizer.tokens_ID.is_meta:
        head.to_empty(device=mesh.device_type)
        head.reset_parameters()
        for _, parameter in head.named_parameters():
            if isinstance(parameter, DTensor) and group.replicas is not None:
                dist.broadcast(parameter.to_local().detach(), group=group.replicas, group_src=0)
    return names


def _shard(whole: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    placements = [Replicate(), Shard(0)][2 - mesh.ndim :]
    return nn.Parameter(distribute_tensor(whole.detach(), mesh, placements), requires_grad=whole.requires_grad)


@cache
def _with_own_tokens(kind: Any, names: tuple[str, ...]) -> type[nn.Module]:
    """`kind`, whose attributes `names` are the local parts of the DTensors that are its parameters."""

    def own(name: str) -> property:
        return property(lambda self: self.token_group.own(self._parameters[name]))

    return type(kind.__name__, (kind,), {name: own(name) for name in names})


def _enter(head: Any, x_BI: Tensor, weight_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
    head.token_group.check_batch(len(x_BI))
    pieces_BR = head.tokenizer.cut(x_BI)
    pieces_BR, weight_B = head.token_group.enter(pieces_BR, head.tokenizer.cut_widths, weight_B)
    return head.tokenizer.project(pieces_BR), weight_B


def _leave(head: Any, x_TBD: Tensor, batch_size: int) -> Tensor:
    pooled_BD: Tensor = head.token_group.leave(x_TBD, batch_size)
    return pooled_BD
