"""Parts of saved tensors, read into tensors that are there: any rows and columns, however they were sharded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.checkpoint import ChunkStorageMetadata, LoadPlan, LoadPlanner, ReadItem, TensorStorageMetadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor

from rankmixer.pipeline.base.storage import reading
from rankmixer.pipeline.checkpoint.files import CheckpointFiles
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsReader

BLOCK_BYTES = 16 * 2**20


class SavedTensors:
    """The tensors of one checkpoint. Nothing here is collective, and nothing is verified.

    Args:
        files: of the run.
        name: of the checkpoint.
    """

    def __init__(self, files: CheckpointFiles, name: str) -> None:
        self._path = files.folder(name)
        self._reader = SafetensorsReader(files.filesystem, self._path)
        with reading(self._path):
            metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self.tensors: dict[str, TensorStorageMetadata] = {
            fqn: saved
            for fqn, saved in metadata.state_dict_metadata.items()
            if isinstance(saved, TensorStorageMetadata)
        }

    def read(self, fqn: str, offsets: Sequence[int], target: Tensor) -> None:
        """Fill `target` with the values of a saved tensor from `offsets` on; another dtype is converted."""
        wanted = ChunkStorageMetadata(torch.Size(offsets), target.shape)
        items = create_read_items_for_chunk_list(fqn, self.tensors[fqn], [wanted])
        with reading(self._path):
            self._reader.read_data(LoadPlan(items), _Into(target)).wait()

    def read_rows(self, fqn: str, row_N: Tensor, first_column: int, target: Tensor) -> None:
        """Fill each row i of `target` with row `row_N[i]` of a saved tensor, from `first_column` on.

        Rows are read in blocks, of which each is read once. Where `row_N` is negative, `target` keeps what it has.
        """
        known = row_N[row_N >= 0]
        if not len(known):
            return
        row_bytes = max(1, target[0].numel()) * target.element_size()
        step, end = max(1, BLOCK_BYTES // row_bytes), int(known.max()) + 1
        row_N = row_N.to(target.device)
        for start in range(int(known.min()), end, step):
            block = torch.empty(min(step, end - start), *target.shape[1:], dtype=target.dtype, device=target.device)
            here_N = (row_N >= start) & (row_N < start + len(block))
            if here_N.any():
                self.read(fqn, [start, *([first_column] if target.dim() > 1 else []), *[0] * (target.dim() - 2)], block)
                target[here_N] = block[row_N[here_N] - start]


class _Into(LoadPlanner):
    """Reads every piece into its place in one tensor."""

    def __init__(self, target: Tensor) -> None:
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        target = self._target
        for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            target = target.narrow(dim, offset, length)
        return target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass

    # What DCP's own `load` would call; here `read` plans.
    def set_up_planner(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError

    def load_bytes(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError


def pieces(value: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """What this rank holds of a tensor, each piece with its place in the whole, by place."""
    if not isinstance(value, DTensor):
        yield value, (0,) * value.dim()
        return
    local = value.to_local()
    shards = local.local_shards() if hasattr(local, "local_shards") else [local]
    chunks = value.__create_chunk_list__()
    # A rank without a shard still names a place, hence not strict.
    found = [(shard, tuple(chunk.offsets)) for shard, chunk in zip(shards, chunks, strict=False)]
    yield from sorted(found, key=lambda piece: piece[1])
