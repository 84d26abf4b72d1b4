"""One checkpoint on its way to the disk: planned by all ranks together, then written, by a thread or not."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from torch.distributed.checkpoint import DefaultSavePlanner, SavePlanner

from rankmixer.pipeline.base.collective import rank, together
from rankmixer.pipeline.base.storage import telling
from rankmixer.pipeline.checkpoint.files import META, CheckpointFiles
from rankmixer.pipeline.checkpoint.meeting import Meeting
from rankmixer.pipeline.checkpoint.plan import check_tensors, decode, encode
from rankmixer.pipeline.checkpoint.room import discard, make_room
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsWriter, num_bytes
from rankmixer.pipeline.checkpoint.staging import Copies, Staging

# Directories that this process is writing: another save of it must not take them for leftovers.
IN_PROGRESS: set[str] = set()


@dataclass(frozen=True)
class Failure:
    """Why a rank could not write.

    Args:
        rank: which.
        code: `ENOSPC` and its like, or the type of the exception.
        text: for the user.
        needed: bytes that this rank has to write.
        free: bytes that are free where it writes; None: the filesystem does not say.
    """

    rank: int
    code: str
    text: str
    needed: int
    free: int | None


@dataclass(frozen=True)
class Outcome:
    """What became of a save.

    Args:
        name: of the checkpoint, which exists if `failures` is empty.
        path: where it is, or was to be.
        step: of the state.
        num_bytes: in all its files.
        seconds: from the start of writing until it was whole.
        failures: of the ranks that could not write.
        remarks: what else the user should know of the directory, a sentence each.
        waiting: ranks that trained on only when they had written, for want of memory for a copy.
    """

    name: str
    path: str
    step: int
    num_bytes: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.failures:
            return f"{self.path} is whole"
        first = self.failures[0]
        ranks = ", ".join(str(failure.rank) for failure in self.failures)
        space = "" if first.free is None else f", {_amount(first.free)} are free there"
        return (
            f"cannot save {self.path}: {first.text} (rank {ranks}, which has {_amount(first.needed)} to write{space})"
        )


class SaveFailed(RuntimeError):
    """A checkpoint could not be written. Nothing is left of it."""


class Saving:
    """A save that all ranks have planned.

    Args:
        files: where to.
        step: the state's.
        state: nested dicts of tensors; each rank writes its part.
        meta: JSON.
        metric: of the checkpoint; None or NaN: it has none.
        tidy: called on rank 0 when the checkpoint is whole; returns what the user should know.

    Raises:
        ValueError: a value of `state` is not a tensor, or `meta` is not JSON. On all ranks.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        step: int,
        state: dict[str, Any],
        meta: dict[str, Any],
        metric: float | None,
        tidy: Callable[[str], list[str]],
    ) -> None:
        self.name, self.path = f"step-{step:08d}", files.path(f"step-{step:08d}")
        self._files, self._step, self._meta, self._tidy = files, step, meta, tidy
        self._metric = metric if metric is not None and math.isfinite(metric) else None
        self._rank = rank()
        self._writer = SafetensorsWriter(files.filesystem, self.path)
        self._folder: str | None = None  # below `path`; None: not chosen
        planner = DefaultSavePlanner()

        def plan() -> list[Any]:
            check_tensors(state)
            _check_json(meta)
            planner.set_up_planner(state, is_coordinator=self._rank == 0)
            return encode(planner.create_local_plan())

        plans = [decode(encoded) for encoded in together(f"cannot save {self.path}", plan)]
        # Every rank works out the same global plan, so none has to be sent.
        global_plans, self._metadata = planner.create_global_plan(plans)
        self._plan = planner.finish_plan(self._writer.prepare_global_plan(global_plans)[self._rank])
        self._source: SavePlanner = planner

    def stage(self, staging: Staging) -> bool:
        """Copy what this rank writes, so that the state may change before it is written; False: no memory for it."""
        copies = staging.copy(self._plan.items, self._source)
        self._source = copies or self._source
        return copies is not None

    def write(self, meeting: Meeting) -> Outcome | None:
        """Write the checkpoint, which is whole or not there afterwards; may be called again after a failure.

        A checkpoint of this step that is there already stays until this one is whole, and if this one fails.

        Rank 0 returns what became of it, the others return None when they are done with their part.
        """
        started = time.perf_counter()
        mark = self._files.url(self.name)
        IN_PROGRESS.add(mark)
        try:
            begun = meeting.broadcast(self._trying(self._begin) if self._rank == 0 else None)
            if begun["failure"]:
                return self._failed([begun["failure"]]) if self._rank == 0 else None
            self._writer.directory = begun["result"]
            parts = meeting.gather({**self._trying(self._write_part), "is_copy": isinstance(self._source, Copies)})
            if parts is None:
                return None
            failures = [part["failure"] for part in parts if part["failure"]]
            if not failures:
                committed = self._trying(lambda: self._commit([part["result"] for part in parts]))
                if not committed["failure"]:
                    seconds = time.perf_counter() - started
                    waiting = [number for number, part in enumerate(parts) if not part["is_copy"]]
                    return Outcome(
                        self.name, self.path, self._step, committed["result"], seconds, [], self._tidied(), waiting
                    )
                failures = [committed["failure"]]
            return self._failed(failures)
        finally:
            IN_PROGRESS.discard(mark)

    def _begin(self) -> str:
        self._folder = None
        self._folder = make_room(self._files, self.name)
        self._writer.directory = self._files.path(self.name, self._folder)
        self._writer.set_up_storage_writer(is_coordinator=True)
        return self._writer.directory

    def _write_part(self) -> dict[str, Any]:
        self._writer.set_up_storage_writer(is_coordinator=self._rank == 0)
        try:
            self._writer.write_data(self._plan, self._source).wait()
        except Exception:
            with suppress(Exception):  # its room is free again when the failure is described
                self._files.filesystem.rm_file(f"{self._writer.directory}/{self._plan.storage_data}")
            raise
        return self._writer.files

    def _commit(self, parts: list[dict[str, Any]]) -> int:
        self._writer.finish(self._metadata, [])
        files = {file: entry for part in [*parts, self._writer.files] for file, entry in part.items()}
        files[META] = self._files.write_json(self._writer.directory, META, self._meta)
        files = dict(sorted(files.items()))
        if lost := self._files.wrong_size(self._writer.directory, files):  # somebody removes files under the job
            raise FileNotFoundError(errno.ENOENT, f"{lost.file} is not as it was written")
        self._files.write_manifest(self.name, self._step, self._metric, files, self._folder or "")
        return sum(entry["size"] for entry in files.values())

    def _tidied(self) -> list[str]:
        try:
            with self._telling():
                return self._tidy(self.name)
        except Exception as error:  # the checkpoint is whole; what it leaves is tried again at the next save
            return [f"cannot remove old checkpoints: {type(error).__name__}: {error}"]

    def _failed(self, failures: list[dict[str, Any]]) -> Outcome:
        if self._folder is not None:
            with suppress(Exception), self._telling():  # what stays is no checkpoint, and the next save removes it
                discard(self._files, self.name, self._folder)
        return Outcome(self.name, self.path, self._step, failures=[Failure(**failure) for failure in failures])

    def _trying(self, step: Callable[[], Any]) -> dict[str, Any]:
        """The result of `step`, or why it failed, as JSON."""
        try:
            with self._telling():
                return {"result": step(), "failure": None}
        except Exception as error:  # filesystems of fsspec raise anything
            return {"result": None, "failure": self._failure(error)}

    def _telling(self) -> AbstractContextManager[None]:
        """A line on stderr while the storage stalls, of the thread that writes; not while ranks wait for each other."""
        return telling(self._files.filesystem, self._files.url(self.name))

    def _failure(self, error: Exception) -> dict[str, Any]:
        code, text = type(error).__name__, f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno is not None:
            code, text = errno.errorcode.get(error.errno, code), os.strerror(error.errno)
            if error.filename and not str(error.filename).startswith(self.path):
                text += f": {error.filename}"
        elif isinstance(error, ValueError):
            text = str(error)
        needed = sum(num_bytes(item) for item in self._plan.items)
        return {"rank": self._rank, "code": code, "text": text, "needed": needed, "free": self._free()}

    def _free(self) -> int | None:
        if isinstance(self._files.filesystem, LocalFileSystem):
            with suppress(OSError):
                path = Path(self.path)
                return shutil.disk_usage(next(part for part in (path, *path.parents) if part.exists())).free
        return None


def _check_json(meta: dict[str, Any]) -> None:
    try:
        json.dumps(meta)
    except TypeError as error:
        raise ValueError(f"meta must be JSON: {error}; tensors belong into state") from error


def _amount(size: int) -> str:
    """Bytes for people.

    >>> _amount(412_300_000), _amount(20)
    ('412.3 MB', '20 bytes')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
