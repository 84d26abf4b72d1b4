"""`rankmixer checkpoint list | verify | show | prune`, on local disk and on another filesystem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rankmixer.launch.cli import main
from rankmixer.launch.commands import checkpoint_command
from rankmixer.launch.ranks.run_lock import FileLock
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from tests.pipeline.checkpoint.test_checkpoint import state
from tests.pipeline.checkpoint.test_damage import change

META = {"position": {"step": 3, "row": 96}, "evaluation": {"auc": 0.5}, "world_size": 2, "versions": {"torch": "2.13"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints, the first the best; a fourth was cut short, a fifth set aside."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=9)
    for step, metric in ((1, 0.9), (2, None), (3, 0.5), (5, None)):
        checkpoints.save(step, state(float(step)), META, metric=metric)
    folder = tmp_path / "run" / "checkpoints"
    (folder / "step-00000004").mkdir()
    (folder / "step-00000004" / "rank-00000.safetensors").write_bytes(b"half")
    change(folder / "step-00000005" / "meta.json")
    checkpoints.whole("latest")
    return tmp_path / "run"


def found(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main(["checkpoint", *arguments, "--json"]) == status
    return dict(json.loads(capsys.readouterr().out))


def test_list(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-00000002" / "meta.json").unlink()
    entries = found(capsys, "list", str(run))["checkpoints"]
    assert [
        (entry["name"], entry["state"], entry.get("metric"), entry["best"], entry["latest"]) for entry in entries
    ] == [
        ("step-00000001", "whole", 0.9, True, False),
        ("step-00000002", "damaged", None, False, False),
        ("step-00000003", "whole", 0.5, False, True),
        ("step-00000004", "cut short", None, False, False),
        ("damaged-step-00000005", "set aside", None, False, False),
    ]
    assert "step-00000002/meta.json: found no such file" in entries[1]["found"]
    assert entries[0]["bytes"] == sum(file.stat().st_size for file in (run / "checkpoints" / "step-00000001").iterdir())
    assert 0 <= entries[0]["age_seconds"] < 600
    assert main(["checkpoint", "list", str(run / "checkpoints")]) == 0
    text = capsys.readouterr().out
    assert "best" in text
    assert "cut short" in text


def test_verify(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert found(capsys, "verify", str(run))["damaged"] == 0
    damaged = run / "checkpoints" / "step-00000002" / "rank-00000.safetensors"
    change(damaged)
    assert found(capsys, "verify", str(run / "checkpoints" / "step-00000001"))["damaged"] == 0
    assert main(["checkpoint", "verify", str(run), "--json"]) == 1
    said = capsys.readouterr()
    assert [entry["whole"] for entry in json.loads(said.out)["checkpoints"]] == [True, False, True]
    assert f"rankmixer: error: 1 of 3 checkpoints are damaged: {damaged}: found checksum" in said.err


@pytest.mark.parametrize("action", ["list", "verify", "show"])
def test_where_the_checkpoints_are_stands_whole_on_a_line(
    action: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", action, str(run)]) == 0
    assert str(run / "checkpoints") in capsys.readouterr().out.splitlines()[0]


def test_show(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = found(capsys, "show", str(run))
    assert shown["step"] == 3
    assert {key: shown[key] for key in META} == META
    weight = shown["tensors"]["model.linear.weight"]
    assert (weight["dtype"], weight["shape"], weight["sharding"], weight["bytes"]) == ("F32", [3, 5], "whole", 60)
    assert main(["checkpoint", "show", str(run / "checkpoints" / "step-00000001")]) == 0
    assert "optimizer.state.linear.weight.exp_avg" in capsys.readouterr().out
    change(run / "checkpoints" / "step-00000003" / "tensors.json")
    assert main(["checkpoint", "show", str(run)]) == 2
    assert "tensors.json: found checksum" in capsys.readouterr().err
    assert main(["checkpoint", "show", str(run / "nowhere")]) == 2
    assert "nowhere: found no checkpoint; expected the directory of a run" in capsys.readouterr().err


def test_prune(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    dry = found(capsys, "prune", str(run), "--keep", "1", "--dry-run")
    assert [entry["name"] for entry in dry["removed"]] == ["step-00000002", "step-00000004"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    lock = FileLock(str(run))
    assert lock.take() is None
    assert main(["checkpoint", "prune", str(run), "--keep", "1"]) == 2
    assert "is in use by host " in capsys.readouterr().err
    lock.release()
    assert main(["checkpoint", "prune", str(run), "--keep", "1"]) == 0
    assert "removed step-00000002, step-00000004, 0.0 MB" in capsys.readouterr().out
    left = ["damaged-step-00000005", "step-00000001", "step-00000003"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == left
    for arguments, error in [
        ([str(run), "--keep", "0"], "--keep is 0, expected at least 1"),
        ([str(run / "checkpoints" / "step-00000001"), "--keep", "1"], "is one checkpoint; name its run"),
    ]:
        assert main(["checkpoint", "prune", *arguments]) == 2
        assert error in capsys.readouterr().err


def test_another_filesystem(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://command/checkpoints"
    for step in (1, 2):
        Checkpoints(url, keep=9).save(step, state(step), META)
    assert [entry["state"] for entry in found(capsys, "list", "memory://command")["checkpoints"]] == ["whole", "whole"]
    assert found(capsys, "verify", f"{url}/step-00000001")["damaged"] == 0
    monkeypatch.setattr(checkpoint_command, "is_held", lambda directory: None)  # a lease is watched for a minute
    assert len(found(capsys, "prune", url, "--keep", "1")["removed"]) == 1
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
