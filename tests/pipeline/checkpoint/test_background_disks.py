"""Checkpoints that a thread writes, on disks that do not take them: full, read-only, deleted, raising at will."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from rankmixer.pipeline.checkpoint.background import BackgroundSaves
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsWriter
from rankmixer.pipeline.checkpoint.save import Outcome
from tests.pipeline.checkpoint.test_checkpoint import state, value_of_latest


class FailingDisk(LocalFileSystem):
    """A local disk of which chosen calls fail."""

    def __init__(self, fails: Callable[[str], OSError | None]) -> None:
        super().__init__(skip_instance_cache=True)
        self.fails = fails
        self.broken = True

    def _look(self, call: str) -> bool:
        error = self.fails(call) if self.broken else None
        if error:
            raise error
        return False

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._look("makedirs")
        super().makedirs(path, exist_ok)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._look("rm")
        super().rm(path, recursive, maxdepth)

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if "w" in mode:
            self._look("open")
        file = super().open(path, mode, **kwargs)
        write = file.write
        if "w" in mode:
            file.write = lambda piece: self._look("write") or write(piece)
        return file


def on_disk(directory: Path, disk: FailingDisk, **kwargs: Any) -> Checkpoints:
    checkpoints = Checkpoints(directory, **kwargs)
    checkpoints._files.filesystem = disk
    return checkpoints


def test_a_disk_that_is_full_at_any_write(tmp_path: Path) -> None:
    calls: list[str] = []

    def count(call: str) -> None:
        calls.append(call)

    disk = FailingDisk(count)
    on_disk(tmp_path / "whole", disk).save(2, state(2.0), {})
    writes = calls.count("write")
    assert writes > 8
    for position in range(writes):
        left = position

        def fail(call: str) -> OSError | None:
            nonlocal left
            left -= call == "write"
            return OSError(errno.ENOSPC, "full") if call == "write" and left < 0 else None

        directory = tmp_path / str(position)
        Checkpoints(directory).save(1, state(1.0), {})
        disk = FailingDisk(fail)
        saves = BackgroundSaves(on_disk(directory, disk))
        saves.save(2, state(2.0), {})
        outcome = saves.wait()
        assert outcome is not None
        (failure,) = outcome.failures
        assert (failure.rank, failure.code, failure.text) == (0, "ENOSPC", "No space left on device")
        assert failure.needed == 147
        assert failure.free is not None
        assert os.listdir(directory) == ["step-00000001"], "nothing half written stays"
        disk.broken = False
        again = saves.again()
        assert again is not None
        assert not again.failures
        assert value_of_latest(Checkpoints(directory)) == 2.0


def test_a_disk_that_became_read_only(tmp_path: Path) -> None:
    disk = FailingDisk(lambda call: OSError(errno.EROFS, "", str(tmp_path / "step-00000002" / "x")))
    saves = BackgroundSaves(on_disk(tmp_path, disk))
    disk.broken = False
    saves.save(1, state(1.0), {})
    saves.wait()
    disk.broken = True
    saves.save(2, state(2.0), {})
    outcome = saves.wait()
    assert outcome is not None
    assert str(outcome).startswith(
        f"cannot save {tmp_path}/step-00000002: Read-only file system (rank 0, which has 147"
    )
    assert value_of_latest(Checkpoints(tmp_path)) == 1.0
    disk.broken = False
    saves.save(3, state(3.0), {})
    assert saves.wait() == Outcome(**{**vars(saves.wait()), "name": "step-00000003", "failures": []})
    assert Checkpoints(tmp_path).names() == ["step-00000001", "step-00000003"]


def test_an_old_checkpoint_that_cannot_be_removed_is_a_remark(tmp_path: Path) -> None:
    disk = FailingDisk(lambda call: PermissionError(errno.EACCES, "refused") if call == "rm" else None)
    saves = BackgroundSaves(on_disk(tmp_path, disk, keep=1))
    saves.save(1, state(1.0), {})
    saves.save(2, state(2.0), {})
    outcome = saves.wait()
    assert outcome is not None
    assert not outcome.failures
    (remark,) = outcome.remarks
    assert remark == f"cannot remove the checkpoint {tmp_path}/step-00000001: [Errno 13] refused"


def test_a_directory_that_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run" / "checkpoints"
    saves = BackgroundSaves(Checkpoints(directory))
    saves.save(1, state(1.0), {})
    saves.wait()
    original = SafetensorsWriter.write_data

    def delete(self: SafetensorsWriter, *args: Any) -> Any:
        done = original(self, *args)
        shutil.rmtree(directory)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsWriter, "write_data", delete)
        saves.save(2, state(2.0), {})
        outcome = saves.wait()
    assert outcome is not None
    assert [failure.code for failure in outcome.failures] == ["ENOENT"]
    saves.save(3, state(3.0), {})
    outcome = saves.wait()
    assert outcome is not None
    assert outcome.remarks == [f"{directory}: step-00000001 went while the job runs, and not by it"]
    assert value_of_latest(Checkpoints(directory)) == 3.0


def test_a_file_that_goes_before_the_manifest_comes_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SafetensorsWriter.finish

    def delete(self: SafetensorsWriter, *args: Any) -> None:
        original(self, *args)
        (tmp_path / "step-00000001" / "rank-00000.safetensors").unlink()

    monkeypatch.setattr(SafetensorsWriter, "finish", delete)
    saves = BackgroundSaves(Checkpoints(tmp_path))
    saves.save(1, state(1.0), {})
    outcome = saves.wait()
    assert outcome is not None
    assert [failure.code for failure in outcome.failures] == ["ENOENT"]
    assert Checkpoints(tmp_path).names() == []


def test_a_filesystem_that_raises_what_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SafetensorsWriter, *args: Any) -> None:
        raise KeyError("AccessDenied")

    monkeypatch.setattr(SafetensorsWriter, "write_data", refuse)
    saves = BackgroundSaves(Checkpoints("memory://background/checkpoints"))
    saves.save(1, state(1.0), {})
    outcome = saves.wait()
    assert outcome is not None
    assert str(outcome).endswith("/step-00000001: KeyError: 'AccessDenied' (rank 0, which has 147 bytes to write)")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small tmpfs")
def test_a_small_disk_fills_up(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        big = {"model": {"table": torch.arange(500_000, dtype=torch.float32)}}
        saves = BackgroundSaves(Checkpoints(tmp_path, keep=1))
        saves.save(1, big, {})
        saves.save(2, big, {})
        outcome = saves.wait()
        assert outcome is not None
        (failure,) = outcome.failures
        assert (failure.code, failure.needed) == ("ENOSPC", 2_000_000)
        assert 900_000 < (failure.free or 0) < 1_200_000
        assert Checkpoints(tmp_path).latest() == "step-00000001"
        shutil.rmtree(tmp_path / "step-00000001")
        again = saves.again()
        assert again is not None
        assert not again.failures
    finally:
        subprocess.run(["umount", tmp_path], check=True)
