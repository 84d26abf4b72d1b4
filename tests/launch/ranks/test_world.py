"""A plain `rankmixer train` where the environment still names the ranks of another job."""

import re
import socket
from pathlib import Path

import pytest

from rankmixer.launch.cli import main
from rankmixer.launch.ranks import world
from rankmixer.launch.ranks.errors import report
from rankmixer.launch.ranks.world import HERE, TOGETHER, saying_who_is_waited_for, world_from_environment
from tests.helpers.job import Job

WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TOGETHER, *HERE, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", [*TOGETHER, *HERE])
def test_one_variable_left_over_is_named(name: str) -> None:
    others = ", ".join(other for other in TOGETHER if other != name)
    with pytest.raises(ValueError, match=f"^{name}=1 is in the environment") as refused:
        world_from_environment({name: "1"})
    assert str(refused.value) == (
        f"{name}=1 is in the environment, but not {others}; torchrun sets them together, so they are left over from "
        f"something else. For one process: unset {name}; for several: torchrun --nproc-per-node N -m rankmixer ..."
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment; expected a number. For one process: unset R"),
        ({"RANK": ""}, "RANK is '' in the environment; expected a number"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT is '-1' in the environment; expected a number"),
        ({"RANK": "2"}, "RANK=2 and WORLD_SIZE=2 in the environment contradict each other. For one process: unset"),
        ({"WORLD_SIZE": "0"}, "RANK=0 and WORLD_SIZE=0 in the environment contradict each other"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 and LOCAL_WORLD_SIZE=1 in the environment contradict each other"),
        ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8 and WORLD_SIZE=2 in the environment contradict each other"),
    ],
)
def test_variables_that_contradict_each_other_are_named(changed: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        world_from_environment(WHOLE | changed)


def test_what_launchers_set_is_taken() -> None:
    assert world_from_environment(WHOLE) == (0, 2, 0, 1)
    torchrun = WHOLE | {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert world_from_environment(torchrun) == (1, 2, 1, 2)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_command_ends_in_one_sentence_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, "--config", str(job.config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rankmixer: error: WORLD_SIZE=2 is in the environment, but not RANK, MASTER_ADDR")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_whole_set_left_over_is_named_while_nobody_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(tmp_path)
    with socket.create_server(("localhost", 0)) as one:
        port = str(one.getsockname()[1])
    for name, value in (WHOLE | {"MASTER_PORT": port}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(world, "SECONDS_IN_SILENCE", 0.01)
    assert main(["train", "--config", str(job.config), "run.timeout_seconds=1"]) == 2
    said = capsys.readouterr().err
    assert (
        "rankmixer: waiting up to 1 s for the other ranks, since RANK=0, WORLD_SIZE=2, MASTER_ADDR=localhost, "
        f"MASTER_PORT={port} are in the environment. For one process: unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT; "
    ) in said
    assert "rank 1 has not joined the job after 1 s" in said


def test_nothing_is_said_under_torchrun_or_of_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    monkeypatch.setattr(world.Timer, "start", lambda self: started.append("started"))
    for environment in ({}, WHOLE | {"WORLD_SIZE": "1"}, WHOLE | {"TORCHELASTIC_RUN_ID": "1"}):
        with saying_who_is_waited_for(600.0, environment):
            pass
    assert started == []


def test_an_error_file_of_an_agent_that_has_gone_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    report("rankmixer: error: something")
    assert capsys.readouterr().err == "rankmixer: error: something\n"
