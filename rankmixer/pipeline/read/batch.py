"""The batch: what the model reads, and how it is put together from blocks of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from rankmixer.pipeline.encode.bags import Bags

_FROM_WEIGHTS = torch.empty(0)
_TINY = torch.finfo(torch.float32).tiny


@dataclass
class Batch(Pipelineable):
    """B examples, F dense features, K tasks.

    Args:
        sparse: keys are `schema.sparse_features`; int64 values, int32 lengths, weights if the schema has any.
        dense_BF: float32, columns are `schema.dense_features`.
        labels_BK: float32, columns are `schema.tasks`; zeros when predicting.
        weights_B: float32; 0 for rows that count for nothing (padding, dropped rows).
        keys: other columns asked for, one row for each example that is not padding; always on the CPU.
        loss_scale: 0-dim; the loss is loss_scale * sum(weights_B * loss_B). Default 1 / sum(weights_B).
    """

    sparse: KeyedJaggedTensor
    dense_BF: Tensor
    labels_BK: Tensor
    weights_B: Tensor
    keys: pa.Table | None = None
    loss_scale: Tensor = _FROM_WEIGHTS

    def __post_init__(self) -> None:
        if self.loss_scale is _FROM_WEIGHTS:
            self.loss_scale = 1 / self.weights_B.sum().clamp(min=_TINY)

    @property
    def weight_sum(self) -> float:
        """The sum of this rank's weights."""
        return float(self.weights_B.sum())

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors().items()}
        return replace(self, sparse=self.sparse.to(device, non_blocking=non_blocking), **moved)

    def pin_memory(self) -> Batch:
        pinned = {name: tensor.pin_memory() for name, tensor in self._tensors().items()}
        return replace(self, sparse=self.sparse.pin_memory(), **pinned)

    def record_stream(self, stream: torch.Stream) -> None:
        self.sparse.record_stream(stream)
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("dense_BF", "labels_BK", "weights_B", "loss_scale")}


@dataclass(frozen=True)
class Block:
    """Columns of N consecutive rows of a rank: one Bags a sparse feature, with the weights of its values or None."""

    bags: list[Bags]
    bag_weights: list[np.ndarray | None]
    dense_FN: np.ndarray
    labels_KN: np.ndarray
    weights_N: np.ndarray
    keys: pa.Table | None

    def __len__(self) -> int:
        return len(self.weights_N)


Piece = tuple[Block, int, int]  # rows start to stop of a block


def without_the_rest(block: Block, start: int, stop: int) -> Piece:
    """The same rows in memory of their own, if they are the smaller part of the block."""
    if stop - start > len(block) // 2:
        return block, start, stop
    bags, bag_weights = [], []
    for some, weights in zip(block.bags, block.bag_weights, strict=True):
        offsets = None if some.offsets is None else some.offsets[start : stop + 1]
        here = slice(start, stop) if offsets is None else slice(offsets[0], offsets[-1])
        bags.append(Bags(some.values[here].copy(), None if offsets is None else offsets - offsets[0]))
        bag_weights.append(None if weights is None else weights[here].copy())
    dense_FN, labels_KN, weights_N = (
        array[..., start:stop].copy() for array in (block.dense_FN, block.labels_KN, block.weights_N)
    )
    keys = None if block.keys is None else block.keys.slice(start, stop - start)
    return Block(bags, bag_weights, dense_FN, labels_KN, weights_N, keys), 0, stop - start


class Empty(Protocol):
    """Makes an uninitialised tensor on the CPU."""

    def __call__(self, shape: tuple[int, ...], /, *, dtype: torch.dtype) -> Tensor: ...


def assemble(
    keys: Sequence[str], pieces: Sequence[Piece], size: int, weighted: bool, empty: Empty = torch.empty
) -> Batch:
    """Put the rows of some pieces of blocks into one batch; every value is copied once, into memory from `empty`.

    Args:
        keys: of the KeyedJaggedTensor, in the order of the blocks' bags.
        pieces: at least one; a piece may be empty.
        size: B; rows beyond those of the pieces are padding, with empty bags and weight 0.
        weighted: whether the KeyedJaggedTensor has weights, 1 where a feature has none.
        empty: makes the batch's tensors.
    """
    first = pieces[0][0]
    rows = sum(stop - start for _, start, stop in pieces)
    lengths = empty((len(keys) * size,), dtype=torch.int32)
    lengths_FB = lengths.numpy().reshape(len(keys), size)
    lengths_FB[:, :rows] = 1  # and lists are put right below
    lengths_FB[:, rows:] = 0
    values: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    length_per_key = []
    for number in range(len(keys)):
        at = count = 0
        for block, start, stop in pieces:
            bags, bag_weights = block.bags[number], block.bag_weights[number]
            here = slice(start, stop)
            if bags.offsets is not None:
                offsets = bags.offsets[start : stop + 1]
                here = slice(offsets[0], offsets[-1])
                np.subtract(offsets[1:], offsets[:-1], out=lengths_FB[number, at : at + stop - start], casting="unsafe")
            values.append(bags.values[here])
            if weighted:
                ones = np.ones(here.stop - here.start, np.float32)
                weights.append(ones if bag_weights is None else bag_weights[here])
            at += stop - start
            count += here.stop - here.start
        length_per_key.append(int(count))

    dense_BF = empty((size, len(first.dense_FN)), dtype=torch.float32)
    labels_BK = empty((size, len(first.labels_KN)), dtype=torch.float32)
    weights_B = empty((size,), dtype=torch.float32)
    for tensor in (dense_BF, labels_BK, weights_B):
        tensor[rows:] = 0
    at = 0
    for block, start, stop in pieces:
        here = slice(at, at + stop - start)
        dense_BF.numpy()[here] = block.dense_FN[:, start:stop].T
        labels_BK.numpy()[here] = block.labels_KN[:, start:stop].T
        weights_B.numpy()[here] = block.weights_N[start:stop]
        at = here.stop

    sparse = KeyedJaggedTensor(
        keys=list(keys),
        values=_concatenated(values, sum(length_per_key), torch.int64, empty),
        weights=_concatenated(weights, sum(length_per_key), torch.float32, empty) if weighted else None,
        lengths=lengths,
        stride=size,
        length_per_key=length_per_key,  # known here, so that nobody sums lengths, or waits for a GPU to
    )
    tables = [block.keys.slice(start, stop - start) for block, start, stop in pieces if block.keys is not None]
    return Batch(sparse, dense_BF, labels_BK, weights_B, keys=pa.concat_tables(tables) if tables else None)


def loss_scale(weight_sum: float, ranks: int) -> float:
    """W over the sum of the weights in the global batch, as a float32 can hold it: padding alone has loss 0, not nan.

    >>> loss_scale(3.0, ranks=6)
    2.0
    >>> torch.tensor(loss_scale(1e-44, ranks=6)).isfinite().item()
    True
    """
    return ranks / max(weight_sum, ranks * _TINY)


def _concatenated(arrays: list[np.ndarray], length: int, dtype: torch.dtype, empty: Empty) -> Tensor:
    tensor = empty((length,), dtype=dtype)
    if arrays:
        np.concatenate(arrays, out=tensor.numpy(), casting="unsafe")
    return tensor
