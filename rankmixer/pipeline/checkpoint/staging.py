"""A rank's part of a state, copied aside: training may change the state while the copy is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import psutil
import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, SavePlanner, WriteItem
from torch.distributed.checkpoint.metadata import MetadataIndex

_ALIGNMENT = 64  # bytes, at least that of any dtype


class Copies(DefaultSavePlanner):
    """The planner that a writer gets its tensors from, when those are copies.

    Args:
        tensors: by index.
        are_there: recorded behind the copies of a CUDA stream; None: they are there.
    """

    def __init__(self, tensors: dict[MetadataIndex, Tensor], are_there: torch.cuda.Event | None) -> None:
        super().__init__()
        self._tensors, self._are_there = tensors, are_there

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        if self._are_there is not None:
            self._are_there.synchronize()
        return self._tensors[write_item.index]


class Staging:
    """Host memory as large as what this rank writes, used again for every save; pinned where a GPU copies into it.

    Args:
        ranks_here: ranks on this host, all of which need as much.
    """

    def __init__(self, ranks_here: int = 1) -> None:
        self._ranks_here = ranks_here
        self._memory = torch.empty(0, dtype=torch.uint8)

    @property
    def num_bytes(self) -> int:
        """What it holds."""
        return self._memory.numel()

    @torch.no_grad()
    def copy(self, items: Sequence[WriteItem], planner: SavePlanner) -> Copies | None:
        """Copy the tensors of `items`; None if this host has not the memory for it.

        From a GPU the copies are queued on the current stream: what that stream does later, training steps among it,
        comes after them, so nothing need wait here, nor may a step overtake them.
        """
        tensors: list[Tensor] = []
        begins, end = [], 0
        for item in items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor), item.index
            tensors.append(tensor)
            begins.append(end)
            end += math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT
        on_cuda = any(tensor.is_cuda for tensor in tensors)
        if not self._make_room(end, pinned=on_cuda):
            return None
        copies = {}
        for item, tensor, begin in zip(items, tensors, begins, strict=True):
            copy = self._memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies[item.index] = copy.copy_(tensor, non_blocking=True)
        if not on_cuda:
            return Copies(copies, None)
        are_there = torch.cuda.Event()
        are_there.record()
        return Copies(copies, are_there)

    def _make_room(self, num_bytes: int, pinned: bool) -> bool:
        if num_bytes <= self.num_bytes:
            return True
        self._memory = self._memory.new_empty(0)  # before the new memory is taken
        if num_bytes * self._ranks_here > psutil.virtual_memory().available:
            return False
        try:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        except (MemoryError, RuntimeError):  # torch's allocators raise either
            return False
        return True
