"""From the tensors of one model's checkpoint to those of another model: what fits, row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from rankmixer.launch.config.config import Config
from rankmixer.launch.config.model import ModelConfig
from rankmixer.launch.warm_start.row_maps import Piece, Rows, rows_by_name, table_rows, token_pieces, token_rows
from rankmixer.pipeline.checkpoint.parts import SavedTensors, pieces
from rankmixer.pipeline.schema.schema import Schema, explain

TABLE = re.compile(r"\bembedding_bags\.([^.]+)\.weight$|\b_managed_collision_modules\.([^.]+)\.")
TAKEN = ["taken", "all of it"]


class Transfer:
    """What becomes of every tensor of a model, given a checkpoint of another one.

    Args:
        config: of the model.
        meta: of the checkpoint.
        there: its feature schema.
        saved: its tensors.
        state: of the model; `run` writes into its tensors.
    """

    def __init__(
        self, config: Config, meta: dict[str, Any], there: Schema, saved: SavedTensors, state: dict[str, Any]
    ) -> None:
        self.saved, self._state = saved, state
        here, kinds = config.feature_schema, meta["config"]["optimizer"]
        self._tables = {name: table_rows(here, there, name) for name in here.tables}
        # FBGEMM's Adam counts its steps outside the state: moments without their count would be too large.
        now, then = config.optimizer.sparse.kind, kinds["sparse"]["kind"]
        self._takes_sparse_state = now == then != "adam"
        self._takes_dense_state = config.optimizer.dense.kind == kinds["dense"]["kind"]
        try:
            model = ModelConfig.model_validate(meta["config"]["model"])
        except ValidationError as error:
            raise ValueError(f"the checkpoint's section model is of another version: {explain(error)[0]}") from None
        self._tasks = rows_by_name(here.tasks, there.tasks)
        self._other_head: str | None = None
        self._pieces: list[Piece] = []
        if config.model.arch != model.arch:
            self._other_head = f"model.arch {model.arch} there, {config.model.arch} here"
        elif config.model.is_ours:
            self._pieces = token_pieces(config.model.head(), here)
            self._pieces_there = token_pieces(model.head(), there)
            self._columns = rows_by_name(_input(here), _input(there))
        elif _input(here) != _input(there) or here.tasks != there.tasks:
            self._other_head = "it reads other features, or answers other tasks"

    def run(self) -> dict[str, list[Any]]:
        """Take what fits; by tensor, how it was taken and how many rows of how many, or why it was not."""
        outcomes: dict[str, list[Any]] = {}
        fits: dict[str, Rows | None] = {}
        with torch.no_grad():
            for parameter, value in flat(self._state["model"]):
                found = self._rows(parameter, value)
                if isinstance(found, str):
                    outcomes[parameter] = ["new", found]
                    continue
                fits[parameter] = found
                self._read(f"model.{parameter}", value, found)
                outcomes[parameter] = [found.how, f"{found.found} of {len(found.row_N)} rows"] if found else TAKEN
            for key, value in flat(self._state["optimizer"].get("state", {})):
                owner = next((name for name in fits if key.startswith(f"{name}.")), None)
                if owner is not None:
                    self._read_optimizer_state(f"optimizer.state.{key}", value, owner, fits[owner])
        return outcomes

    def _rows(self, parameter: str, value: Tensor) -> Rows | str | None:
        """Which rows of the saved tensor are those of `value`; None: all of it; or why none is."""
        saved = self.saved.tensors.get(f"model.{parameter}")
        table = TABLE.search(parameter)
        if table is None and self._other_head:
            return self._other_head
        if saved is None:
            return "not in the checkpoint"
        rows = self._tables[table[1] or table[2]] if table else self._dense_rows(parameter, value, saved.size)
        if isinstance(rows, str):
            return rows
        is_by_row = rows is not None and rows.how != "taken"
        if saved.size[is_by_row:] != value.shape[is_by_row:]:
            return f"shape {tuple(saved.size)} there, {tuple(value.shape)} here"
        if rows is not None and not rows.found:
            return "none of its rows is in the checkpoint"
        return rows if is_by_row or (table and value.dim() == 2) else None

    def _dense_rows(self, parameter: str, value: Tensor, saved: torch.Size) -> Rows | None:
        if not self._pieces:
            return None
        if parameter.endswith(".tokenizer.tokens_ID"):
            rows, rows_there = len(value) // len(self._pieces), saved[0] // len(self._pieces_there)
            return token_rows(self._pieces, self._pieces_there, rows, rows_there)
        if parameter.endswith(".tokenizer.global_ID"):
            return self._columns
        return self._tasks if ".heads.layers." in parameter else None

    def _read(self, fqn: str, value: Tensor, rows: Rows | None) -> None:
        for target, offsets in pieces(value):
            if not target.numel():
                continue
            if rows is None:
                self.saved.read(fqn, offsets, target)
            else:
                row_N = rows.row_N[offsets[0] : offsets[0] + len(target)]
                self.saved.read_rows(fqn, row_N, offsets[1] if len(offsets) > 1 else 0, target)

    def _read_optimizer_state(self, fqn: str, value: Tensor, parameter: str, rows: Rows | None) -> None:
        saved, weight_saved = self.saved.tensors.get(fqn), self.saved.tensors[f"model.{parameter}"]
        if saved is None:
            return
        if not TABLE.search(parameter):
            # Moments without those of some rows would not agree with their count of steps.
            if self._takes_dense_state and rows is None and saved.size == value.shape:
                self._read(fqn, value, None)
        elif self._takes_sparse_state and rows is not None:
            if value.dim() == 2 and saved.size == weight_saved.size:
                self._read(fqn, value, rows)
            elif value.dim() == 1:
                self._read_row_state(fqn, value, parameter, rows)

    def _read_row_state(self, fqn: str, value: Tensor, parameter: str, rows: Rows) -> None:
        """Of one value a row and block of columns, as ReshardingLoadPlanner: the mean over the blocks of then."""
        weight, saved = dict(flat(self._state["model"]))[parameter], self.saved.tensors[f"model.{parameter}"]
        num_rows = saved.size[0]
        blocks = sorted({(chunk.offsets[1], chunk.offsets[1] + chunk.sizes[1]) for chunk in saved.chunks})
        if self.saved.tensors[fqn].size != (num_rows * len(blocks),):
            return
        for (part, place), (target_N, _) in zip(pieces(weight), pieces(value), strict=False):
            row_N = rows.row_N[place[0] : place[0] + len(target_N)]
            total_N = torch.zeros_like(target_N)
            for index, (left, right) in enumerate(blocks):
                overlap = min(place[1] + part.shape[1], right) - max(place[1], left)
                if overlap > 0:
                    block_N = torch.zeros_like(target_N)
                    self.saved.read_rows(fqn, torch.where(row_N < 0, -1, row_N + index * num_rows), 0, block_N)
                    total_N += block_N * (overlap / part.shape[1])
            target_N.copy_(total_N)


def _input(schema: Schema) -> list[tuple[str, int]]:
    """The columns of the dense part's input."""
    dims = {feature: table.dim for table in schema.tables.values() for feature in table.features}
    names = [name for names in schema.groups.values() for name in names]
    return [(name, column) for name in names for column in range(dims.get(name, 1))]


def flat(state: dict[str, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts, by their names joined with dots."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
