"""Checkpoints that a thread writes: what they hold, when they are whole, and a process that ends meanwhile."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from rankmixer.pipeline.base.prefetch import left_behind
from rankmixer.pipeline.checkpoint.background import BackgroundSaves
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsWriter
from rankmixer.pipeline.checkpoint.save import Outcome
from tests.helpers.ranks import run_ranks
from tests.pipeline.checkpoint.test_checkpoint import state, value_of_latest

FILES = ["manifest.json", "meta.json", "rank-00000.safetensors", "tensors.json"]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def change(tensors: dict[str, Any]) -> None:
    for value in tensors.values():
        if isinstance(value, dict):
            change(value)
        else:
            value.zero_()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits for this event."""
    opened = threading.Event()
    original = SafetensorsWriter.write_data

    def wait(self: SafetensorsWriter, *args: Any) -> Any:
        assert opened.wait(30)
        return original(self, *args)

    monkeypatch.setattr(SafetensorsWriter, "write_data", wait)
    yield opened
    opened.set()


def test_what_is_saved_is_the_state_of_the_call_whatever_training_does_meanwhile(
    tmp_path: Path, gate: threading.Event
) -> None:
    gate.set()
    for step in (1, 2):
        Checkpoints(tmp_path / "at once").save(step, state(float(step)), {"step": step}, metric=step)
    gate.clear()
    told: list[Outcome] = []
    saves = BackgroundSaves(Checkpoints(tmp_path / "thread"), tell=told.append)
    assert saves.wait() is None
    trained = state(1.0)
    saves.save(1, trained, {"step": 1}, 1)
    change(trained)
    assert (told, Checkpoints(tmp_path / "thread").names()) == ([], [])
    gate.set()
    held = saves.staged_bytes
    saves.save(2, state(2.0), {"step": 2}, 2)  # waits for the first
    assert [outcome.step for outcome in told][:1] == [1]
    second = saves.wait()
    assert second == saves.wait() == told[1]
    assert saves.staged_bytes == held > 0, "the same memory is used again"
    assert contents(tmp_path / "thread") == contents(tmp_path / "at once")
    assert second.waiting == []
    assert second.num_bytes == sum(len(contents(tmp_path / "thread")[f"{second.name}/{file}"]) for file in FILES[1:])


def test_without_memory_for_a_copy_it_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("memory", (), {"available": 100}))
    saves = BackgroundSaves(Checkpoints(tmp_path))
    trained = state(7.0)
    saves.save(1, trained, {})
    change(trained)
    assert saves.staged_bytes == 0
    assert value_of_latest(Checkpoints(tmp_path)) == 7.0
    outcome = saves.wait()
    assert outcome is not None
    assert outcome.waiting == [0]


def test_mistakes_in_the_state_are_errors_at_once(tmp_path: Path) -> None:
    saves = BackgroundSaves(Checkpoints(tmp_path))
    with pytest.raises(ValueError, match="model is of type int; the state of a checkpoint is nested dicts of tensors"):
        saves.save(1, {"model": 3}, {})
    assert saves.wait() is None


def test_a_job_that_ends_leaves_a_disk_that_does_not_answer_behind(tmp_path: Path, gate: threading.Event) -> None:
    saves = BackgroundSaves(Checkpoints(tmp_path))
    saves.save(1, state(1.0), {})
    saves.close(seconds=0.01)
    assert left_behind()
    gate.set()


KILL = """
import os, sys, threading
import torch
from rankmixer.pipeline.checkpoint.background import BackgroundSaves
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsWriter
from tests.pipeline.checkpoint.test_checkpoint import state
saves = BackgroundSaves(Checkpoints(sys.argv[1]))
saves.save(1, state(1.0), {})
saves.wait()
finish = SafetensorsWriter.finish
def kill(self, *args):
    finish(self, *args)
    os.kill(os.getpid(), 9)
SafetensorsWriter.finish = kill
saves.save(2, state(2.0), {})
threading.Event().wait(60)
"""


def test_a_kill_before_the_manifest_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", KILL, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "step-00000002" / "tensors.json").exists()
    assert value_of_latest(Checkpoints(tmp_path)) == 1.0


def save_on_ranks(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """The same state at once and by threads; a rank that cannot write; one that has gone."""
    store = dist.FileStore(f"{folder}/messages", world_size)
    mine = {f"rank-{rank}": torch.full((5,), float(rank))}
    shared = {"weight": torch.arange(6.0)}
    Checkpoints(f"{folder}/at once").save(1, {"model": shared, "random": mine}, {})
    told: list[Outcome] = []
    saves = BackgroundSaves(Checkpoints(f"{folder}/thread"), store, tell=told.append)
    saves.save(1, {"model": shared, "random": mine}, {})
    shared["weight"].zero_()
    outcomes = [saves.wait()]
    original = SafetensorsWriter.write_data

    def refuse(self: SafetensorsWriter, *args: Any) -> Any:
        original(self, *args)
        raise OSError(errno.EDQUOT, "quota")

    if rank == 1:
        SafetensorsWriter.write_data = refuse  # type: ignore[assignment]
    saves.save(2, {"model": shared, "random": mine}, {})
    dist.all_reduce(torch.ones(1))  # training goes on
    outcomes.append(saves.wait())
    SafetensorsWriter.write_data = original  # type: ignore[method-assign]
    outcomes.append(saves.again())
    # Rank 1 ends before it has written: rank 0's thread gives up, and nothing is left of the checkpoint but files.
    if rank == 1:
        SafetensorsWriter.write_data = lambda *args: threading.Event().wait(60)  # type: ignore[assignment]
    saves.save(3, {"model": shared, "random": mine}, {})
    saves.close(seconds=2.0 if rank == 0 else 0.1)
    return {"outcomes": outcomes, "told": told, "left behind": left_behind()}


def test_ranks_agree(tmp_path: Path) -> None:
    ranks = run_ranks(2, save_on_ranks, tmp_path, str(tmp_path))
    saved = contents(tmp_path / "thread")
    assert {name: content for name, content in saved.items() if "step-00000001" in name} == contents(
        tmp_path / "at once"
    )
    first, second, third = ranks[0]["outcomes"]
    assert ranks[1]["outcomes"] == ranks[0]["outcomes"] == ranks[0]["told"]
    assert ranks[1]["told"] == []
    assert not first.failures
    assert [(failure.rank, failure.code) for failure in second.failures] == [(1, "EDQUOT")]
    assert (third.name, third.failures) == ("step-00000002", [])
    assert [rank["left behind"] for rank in ranks] == [False, True]
    assert Checkpoints(tmp_path / "thread").latest() == "step-00000002"
