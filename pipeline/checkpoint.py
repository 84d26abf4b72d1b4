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
import warnings
from dataclasses import replace
from typing import Any, Literal

from torch.distributed.checkpoint import DefaultSavePlanner

from pipeline.checkpoint_files import META, CheckpointFiles, Damage
from pipeline.checkpoint_load import damage_of, load
from pipeline.checkpoint_parts import SavedTensors
from pipeline.checkpoint_plan import check_tensors, decode, encode
from pipeline.collective import on_rank_0, rank, together
from pipeline.safetensors_storage import SafetensorsWriter

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
        self._files = CheckpointFiles(directory)
        self._whole: str | None = None

    def names(self) -> list[str]:
        """The checkpoints that exist, damaged or not, by step. Not collective."""
        return self._files.names()

    def latest(self) -> str | None:
        """The checkpoint of the highest step. Collective: every rank gets rank 0's answer."""
        latest: str | None = on_rank_0(f"cannot list {self._files.root}", lambda: next(reversed(self.names()), None))
        return latest

    def best(self) -> str | None:
        """The checkpoint of the highest metric, the first of equals. Collective, as `latest`.

        Raises:
            ValueError: a manifest is damaged, so that the metric of its checkpoint is not known.
        """

        best: str | None = on_rank_0(f"cannot say which checkpoint of {self._files.root} is the best", self._best)
        return best

    def suggested(self) -> str | None:
        """The best checkpoint, or else the latest. Not collective."""
        return self._best() or next(reversed(self.names()), None)

    def whole(self, which: Literal["latest", "best"]) -> tuple[str | None, dict[str, Damage]]:
        """The latest or best checkpoint that is whole to the last byte, and what is wrong with those before it.

        Where one is whole, those before it are set aside: renamed to `damaged-NAME`, they are no checkpoints any more.
        Where none is, nothing is touched. Collective: every rank gets the same answer, and `load` takes it.

        Raises:
            ValueError: a file cannot be read, which may pass, or is of a format that is not known here.
        """

        def candidates() -> list[str]:
            files = self._files
            return files.names()[::-1] if which == "latest" else [*files.with_damaged_manifest(), *files.by_metric()]

        def set_aside() -> dict[str, str]:
            asides = {}
            for name in damaged:
                try:
                    asides[name] = self._files.set_aside(name)
                except OSError as error:  # the job can go on: it knows what to leave alone
                    warnings.warn(f"cannot rename the damaged {self._files.path(name)}: {error}", stacklevel=2)
            return asides

        damaged: dict[str, Damage] = {}
        for name in on_rank_0(f"cannot list {self._files.root}", candidates):
            damage = damage_of(self._files, name)
            if damage is None:
                self._whole = name
                asides = on_rank_0("cannot set damaged checkpoints aside", set_aside)
                return name, {name: replace(damage, aside=asides.get(name)) for name, damage in damaged.items()}
            damaged[name] = damage
        return None, damaged

    def meta(self, name: str) -> dict[str, Any]:
        """The `meta` of a checkpoint. Not collective.

        Raises:
            ValueError: there is no such checkpoint, or it is damaged.
        """
        damage = self._files.damage(name) or self._files.damage_of_contents(name, [META])
        if damage:
            raise self._files.error(name, damage)
        return dict(self._files.read_json(name, META))

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
        path = self._files.path(name)
        what = f"cannot save {path}"
        writer = SafetensorsWriter(self._files.filesystem, path)
        planner = DefaultSavePlanner()

        def plan() -> list[Any]:
            check_tensors(state)
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
            files[META] = self._files.write_json(name, META, meta)
            known = metric is not None and math.isfinite(metric)
            self._files.write_manifest(name, step, metric if known else None, files)

        plans = [decode(encoded) for encoded in together(what, plan)]
        # Every rank works out the same global plan, so none has to be sent.
        global_plans, metadata = planner.create_global_plan(plans)
        final_plan = planner.finish_plan(writer.prepare_global_plan(global_plans)[rank()])
        _in_progress.add(self._files.url(name))
        try:
            on_rank_0(what, lambda: self._files.remove(name))
            parts = together(what, write)
            on_rank_0(what, commit)
        except Exception:
            if rank() == 0:
                with contextlib.suppress(OSError):
                    self._files.remove(name)
            raise
        finally:
            _in_progress.discard(self._files.url(name))
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
        seen_whole, self._whole = self._whole, None
        if name != seen_whole:
            self.verify(name)
        return load(self._files, name, state)

    def verify(self, name: str) -> None:
        """Compare every byte of a checkpoint with its manifest. Collective: all ranks agree.

        Raises:
            ValueError: there is no such checkpoint, a file is not the one saved, or it cannot be read.
        """
        damage = damage_of(self._files, name)
        if damage:
            raise self._files.error(name, damage)

    def tensors(self, name: str) -> SavedTensors:
        """The tensors of a checkpoint, to read parts of them. Not collective."""
        return SavedTensors(self._files, name)

    def _best(self) -> str | None:
        for name, damage in self._files.with_damaged_manifest().items():
            raise self._files.error(name, damage)
        return next(iter(self._files.by_metric()), None)

    def _prune(self, saved: str) -> None:
        """Remove the checkpoints not kept and what killed saves left."""
        for name in self._files.surplus(self._keep, saved):
            if self._files.url(name) not in _in_progress:
                try:
                    self._files.remove(name)
                except OSError as error:  # the new checkpoint is whole; the old one is tried again at the next save
                    warnings.warn(f"cannot remove the checkpoint {self._files.path(name)}: {error}", stacklevel=3)


def _check_json(meta: dict[str, Any]) -> None:
    try:
        json.dumps(meta)
    except TypeError as error:
        raise ValueError(f"meta must be JSON: {error}; tensors belong into state") from error
