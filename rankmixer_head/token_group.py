"""What the ranks of a token group send each other: pieces of the input, slices of tokens, sums, sizes of batches."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


class TokenGroup:
    """What a rank exchanges with the others of its group.

    Args:
        mesh: (token,) or (replica, token).
        tokens: T.
        dtype: of what is sent; None: as it is.
        check_group: the same ranks, on which batch sizes are compared; None: they are not.
    """

    def __init__(
        self,
        mesh: DeviceMesh,
        tokens: int,
        dtype: torch.dtype | None = None,
        check_group: dist.ProcessGroup | None = None,
    ) -> None:
        dim = mesh.ndim - 1
        self.size, self.rank = mesh.size(dim), mesh.get_local_rank(dim)
        self.replica = mesh.get_local_rank(0) if mesh.ndim == 2 else 0
        self.tokens, self.own_tokens = tokens, tokens // self.size
        self.first_token = self.rank * self.own_tokens
        self.dtype = dtype
        self.check_group = check_group
        self.world_size = mesh.size()
        self.replicas = mesh.get_group(0) if self.world_size > self.size else None
        self.process_group = mesh.get_group(dim)
        if self.size > 1 and self.process_group == dist.group.WORLD:
            # Of its own: nothing that DDP or TorchRec sends comes between.
            self.process_group = dist.new_group(mesh.mesh.flatten().tolist())

    def check_batch(self, batch_size: int) -> None:
        """Do all ranks of the group bring equally many examples? Asked at every forward: who asks only when its own
        number changes would ask alone. Collective.

        Raises:
            ValueError: on all of them; says who brings how many.
        """
        if self.check_group is None or torch.compiler.is_compiling():
            return
        sizes = [torch.empty((), dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor(batch_size), group=self.check_group)
        found = [int(size) for size in sizes]
        if len(set(found)) > 1:
            ranks = dist.get_process_group_ranks(self.check_group)
            each = ", ".join(f"{size} on rank {rank}" for rank, size in zip(ranks, found, strict=True))
            raise ValueError(
                f"the ranks of a token group brought batches of different sizes: {each}; pad the smaller ones with "
                "examples of weight 0, or drop what is over"
            )

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
