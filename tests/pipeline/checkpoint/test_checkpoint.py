"""Checkpoints in one process: what exists, what is kept, what is refused. With ranks: test_checkpoint_tables.py."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor
from torch.distributed import distributed_c10d

from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsWriter


def state(value: float = 0.0) -> dict[str, Any]:
    return {
        "model": {"linear.weight": torch.full((3, 5), value), "linear.bias": torch.full((3,), value + 1)},
        "optimizer": {"state": {"linear.weight": {"step": torch.tensor(value), "exp_avg": torch.full((3, 5), -value)}}},
        "random": {"0": torch.full((11,), int(value), dtype=torch.uint8)},
    }


def value_of(loaded: dict[str, Any]) -> float:
    """The value all tensors were made from, after checking that they all were."""
    value = float(loaded["optimizer"]["state"]["linear.weight"]["step"])
    expected = state(value)
    assert torch.equal(loaded["model"]["linear.weight"], expected["model"]["linear.weight"])
    assert torch.equal(loaded["model"]["linear.bias"], expected["model"]["linear.bias"])
    assert torch.equal(loaded["random"]["0"], expected["random"]["0"])
    exp_avg = loaded["optimizer"]["state"]["linear.weight"]["exp_avg"]
    assert torch.equal(exp_avg, expected["optimizer"]["state"]["linear.weight"]["exp_avg"])
    return value


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_pickle(monkeypatch)


def forbid_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was pickled or unpickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("_pickler", "_unpickler"):  # names that the object collectives took at import
        monkeypatch.setattr(distributed_c10d, name, refuse)


@pytest.fixture(params=["local", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "checkpoints") if request.param == "local" else "memory://checkpoints"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.mark.usefixtures("no_pickle")
def test_save_and_load(directory: str) -> None:
    checkpoints = Checkpoints(directory)
    assert checkpoints.names() == []
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    meta = {"position": {"epoch": 1, "row": 4096}, "versions": ["2.13", None], "auc": 0.5}
    assert checkpoints.save(120, state(7.0), meta) == "step-00000120"
    assert checkpoints.names() == ["step-00000120"]
    assert checkpoints.latest() == "step-00000120"
    assert checkpoints.meta("step-00000120") == meta
    loaded = state()
    assert Checkpoints(directory).load("step-00000120", loaded) == meta
    assert value_of(loaded) == 7.0


def test_a_part_is_loaded_by_its_top_level_key_and_converted(directory: str) -> None:
    Checkpoints(directory).save(1, state(7.0), {})
    loaded = {"model": {name: value.double() for name, value in state()["model"].items()}}
    Checkpoints(directory).load("step-00000001", loaded)
    assert torch.equal(loaded["model"]["linear.bias"], torch.full((3,), 8.0, dtype=torch.float64))


def test_keeps_the_last_and_the_best(directory: str) -> None:
    checkpoints = Checkpoints(directory, keep=2)
    for step, metric in [(1, 0.6), (2, 0.9), (3, None), (4, 0.9), (5, float("nan")), (6, 0.7)]:
        checkpoints.save(step, state(step), {"step": step}, metric=metric)
    assert checkpoints.names() == ["step-00000002", "step-00000005", "step-00000006"]
    assert checkpoints.best() == "step-00000002"
    assert checkpoints.latest() == "step-00000006"
    checkpoints.save(7, state(7.0), {}, metric=0.91)
    assert checkpoints.names() == ["step-00000006", "step-00000007"]
    assert checkpoints.best() == "step-00000007"


def test_steps_are_ordered_as_numbers(directory: str) -> None:
    checkpoints = Checkpoints(directory, keep=1)
    checkpoints.save(123456789, state(), {})
    checkpoints.save(99999999, state(), {})  # what was just saved is kept whatever its step
    assert checkpoints.names() == ["step-99999999", "step-123456789"]
    assert checkpoints.latest() == "step-123456789"


def test_saving_a_step_again_replaces_it(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(directory)
    checkpoints.save(3, state(1.0), {"try": 1}, metric=0.5)
    checkpoints.save(3, state(2.0), {"try": 2})
    loaded = state()
    assert checkpoints.load("step-00000003", loaded) == {"try": 2}
    assert value_of(loaded) == 2.0
    assert checkpoints.best() is None

    def kill(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SafetensorsWriter, "write_data", kill)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(3, state(3.0), {})
    again = Checkpoints(directory)
    assert again.load("step-00000003", loaded) == {"try": 2}, "the old one stays, whole"
    assert value_of(loaded) == 2.0


@pytest.mark.parametrize("moment", ["write_data", "finish"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_cut_short_is_no_checkpoint(
    directory: str, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, state(1.0), {})
    original = getattr(SafetensorsWriter, moment)

    def half(self: SafetensorsWriter, *args: Any) -> None:
        original(self, *args)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsWriter, moment, half)
        expected = RuntimeError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(
            expected,
            match=r"cannot save .*step-00000002: No space left on device \(rank 0, which has 147 bytes to write|^$",
        ):
            checkpoints.save(2, state(2.0), {})
    left = "step-00000002" in checkpoints._files.directories()
    assert left == isinstance(error, KeyboardInterrupt)  # an error is cleaned up after, a kill is not
    assert checkpoints.names() == ["step-00000001"]
    assert checkpoints.latest() == "step-00000001"
    with pytest.raises(ValueError, match="has no checkpoint 'step-00000002'; it has step-00000001"):
        checkpoints.load("step-00000002", state())
    checkpoints.save(3, state(3.0), {})
    assert checkpoints._files.directories() == ["step-00000001", "step-00000003"]


def test_a_save_under_way_is_not_taken_for_a_leftover(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, resume = threading.Event(), threading.Event()
    original = SafetensorsWriter.write_data

    def wait(self: SafetensorsWriter, *args: Any) -> Any:
        result = original(self, *args)
        if threading.current_thread() is thread:
            written.set()
            assert resume.wait(30)
        return result

    monkeypatch.setattr(SafetensorsWriter, "write_data", wait)
    thread = threading.Thread(target=lambda: Checkpoints(directory).save(1, state(1.0), {}))
    thread.start()
    assert written.wait(30)
    Checkpoints(directory, keep=1).save(2, state(2.0), {})
    resume.set()
    thread.join(30)
    assert Checkpoints(directory).names() == ["step-00000001", "step-00000002"]


def test_what_cannot_be_removed_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1.0), {})

    def refuse(path: str, recursive: bool) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(checkpoints._files.filesystem, "rm", refuse)
    with pytest.warns(UserWarning, match=r"cannot remove the checkpoint .*step-00000001: read-only"):
        checkpoints.save(2, state(2.0), {})
    assert checkpoints.latest() == "step-00000002"


def replaced(path: str, value: Any) -> dict[str, Any]:
    changed = state()
    *parents, last = path.split("/")
    inner = changed
    for parent in parents:
        inner = inner[parent]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "model/linear.wait",
            torch.zeros(3),
            "model.linear.wait: not in the checkpoint, which has model.linear.weight",
        ),
        ("model/linear.bias", torch.zeros(4), r"model.linear.bias: shape \(3,\) in the checkpoint, \(4,\) here"),
        ("model/linear.bias", None, "nothing here takes model.linear.bias of the checkpoint: was a feature removed"),
        ("optimizer/state", {}, r"nothing here takes .*weight.exp_avg, .*weight.step of the .*needs? init_state\(\)"),
        ("random/0", 3, "random.0 is of type int; the state of a checkpoint is nested dicts of tensors"),
    ],
)
def test_a_state_that_does_not_fit(directory: str, path: str, value: Any, message: str) -> None:
    Checkpoints(directory).save(1, state(1.0), {})
    with pytest.raises(ValueError, match=rf"(?s)cannot load .*step-00000001: .*{message}"):
        Checkpoints(directory).load("step-00000001", replaced(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer/state/linear.weight/step", 3.0, "optimizer.state.linear.weight.step is of type float"),
        ("model/list", [torch.zeros(2)], "model.list is of type list; the state of a checkpoint is nested dicts"),
        ("model/wave", torch.zeros(2, dtype=torch.complex64), "model.wave is of torch.complex64, expected one of"),
    ],
)
def test_a_state_that_cannot_be_saved(directory: str, path: str, value: Any, message: str) -> None:
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, state(1.0), {})
    with pytest.raises(ValueError, match=rf"cannot save .*step-00000001: {message}"):
        checkpoints.save(1, replaced(path, value), {})
    assert value_of_latest(checkpoints) == 1.0


def value_of_latest(checkpoints: Checkpoints) -> float:
    latest = checkpoints.latest()
    assert latest is not None
    loaded = state()
    checkpoints.load(latest, loaded)
    return value_of(loaded)


def test_meta_and_arguments(directory: str) -> None:
    meta: dict[str, Tensor] = {"weight": torch.zeros(2)}
    with pytest.raises(ValueError, match="meta must be JSON: Object of type Tensor is not JSON serializable; tensors"):
        Checkpoints(directory).save(1, state(), meta)
    with pytest.raises(ValueError, match="checkpoints: keep is 0, expected at least 1"):
        Checkpoints(directory, keep=0)
