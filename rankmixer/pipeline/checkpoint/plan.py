"""Plans of torch.distributed.checkpoint: save plans as JSON, load plans for tables sharded otherwise than saved."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import (
    ChunkStorageMetadata,
    DefaultLoadPlanner,
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorStorageMetadata,
    WriteItem,
)
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor

from rankmixer.pipeline.checkpoint.safetensors_storage import DTYPE_NAMES, DTYPES


def encode(plan: SavePlan) -> list[Any]:
    """A save plan of tensors as JSON."""
    encoded = []
    for item in plan.items:
        data = item.tensor_data
        assert data is not None, f"{item.index.fqn} is not a tensor"
        shapes = [list(size) for size in (data.chunk.offsets, data.chunk.sizes, data.size)]
        encoded.append([item.index.fqn, item.type.name, DTYPE_NAMES[data.properties.dtype], *shapes])
    return encoded


def decode(encoded: list[Any]) -> SavePlan:
    """The save plan that `encode` made JSON of."""
    items = []
    for fqn, kind, dtype, *shapes in encoded:
        offsets, sizes, size = map(torch.Size, shapes)
        data = TensorWriteData(ChunkStorageMetadata(offsets, sizes), TensorProperties(dtype=DTYPES[dtype]), size)
        items.append(WriteItem(MetadataIndex(fqn, offsets), WriteItemType[kind], tensor_data=data))
    return SavePlan(items, planner_data={})


class ReshardingLoadPlanner(DefaultLoadPlanner):
    """DefaultLoadPlanner, with errors that name the tensors, and row-wise optimizer states of re-cut tables.

    Row-wise Adagrad keeps one value a row: the sum over steps of the mean over columns of the squared gradient. When
    TorchRec cuts the columns of an (N, D) table into k blocks (column-wise sharding), every block has a mean of its
    own, and the state becomes a vector of k * N values, block after block. DCP would refuse to load it into another k.
    Here a block's value is the mean of the saved blocks it overlaps, weighted by the shared columns: exact when blocks
    are joined (the mean of a row is the weighted mean over its parts); when a block is split, its parts inherit its
    value, since what each part alone would have seen is not known.

    Raises:
        ValueError: a tensor is missing in the checkpoint, or has another shape there.
    """

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        self._parameters = {path[-1]: fqn for fqn, path in self.mappings.items() if self.state_dict[fqn].dim() == 2}
        # For each read of a row-wise state: the share of the saved block in the value that is loaded.
        self._share = {read: share for fqn in self.state_dict for read, share in self._block_reads(fqn).items()}
        in_blocks = {read.dest_index.fqn for read in self._share}
        others = {fqn: value for fqn, value in self.state_dict.items() if fqn not in in_blocks}
        self._check(others)
        plan = create_default_local_load_plan(others, self.metadata)
        self.plan = replace(plan, items=plan.items + list(self._share))
        return self.plan

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        for item in self._share:  # reads of these add up
            self.lookup_tensor(item.dest_index).zero_()
        return new_plan

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        target: Tensor = super().resolve_tensor(read_item)
        return torch.empty_like(target) if read_item in self._share else target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        if read_item in self._share:
            super().resolve_tensor(read_item).add_(tensor, alpha=self._share[read_item])

    def _saved(self, fqn: str) -> TensorStorageMetadata | None:
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata.get(fqn)
        assert saved is None or isinstance(saved, TensorStorageMetadata), f"{fqn} is not a tensor"
        return saved

    def _check(self, state_dict: dict[str, Tensor]) -> None:
        assert self.metadata is not None
        problems = []
        for fqn, value in state_dict.items():
            saved = self._saved(fqn)
            if saved is None:
                near = difflib.get_close_matches(fqn, self.metadata.state_dict_metadata, n=1)
                problems.append(f"{fqn}: not in the checkpoint" + (f", which has {near[0]}" if near else ""))
            elif saved.size != value.shape:
                problems.append(f"{fqn}: shape {tuple(saved.size)} in the checkpoint, {tuple(value.shape)} here")
        if problems:
            more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError("the checkpoint does not fit:\n  " + "\n  ".join(problems[:5]) + more)

    def _block_reads(self, fqn: str) -> dict[ReadItem, float]:
        """The reads of a table's row-wise optimizer state, with the share of each; empty for any other tensor."""
        state = self.state_dict[fqn]
        # In the state dict of a KeyedOptimizer a state's parent is named after the parameter.
        weight_fqn = self._parameters.get(self.mappings[fqn][-2]) if len(self.mappings[fqn]) > 1 else None
        if not isinstance(state, DTensor) or state.dim() != 1 or weight_fqn is None:
            return {}
        weight, saved_weight, saved_state = self.state_dict[weight_fqn], self._saved(weight_fqn), self._saved(fqn)
        if not isinstance(weight, DTensor) or saved_weight is None or saved_state is None:
            return {}
        if saved_weight.size != weight.shape:
            return {}
        num_rows = saved_weight.size[0]
        blocks = sorted({(chunk.offsets[1], chunk.offsets[1] + chunk.sizes[1]) for chunk in saved_weight.chunks})
        if saved_state.size != (num_rows * len(blocks),):
            return {}
        reads = {}
        # TorchRec orders the shards of a state as those of its table.
        weight_chunks = sorted(weight.__create_chunk_list__(), key=lambda chunk: chunk.offsets)
        state_chunks = sorted(state.__create_chunk_list__(), key=lambda chunk: chunk.offsets)
        for weight_chunk, state_chunk in zip(weight_chunks, state_chunks, strict=True):
            left, width = weight_chunk.offsets[1], weight_chunk.sizes[1]
            for index, (block_left, block_right) in enumerate(blocks):
                overlap = min(left + width, block_right) - max(left, block_left)
                if overlap > 0:
                    offset = torch.Size([index * num_rows + weight_chunk.offsets[0]])
                    wanted = ChunkStorageMetadata(offset, state_chunk.sizes)
                    for item in create_read_items_for_chunk_list(fqn, saved_state, [wanted]):
                        here = MetadataIndex(fqn, state_chunk.offsets)
                        reads[replace(item, dest_index=here)] = overlap / width
        return reads


def check_tensors(state: Mapping[str, Any], path: str = "") -> None:
    """Refuse a state that is not nested dicts of tensors of the dtypes that files hold."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            check_tensors(value, f"{path}{key}.")
        elif not isinstance(value, Tensor):
            raise ValueError(
                f"{path}{key} is of type {type(value).__name__}; the state of a checkpoint is nested dicts of tensors: "
                "make it a tensor, or put it into meta, which is stored as JSON"
            )
        elif value.dtype not in DTYPE_NAMES:
            raise ValueError(f"{path}{key} is of {value.dtype}, expected one of {', '.join(map(str, DTYPE_NAMES))}")
