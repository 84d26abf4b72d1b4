"""Checkpoints: one directory a step, which exists once its manifest does.

    step-00001200/rank-00000.safetensors ...   tensors, see rankmixer.pipeline.checkpoint.safetensors_storage
                  tensors.json                 where the pieces of every tensor are
                  meta.json                    what the caller adds: position, configuration, versions
                  manifest.json                step, metric, size and checksum of every file; written last
                  again-2/rank-00000...        a step that was saved again: the manifest then says `folder: again-2`

Every rank writes its files under their final names, since object stores have no rename. A directory without a whole
manifest is no checkpoint: it is neither listed nor loaded, and the next save removes it. Nothing that is whole is
removed before what replaces it is: saved again, a step's files go into a new folder, and one write of the manifest,
which file systems and object stores do whole or not at all, puts them in the place of the old ones.

Planning (which rank writes and reads what) is that of torch.distributed.checkpoint. Its own `save` and `load` pickle
plans to send them between ranks; here plans travel as JSON, so nothing is pickled, on disk or between ranks.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import Any, Literal

from rankmixer.pipeline.base.collective import on_rank_0
from rankmixer.pipeline.base.storage import StorageError
from rankmixer.pipeline.checkpoint.files import META, CheckpointFiles, Damage, listed
from rankmixer.pipeline.checkpoint.load import damage_of, load
from rankmixer.pipeline.checkpoint.meeting import GroupMeeting
from rankmixer.pipeline.checkpoint.parts import SavedTensors
from rankmixer.pipeline.checkpoint.room import remove_leftovers
from rankmixer.pipeline.checkpoint.save import IN_PROGRESS, SaveFailed, Saving


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
        self._kept: set[str] = set()  # when the last save of this process was done

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
                    self._kept.discard(name)
                except (OSError, StorageError) as error:  # the job can go on: it knows what to leave alone
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
            step: saving a step again replaces its checkpoint, when the new one is whole.
            state: nested dicts of tensors and DTensors. Ranks may have different names (a table-wise table's optimizer
                state is its owner's); one name on several ranks is one DTensor, or a tensor that is equal on all.
            meta: what JSON can hold; that of rank 0 is stored.
            metric: the higher, the better; NaN counts as none.

        Raises:
            ValueError: a value of `state` is not a tensor, or `meta` is not JSON.
            SaveFailed: a rank could not write. Nothing is left of the new checkpoint; one of the same step that was
                there before stays.
        """
        saving = self.plan_save(step, state, meta, metric=metric)
        outcome = saving.write(GroupMeeting())
        failure = on_rank_0(
            f"cannot save {saving.path}", lambda: str(outcome) if outcome and outcome.failures else None
        )
        if failure:
            raise SaveFailed(failure)
        for remark in outcome.remarks if outcome else []:
            warnings.warn(remark, stacklevel=2)
        return saving.name

    def plan_save(
        self, step: int, state: dict[str, Any], meta: dict[str, Any], *, metric: float | None = None
    ) -> Saving:
        """The save that `save` writes at once, for who writes it later. Collective; arguments are those of `save`."""
        return Saving(self._files, step, state, meta, metric, self._tidy)

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

    def _tidy(self, saved: str) -> list[str]:
        """Remove the checkpoints not kept and what killed saves left; return what the user should know."""
        remarks = []
        gone = sorted(self._kept - set(self.names()))
        if gone:
            remarks.append(f"{self._files.root}: {listed(gone)} went while the job runs, and not by it")
        try:
            for name in self.names():
                if name == saved or self._files.url(name) not in IN_PROGRESS:
                    remove_leftovers(self._files, name)
        except Exception as error:  # they are in nobody's way
            remarks.append(f"cannot remove what saves have left in {self._files.root}: {error}")
        for name in self._files.surplus(self._keep, saved):
            if self._files.url(name) not in IN_PROGRESS:
                try:
                    self._files.remove(name)
                except Exception as error:  # the new one is whole; the old one is tried again at the next save
                    remarks.append(f"cannot remove the checkpoint {self._files.path(name)}: {error}")
        self._kept = set(self.names())
        return remarks
