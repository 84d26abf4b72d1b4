"""A step saved again, and killed or refused at each operation on the storage: a whole checkpoint of it stays."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from rankmixer.pipeline.checkpoint.background import BackgroundSaves
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsWriter
from rankmixer.pipeline.checkpoint.save import SaveFailed
from tests.helpers.ranks import run_ranks
from tests.pipeline.checkpoint.test_checkpoint import state, value_of

CHANGES = ("mkdir", "makedirs", "open", "pipe_file", "rm", "rm_file", "mv", "cp_file")


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` may go on after it."""


class Storage:
    """Counts what changes a file system, and ends it at one of these operations.

    Args:
        at: which, from 1; what follows it fails too, where `error` is Killed.
        error: raised there.
    """

    def __init__(self, patch: pytest.MonkeyPatch, at: int, error: type[BaseException]) -> None:
        self.done, self._at, self._error = 0, at, error
        for owner, names in (
            (LocalFileSystem, CHANGES),
            (MemoryFileSystem, CHANGES),
            (LocalFileOpener, ("write", "close")),
            (MemoryFile, ("write",)),
            (os, ("replace",)),
        ):
            for name in names:
                patch.setattr(owner, name, self._counted(getattr(owner, name), is_open=name == "open"))

    def _counted(self, operation: Callable[..., Any], *, is_open: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not is_open or "w" in str(args[2:3]):
                self.done += 1
                if self.done == self._at or (self.done > self._at > 0 and self._error is Killed):
                    raise self._error("ended here")
            return operation(*args, **kwargs)

        return call


@pytest.fixture(params=["local", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], str]]:
    """A new directory for each number."""
    yield lambda number: f"{tmp_path if request.param == 'local' else 'memory:/'}/{number}"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def whole(directory: str) -> tuple[str, float, float | None]:
    """The checkpoint that a resume finds, by which value it was made, and its metric."""
    checkpoints = Checkpoints(directory)
    name, damaged = checkpoints.whole("latest")
    assert name is not None
    assert damaged == {}
    loaded = state()
    assert checkpoints.load(name, loaded) == {"value": value_of(loaded)}
    manifest = checkpoints._files.manifest(name)
    assert isinstance(manifest, dict)
    return name, value_of(loaded), manifest["metric"]


def save(directory: str, value: float) -> None:
    Checkpoints(directory).save(7, state(value), {"value": value}, metric=value)


@pytest.mark.parametrize("error", [Killed, OSError])
def test_at_every_operation_one_of_the_two_checkpoints_is_whole(
    directory: Callable[[int], str], error: type[BaseException]
) -> None:
    found: list[float] = []
    for number in range(1, 200):
        here = directory(number)
        save(here, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            storage = Storage(patch, number, error)
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "cannot remove")
                    save(here, 2.0)
            except (Killed, SaveFailed):
                pass
        if storage.done < number:
            break
        assert whole(here)[0] == "step-00000007"
        found.append(whole(here)[1])
        save(here, 3.0)  # after the restart
        assert whole(here) == ("step-00000007", 3.0, 3.0)
        files = Checkpoints(here)._files
        entries = {os.path.basename(entry) for entry in files.filesystem.ls(files.path("step-00000007"), detail=False)}
        assert entries == {"manifest.json", os.path.basename(files.folder("step-00000007"))}, "leftovers"
    assert found == sorted(found), "the old one, until the new one is whole"
    assert {1.0, 2.0} == set(found)
    assert len(found) > 8


def save_again_on_ranks(rank: int, world_size: int, folder: str) -> list[tuple[bool, float]]:
    """After each save of one step: did it succeed, and what a load finds. Rank 1 cannot write the second."""
    saves = BackgroundSaves(Checkpoints(f"{folder}/runs"), dist.FileStore(f"{folder}/messages", world_size))
    original, found = SafetensorsWriter.write_data, []

    def refuse(self: SafetensorsWriter, *args: Any) -> Any:
        original(self, *args)
        raise OSError("full")

    for value in (1.0, 2.0):
        if rank == 1 and value == 2.0:
            SafetensorsWriter.write_data = refuse  # type: ignore[assignment]
        saves.save(7, {**state(value), "random": {str(rank): state(value)["random"]["0"]}}, {"value": value})
        found.append((_succeeded(saves.wait()), _loaded(f"{folder}/runs", rank)))
    SafetensorsWriter.write_data = original  # type: ignore[method-assign]
    return [*found, (_succeeded(saves.again()), _loaded(f"{folder}/runs", rank))]


def _succeeded(outcome: Any) -> bool:
    return outcome is not None and not outcome.failures


def _loaded(directory: str, rank: int) -> float:
    loaded = state()
    value = Checkpoints(directory).load("step-00000007", {**loaded, "random": {str(rank): loaded["random"]["0"]}})
    assert value == {"value": value_of(loaded)}
    return value_of(loaded)


def test_ranks_agree_where_a_step_is_saved_again(tmp_path: Path) -> None:
    for found in run_ranks(2, save_again_on_ranks, tmp_path, str(tmp_path)):
        assert found == [(True, 1.0), (False, 1.0), (True, 2.0)]
    assert sorted(path.name for path in (tmp_path / "runs" / "step-00000007").iterdir()) == ["again-2", "manifest.json"]
