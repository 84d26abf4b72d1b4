"""What a run has come to: losses, metrics and weights, and in what two runs differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.journal.journal import read_log

# What the log says of the model and of the rows, and not of the attempt or of the time it took.
KINDS = ("train", "evaluate", "experts", "managed", "arrival", "finish")
OF_THE_ATTEMPT = ("time", "examples_per_second", "data_wait_share", "mfu", "rss_bytes", "cuda_bytes")


class Outcome:
    """What a run directory holds at the end.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.told: dict[str, dict[str, Any]] = {}
        for line in read_log(directory):
            if line["kind"] in KINDS:
                told = {key: value for key, value in line.items() if key not in OF_THE_ATTEMPT}
                self.told[f"{line['kind']} {line['step']}"] = told
        checkpoints = Checkpoints(directory / "checkpoints")
        newest = checkpoints.names()[-1]
        self.position = checkpoints.meta(newest)["position"]
        self.weights = whole_tensors(directory / "checkpoints" / newest)

    def differences(self, other: Outcome, *, is_told: bool = True) -> list[str]:
        """In what another run is not this one, bit for bit; without its log if that was not written whole."""
        unequal = self._told_otherwise(other) if is_told else []
        found = [f"{key}: {self.told.get(key)}, {other.told.get(key)}" for key in unequal]
        if self.position != other.position:
            found.append(f"it ends at {self.position}, {other.position}")
        names = self.weights.keys() | other.weights.keys()
        others = sorted(name for name in names if not _equal(self.weights.get(name), other.weights.get(name)))
        if others:
            found.append(f"{len(others)} of {len(names)} tensors, {others[0]} among them")
        return found

    def distances(self, other: Outcome) -> dict[str, float]:
        """How far another run is from this one: the largest relative difference of a loss, and that of all weights."""
        losses = {key: told["loss"] for key, told in self.told.items() if told["kind"] == "train"}
        theirs = {key: told["loss"] for key, told in other.told.items() if told["kind"] == "train"}
        if losses.keys() != theirs.keys() or self.position != other.position:
            return {"losses": math.inf, "weights": math.inf}
        weights = {
            name: value
            for name, value in self.weights.items()
            if name.startswith("model.") and value.is_floating_point()
        }
        apart = sum(float((value - other.weights[name]).double().square().sum()) for name, value in weights.items())
        size = sum(float(value.double().square().sum()) for value in weights.values())
        return {
            "losses": max(abs(losses[key] - theirs[key]) / abs(losses[key]) for key in losses),
            "weights": math.sqrt(apart / size),
        }

    def _told_otherwise(self, other: Outcome) -> list[str]:
        return sorted(key for key in self.told.keys() | other.told.keys() if self.told.get(key) != other.told.get(key))


def whole_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, put together from the shards of all ranks."""
    files: dict[str, Mapping[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, entry in json.loads((checkpoint / "tensors.json").read_text()).items():
        pieces = []
        for chunk in entry["chunks"]:
            file = files.setdefault(chunk["file"], load_file(checkpoint / chunk["file"]))
            key = name if chunk["sizes"] == entry["shape"] else f"{name}[{','.join(map(str, chunk['offsets']))}]"
            pieces.append((chunk["offsets"], file[key]))
        whole[name] = torch.empty(entry["shape"], dtype=pieces[0][1].dtype)
        for offsets, piece in pieces:
            place = tuple(slice(start, start + size) for start, size in zip(offsets, piece.shape, strict=True))
            whole[name][place] = piece
    return whole


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)
