"""A job that failed by the user's mistake is not tried again, until something has changed."""

import json
from pathlib import Path

import pytest

from rankmixer.launch.cli import main
from rankmixer.launch.config.config import load_config
from rankmixer.launch.ranks.retries import check_try, marking_mistakes
from rankmixer.pipeline.base.collective import ElsewhereError
from rankmixer.pipeline.base.errors import DataError, PassingError, StalledError
from tests.helpers.job import Job

RESTARTS = ("SLURM_RESTART_COUNT", "SLURM_JOB_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHX_JOB_ID")


class Run(Job):
    def fail(self, error: ValueError, *overrides: str) -> None:
        (self.folder / "run").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"^bad$"), marking_mistakes(load_config(str(self.config), overrides)):
            load_and_raise(error)

    def try_again(self, *overrides: str) -> None:
        check_try(load_config(str(self.config), overrides))


def load_and_raise(error: ValueError) -> None:
    """Raise as the project's own code does."""
    code = compile("def fail(error):\n    raise error\n", str(Path(check_try.__code__.co_filename)), "exec")
    names: dict[str, object] = {}
    exec(code, names)
    names["fail"](error)  # type: ignore[operator]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in RESTARTS:
        monkeypatch.delenv(name, raising=False)
    return Run(tmp_path)


def test_the_command_refuses_before_any_process_group(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.fail(DataError("bad"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr("rankmixer.launch.ranks.distributed.process_group", None)
    assert main(["train", "--config", str(run.config)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rankmixer: error: not tried again")
    assert f"so does removing {run.folder / 'run' / 'failed.json'}, or starting the command anew" in said


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ({"SLURM_JOB_ID": "7"}, {"SLURM_RESTART_COUNT": "1"}),
        ({"TORCHELASTIC_RESTART_COUNT": "0"}, {"TORCHELASTIC_RESTART_COUNT": "1"}),
        ({"TORCHX_JOB_ID": "kubernetes://torchx/recs:a"}, {}),
    ],
)
def test_a_retry_is_refused_until_the_data_change(
    run: Run, first: dict[str, str], again: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.try_again()
    for name, value in first.items():
        monkeypatch.setenv(name, value)
    run.fail(DataError("bad"))
    for name, value in again.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^not tried again, for nothing has changed since .* with: bad\n"):
            run.try_again()
    file = run.folder / "train" / "a.parquet"
    file.write_bytes(file.read_bytes() + b" ")
    run.try_again()
    assert not (run.folder / "run" / "failed.json").exists()


def test_a_retry_goes_on_with_another_configuration_or_number_of_ranks(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run.fail(DataError("bad"))
    run.try_again("optimizer.dense.lr=0.5")
    run.fail(DataError("bad"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    run.try_again()


def test_a_person_who_starts_the_command_again_is_not_stopped(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.fail(DataError("bad"))
    mark = run.folder / "run" / "failed.json"
    assert json.loads(mark.read_text())["message"] == "bad"
    run.try_again()
    assert not mark.exists()
    assert f"removed {mark}" in capsys.readouterr().err
    # Another job than the one that failed.
    monkeypatch.setenv("TORCHX_JOB_ID", "kubernetes://torchx/recs:a")
    run.fail(DataError("bad"))
    monkeypatch.setenv("TORCHX_JOB_ID", "kubernetes://torchx/recs:b")
    run.try_again()


def caused_by_the_disk() -> ValueError:
    error = DataError("bad")
    error.__cause__ = OSError("input/output error")
    return error


@pytest.mark.parametrize(
    "error", [StalledError("bad"), PassingError("bad"), ElsewhereError("bad"), caused_by_the_disk()]
)
def test_what_may_pass_leaves_no_mark(run: Run, error: ValueError) -> None:
    run.fail(error)
    assert not (run.folder / "run" / "failed.json").exists()


def test_what_is_not_the_users_mistake_leaves_no_mark(run: Run) -> None:
    with pytest.raises(ValueError, match="invalid literal"), marking_mistakes(load_config(str(run.config), [])):
        int("one")
    assert not (run.folder / "run" / "failed.json").exists()
