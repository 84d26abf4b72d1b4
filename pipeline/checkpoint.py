"""Checkpoints: one directory a step, which exists once its manifest does.

    step-00001200/rank-00000.safetensors ...   tensors, see pipeline.safetensors_storage
                  tensors.json                 where the pieces of every tensor are
                  meta.json                    what the caller adds: position, configuration, versions
                  manifest.json                step, metric, size and checksum of every file; written last

Every rank writes its files under their final names, since object stores have no rename. A directory without a whole
manifest is no checkpoint: it is neither listed nor loaded, and the next save removes it.

Planning (which rank writes and reads what) is that of torch.distributed.checkpoint. Its own `save` and `load` pickle
plans to send them between ranks; here plans travel as JSON, so nothing is pickled, on disk or between ranks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import fsspec
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner

from pipeline.checkpoint_plan import ReshardingLoadPlanner, decode, encode
from pipeline.collective import on_rank_0, rank, together, world_size
from pipeline.safetensors_storage import DTYPE_NAMES, SafetensorsReader, SafetensorsWriter, checksum_of, write_file

_MANIFEST = "manifest.json"
_META = "meta.json"
_FORMAT = 1

# Directories that this process is writing: another save of it must not take them for leftovers.
_in_progress: set[str] = set()


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: a path, or a URL of any filesystem that fsspec opens.
        keep: how many of the latest checkpoints to keep, at least 1; the best one is kept besides.

    >>> import torch
    >>> checkpoints = Checkpoints("memory://doctest/checkpoints", keep=2)
    >>> for step in (10, 20, 30):
    ...     name = checkpoints.save(step, {"model": {"w": torch.full((2, 3), float(step))}}, {"epoch": step // 20})
    >>> checkpoints.names(), checkpoints.latest()
    (['step-00000020', 'step-00000030'], 'step-00000030')
    >>> state = {"model": {"w": torch.zeros(2, 3)}}
    >>> checkpoints.load("step-00000020", state)
    {'epoch': 1}
    >>> state["model"]["w"][0]
    tensor([20., 20., 20.])
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"checkpoints: keep is {keep}, expected at least 1")
        self.directory = os.fspath(directory)
        self._keep = keep
        self._filesystem, self._root = fsspec.url_to_fs(self.directory)

    def names(self) -> list[str]:
        """The checkpoints that exist, by step. Not collective."""
        return list(self._manifests())

    def latest(self) -> str | None:
        """The checkpoint of the highest step. Collective: every rank gets rank 0's answer."""
        latest: str | None = on_rank_0(f"cannot list {self._root}", lambda: next(reversed(self.names()), None))
        return latest

    def best(self) -> str | None:
        """The checkpoint of the highest metric, the first of equals. Collective, as `latest`."""
        best: str | None = on_rank_0(f"cannot list {self._root}", self._best)
        return best

    def meta(self, name: str) -> dict[str, Any]:
        """The `meta` of a checkpoint. Not collective.

        Raises:
            ValueError: there is no such checkpoint, or it is damaged.
        """
        self._verify(name)
        self._verify_contents(name, [_META])
        return dict(self._read_json(name, _META))

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any], *, metric: float | None = None) -> str:
        """Save a checkpoint, remove those not kept, return the new one's name. Collective: all ranks succeed or raise.

        Args:
            step: saving a step again replaces its checkpoint.
            state: nested dicts of tensors and DTensors. Ranks may have different names (a table-wise table's optimizer
                state is its owner's); one name on several ranks is one DTensor, or a tensor that is equal on all.
            meta: what JSON can hold; that of rank 0 is stored.
            metric: the higher, the better; NaN counts as none.

        Raises:
            ValueError: a value of `state` is not a tensor, or `meta` is not JSON.
            RuntimeError: a rank could not write. Nothing is left of the new checkpoint.
        """
        name = f"step-{step:08d}"
        path = self._path(name)
        what = f"cannot save {path}"
        writer = SafetensorsWriter(self._filesystem, path)
        planner = DefaultSavePlanner()

        def plan() -> list[Any]:
            _check_tensors(state)
            _check_json(meta)
            planner.set_up_planner(state, is_coordinator=rank() == 0)
            return encode(planner.create_local_plan())

        def write() -> dict[str, Any]:
            writer.set_up_storage_writer(is_coordinator=rank() == 0)
            writer.write_data(final_plan, planner).wait()
            return writer.files

        def commit() -> None:
            writer.finish(metadata, [])
            files = {file: entry for part in [*parts, writer.files] for file, entry in part.items()}
            files[_META] = self._write_json(name, _META, meta)
            known = metric is not None and math.isfinite(metric)
            manifest = {"format": _FORMAT, "step": step, "metric": metric if known else None, "files": files}
            self._write_json(name, _MANIFEST, manifest)

        plans = [decode(encoded) for encoded in together(what, plan)]
        # Every rank works out the same global plan, so none has to be sent.
        global_plans, metadata = planner.create_global_plan(plans)
        final_plan = planner.finish_plan(writer.prepare_global_plan(global_plans)[rank()])
        _in_progress.add(self._filesystem.unstrip_protocol(path))
        try:
            on_rank_0(what, lambda: self._remove(name))
            parts = together(what, write)
            on_rank_0(what, commit)
        except Exception:
            if rank() == 0:
                with contextlib.suppress(OSError):
                    self._remove(name)
            raise
        finally:
            _in_progress.discard(self._filesystem.unstrip_protocol(path))
        if rank() == 0:
            self._prune(name)
        return name

    def load(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        """Load a checkpoint into the tensors of `state`, in place; return its meta. Collective.

        Sharding and number of ranks may be other than at the save (ReshardingLoadPlanner says what then becomes of
        row-wise optimizer state); another dtype is converted. Top-level keys that `state` lacks are left out; below
        those that it has, the names over all ranks and the shapes must be those saved.

        Raises:
            ValueError: there is no such checkpoint, a file is not the one saved, or tensors do not fit.
        """
        what = f"cannot load {self._path(name)}"
        reader = SafetensorsReader(self._filesystem, self._path(name))
        planner = ReshardingLoadPlanner()

        def plan() -> list[str]:
            """Plan this rank's reads; return the saved tensors that it does not take."""
            _check_tensors(state)
            metadata = reader.read_metadata()
            reader.set_up_storage_reader(metadata, is_coordinator=rank() == 0)
            planner.set_up_planner(state, metadata, is_coordinator=rank() == 0)
            planner.create_local_plan()
            below = tuple(f"{key}." for key in state)
            return [
                fqn for fqn in metadata.state_dict_metadata if fqn.startswith(below) and fqn not in planner.state_dict
            ]

        def read() -> None:
            if unused:
                raise ValueError(
                    f"nothing here takes {_listed(unused)} of the checkpoint: was a feature removed, or does the "
                    "optimizer need init_state() before its state_dict()?"
                )
            reader.read_data(planner.finish_plan(planner.plan), planner).wait()

        on_rank_0(what, lambda: self._verify(name))
        # Every byte is read once more, but by one rank only.
        files = sorted((self._manifest(name) or {"files": {}})["files"])
        together(what, lambda: self._verify_contents(name, files[rank() :: world_size()]))
        unused = set.intersection(*map(set, together(what, plan)))
        together(what, read)
        return dict(on_rank_0(what, lambda: self._read_json(name, _META)))

    def _best(self) -> str | None:
        metrics = {name: manifest["metric"] for name, manifest in self._manifests().items()}
        return max(
            (name for name in metrics if metrics[name] is not None), key=lambda name: metrics[name], default=None
        )

    def _prune(self, saved: str) -> None:
        """Remove the checkpoints not kept and what killed saves left."""
        kept = {saved, *self.names()[-self._keep :], self._best()}
        for name in self._directories():
            if name not in kept and self._filesystem.unstrip_protocol(self._path(name)) not in _in_progress:
                try:
                    self._remove(name)
                except OSError as error:  # the new checkpoint is whole; the old one is tried again at the next save
                    warnings.warn(f"cannot remove the checkpoint {self._path(name)}: {error}", stacklevel=3)

    def _directories(self) -> list[str]:
        self._filesystem.invalidate_cache()  # object stores remember listings
        try:
            entries = self._filesystem.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = [os.path.basename(entry.rstrip("/")) for entry in entries]
        return sorted((name for name in names if re.fullmatch(r"step-\d{8,}", name)), key=lambda name: int(name[5:]))

    def _remove(self, name: str) -> None:
        self._filesystem.invalidate_cache()
        # The manifest goes first: a removal that is cut short leaves no checkpoint with files missing.
        for path in (self._path(name, _MANIFEST), self._path(name)):
            if self._filesystem.exists(path):
                self._filesystem.rm(path, recursive=True)

    def _verify(self, name: str) -> None:
        manifest = self._manifest(name)
        if manifest is None:
            raise ValueError(f"{self._root} has no checkpoint {name!r}; it has {_listed(self.names())}")
        if manifest["format"] != _FORMAT:
            raise ValueError(f"{name} is of format {manifest['format']}, expected {_FORMAT}: update rankmixer")
        entries = self._filesystem.ls(self._path(name), detail=True)
        sizes = {os.path.basename(entry["name"]): entry["size"] for entry in entries}
        for file, entry in manifest["files"].items():
            if sizes.get(file) != entry["size"]:
                found = f"{sizes[file]} bytes" if file in sizes else "no such file"
                raise self._damaged(name, file, found, f"{entry['size']} bytes")

    def _verify_contents(self, name: str, files: list[str]) -> None:
        """Compare the bytes of some files with the checksums of the manifest."""
        manifest = self._manifest(name)
        assert manifest is not None, "verified before"
        for file in files:
            found, expected = checksum_of(self._filesystem, self._path(name, file)), manifest["files"][file]["xxh3_128"]
            if found != expected:
                raise self._damaged(name, file, f"checksum {found}", expected)

    def _damaged(self, name: str, file: str, found: str, expected: str) -> ValueError:
        others = [other for other in self.names() if other != name]
        return ValueError(
            f"{self._path(name, file)}: found {found}, its manifest says {expected}; the checkpoint is damaged, "
            f"remove {self._path(name)} and load another one ({_listed(others)})"
        )

    def _manifests(self) -> dict[str, dict[str, Any]]:
        found = {name: self._manifest(name) for name in self._directories()}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def _manifest(self, name: str) -> dict[str, Any] | None:
        """The manifest of a checkpoint; None without one, or when its writing was cut short."""
        try:
            manifest = self._read_json(name, _MANIFEST)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and "files" in manifest else None

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _read_json(self, name: str, file: str) -> Any:
        return json.loads(self._filesystem.cat_file(self._path(name, file)))

    def _write_json(self, name: str, file: str, value: Any) -> dict[str, Any]:
        return write_file(self._filesystem, self._path(name, file), [json.dumps(value, indent=1).encode()])


def _check_tensors(state: Mapping[str, Any], path: str = "") -> None:
    for key, value in state.items():
        if isinstance(value, Mapping):
            _check_tensors(value, f"{path}{key}.")
        elif not isinstance(value, Tensor):
            raise ValueError(
                f"{path}{key} is of type {type(value).__name__}; the state of a checkpoint is nested dicts of tensors: "
                "make it a tensor, or put it into meta, which is stored as JSON"
            )
        elif value.dtype not in DTYPE_NAMES:
            raise ValueError(f"{path}{key} is of {value.dtype}, expected one of {', '.join(map(str, DTYPE_NAMES))}")


def _check_json(meta: dict[str, Any]) -> None:
    try:
        json.dumps(meta)
    except TypeError as error:
        raise ValueError(f"meta must be JSON: {error}; tensors belong into state") from error


def _listed(names: Any, limit: int = 5) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "none"
