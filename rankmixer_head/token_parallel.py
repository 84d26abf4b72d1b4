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
from rankmixer_head.moe import PerTokenMoE
from rankmixer_head.per_token_ffn import PerTokenFFN, PerTokenSwiGLU
from rankmixer_head.tokenizer import Tokenizer

# Their parameters have one part for each token, in the first dimension; but the global token's map is no token's own.
PER_TOKEN = Tokenizer, PerTokenFFN, PerTokenSwiGLU, PerTokenMoE
WHOLE = "global_ID"


def shard_tokens(module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> list[str]:
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

    Returns:
        Names of the sharded parameters in `module`, which DDP must ignore.

    Raises:
        ValueError: there is no RankMixer, or its tokens cannot be shared so.
    """
    heads = [(path, head) for path, head in module.named_modules() if isinstance(head, RankMixer)]
    if not heads:
        raise ValueError(f"{type(module).__name__} contains no RankMixer whose tokens could be shared")
    for _, head in heads:
        check_token_group(head.config, mesh.size(mesh.ndim - 1))
    return [f"{path}.{name}".lstrip(".") for path, head in heads for name in _shard_head(head, mesh, dtype)]


def per_token_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that shard_tokens shards: a rank of a group of P holds 1/P of each."""
    return [f"{path}.{name}".lstrip(".") for path, owner in module.named_modules() for name in _per_token_names(owner)]


def _per_token_names(owner: nn.Module) -> list[str]:
    has_own = isinstance(owner, PER_TOKEN) and not isinstance(owner, SharedFFN)
    return [name for name, _ in owner.named_parameters(recurse=False) if name != WHOLE] if has_own else []


def _shard_head(head: RankMixer, mesh: DeviceMesh, dtype: torch.dtype | None) -> list[str]:
    group = TokenGroup(mesh, head.config.tokens, dtype)
    if head.routers is not None:
        head.routers.batch_index = group.replica
    if group.size == 1:
        return []
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


class TokenGroup:
    """What a rank exchanges with the others of its group.

    Args:
        mesh: (token,) or (replica, token).
        tokens: T.
        dtype: of what is sent; None: as it is.
    """

    def __init__(self, mesh: DeviceMesh, tokens: int, dtype: torch.dtype | None) -> None:
        dim = mesh.ndim - 1
        self.size, self.rank = mesh.size(dim), mesh.get_local_rank(dim)
        self.replica = mesh.get_local_rank(0) if mesh.ndim == 2 else 0
        self.tokens, self.own_tokens = tokens, tokens // self.size
        self.first_token = self.rank * self.own_tokens
        self.dtype = dtype
        self.world_size = mesh.size()
        self.replicas = mesh.get_group(0) if self.world_size > self.size else None
        self.process_group = mesh.get_group(dim)
        if self.size > 1 and self.process_group == dist.group.WORLD:
            # Of its own: nothing that DDP or TorchRec sends comes between.
            self.process_group = dist.new_group(mesh.mesh.flatten().tolist())

    def enter(self, pieces_BR: Tensor, widths: list[int], weight_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Send to each rank the pieces of its tokens; receive those of the own tokens for the whole group's examples.

        A weight of each example goes along, bit for bit, whatever the dtype of the exchange.

        Args:
            pieces_BR: of all tokens, side by side.
            widths: of the pieces.
            weight_B: None if nobody needs it.
        """
        sent = pieces_BR.to(self.dtype or pieces_BR.dtype)
        rank_widths = [sum(widths[t : t + self.own_tokens]) for t in range(0, self.tokens, self.own_tokens)]
        B, own_width = len(sent), rank_widths[self.rank]
        weights: list[Tensor] = []
        if weight_B is not None:
            weight_B = weight_B.to(torch.promote_types(weight_B.dtype, sent.dtype))
            weights = [weight_B.view(sent.dtype)]
        blocks = [torch.cat([piece.flatten(), *weights]) for piece in sent.split(rank_widths, dim=1)]
        sizes = [len(block) for block in blocks]
        received = _Exchange.apply(torch.cat(blocks), [sizes[self.rank]] * self.size, sizes, self.process_group)
        received_PN = received.view(self.size, -1)
        own_PN, weights_PN = received_PN.tensor_split([B * own_width], dim=1)
        if weight_B is not None:
            weight_B = weights_PN.detach().contiguous().view(weight_B.dtype).flatten()
        return own_PN.reshape(self.size * B, own_width).to(pieces_BR.dtype), weight_B

    def own(self, parameter: DTensor) -> Tensor:
        """The part that this rank holds; its gradient is summed over the replicas and divided by W."""
        own: Tensor = _Averaged.apply(parameter.to_local(), self.replicas, self.world_size)
        return own

    def mix(self, x_TBD: Tensor) -> Tensor:
        """mix_tokens for the tokens of the group: slice h of each own token to the owner of token h."""
        T, P = self.own_tokens, self.size
        _, B, D = x_TBD.shape
        sent_PHBTC = x_TBD.view(T, B, P, T, -1).permute(2, 3, 1, 0, 4)
        received_PHBTC = self._swap(sent_PHBTC.flatten()).view(P, T, B, T, -1)
        return received_PHBTC.permute(1, 2, 0, 3, 4).reshape(T, B, D)

    def mix_and_add(self, x_TBD: Tensor) -> Tensor:
        """`mix(x_TBD) + x_TBD`."""
        return self.mix(x_TBD) + x_TBD

    def leave(self, x_TBD: Tensor, batch_size: int) -> Tensor:
        """The mean over all tokens for the own examples: own tokens are summed here, the sums of the ranks there.

        Summing after the exchange adds in full precision what was sent in less, and gloo's reduce_scatter is a whole
        all-reduce.
        """
        P, D = self.size, x_TBD.shape[2]
        sums_PND = x_TBD.sum(0).view(-1, P, batch_size, D).transpose(0, 1)  # N: examples, once for each path
        return self._swap(sums_PND.flatten()).view(P, -1, D).sum(0) / self.tokens

    def _swap(self, x: Tensor) -> Tensor:
        """The p-th of P equal parts to rank p, for its part of this rank."""
        sizes = [x.numel() // self.size] * self.size
        received: Tensor = _Exchange.apply(x.to(self.dtype or x.dtype), sizes, sizes, self.process_group)
        return received.to(x.dtype)


class _Exchange(torch.autograd.Function):
    """all_to_all_single; the gradient takes the way back."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, received_sizes: list[int], sent_sizes: list[int], group: Any) -> Tensor:
        ctx.arguments = sent_sizes, received_sizes, group
        return _exchange(sent, received_sizes, sent_sizes, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(grads[0], *ctx.arguments), None, None, None


def _exchange(sent: Tensor, received_sizes: list[int], sent_sizes: list[int], group: Any) -> Tensor:
    received = sent.new_empty(sum(received_sizes))
    dist.all_to_all_single(received, sent.contiguous(), received_sizes, sent_sizes, group=group)
    return received


class _Averaged(torch.autograd.Function):
    """What a backward brings is averaged before it is added to .grad: what is there already must not be again."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, replicas: Any, world_size: int) -> Tensor:
        ctx.arguments = replicas, world_size
        return own.view_as(own)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        replicas, world_size = ctx.arguments
        grad = grads[0] / world_size
        if replicas is not None:
            dist.all_reduce(grad, group=replicas)
        return grad, None, None


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
    pieces_BR = head.tokenizer.cut(x_BI)
    pieces_BR, weight_B = head.token_group.enter(pieces_BR, head.tokenizer.cut_widths, weight_B)
    return head.tokenizer.project(pieces_BR), weight_B


def _leave(head: Any, x_TBD: Tensor, batch_size: int) -> Tensor:
    pooled_BD: Tensor = head.token_group.leave(x_TBD, batch_size)
    return pooled_BD
