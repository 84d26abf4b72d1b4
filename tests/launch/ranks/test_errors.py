import errno
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from rankmixer.launch.config.config import load_config
from rankmixer.launch.ranks import errors
from rankmixer.launch.ranks.errors import JobFailed, PeerFailed, run_reporting_errors
from rankmixer.pipeline.base.collective import together

PRINTS = [
    sys.executable,
    "-c",
    "from rankmixer.launch.ranks.errors import run_reporting_errors; "
    "from rankmixer.launch.report.output import print_result; "
    "exit(run_reporting_errors(lambda: print_result({'auc': 0.5})))",
]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "SECONDS_TO_BE_STOPPED", 0.0)
    for name in ("ERROR_FILE", "RESTART_COUNT", "MAX_RESTARTS"):
        monkeypatch.delenv(f"TORCHELASTIC_{name}", raising=False)


def test_the_users_mistake_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reporting_errors(lambda: print(load_config("nowhere.yaml"))) == 2
    message = capsys.readouterr().err
    assert message.startswith("rankmixer: error: nowhere.yaml: cannot be read")
    assert "Traceback" not in message


def test_a_librarys_value_error_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reporting_errors(lambda: torch.optim.SGD([], lr=-1.0) and None) == 1  # type: ignore[arg-type]
    assert "Traceback" in capsys.readouterr().err


def test_a_worker_speaks_through_torchelastics_error_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    monkeypatch.setenv("RANK", "1")
    assert run_reporting_errors(lambda: print(load_config("nowhere.yaml"))) == 2
    record = json.loads(path.read_text())["message"]
    assert record["message"].startswith("rankmixer: error: nowhere.yaml")
    assert "py_callstack" not in record["extraInfo"]
    assert capsys.readouterr().err == ""


def test_what_the_agent_would_keep_to_itself_is_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    for restarts, said in ((0, "restart 1 of 2"), (1, "restart 2 of 2")):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        run_reporting_errors(lambda: print(load_config("nowhere.yaml")))
        mistake, again = capsys.readouterr().err.splitlines()
        assert mistake.startswith("rankmixer: error: nowhere.yaml")
        assert said in again
        assert not path.exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    run_reporting_errors(lambda: print(load_config("nowhere.yaml")))
    assert capsys.readouterr().err == ""
    assert path.exists()


def test_a_rank_whose_peer_failed_lets_that_one_speak_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(errors.time, "sleep", waits.append)
    monkeypatch.setattr(errors, "SECONDS_TO_BE_STOPPED", 8.0)

    def fail(error: Exception) -> None:
        raise error

    for rank, error in (
        ("0", JobFailed("rank 1 did not answer")),
        ("1", JobFailed("rank 0 is late")),
        ("0", PeerFailed("x")),
    ):
        monkeypatch.setenv("RANK", rank)
        assert run_reporting_errors(partial(fail, error)) == 1
        assert capsys.readouterr().err == f"rankmixer: error: {error}\n"
    assert waits == [4.0, 8.0], "rank 0 at once, other ranks later, who has it from another rank last"


def test_what_the_system_refuses_is_one_sentence_and_status_1() -> None:
    with open("/dev/full", "ab") as full:
        done = subprocess.run(PRINTS, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("rankmixer: error: stdout: No space left on device; free some space there")
    assert len(done.stderr.splitlines()) == 1


def test_files_that_a_write_error_does_not_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")

    def write_bytes() -> None:
        with open(str(tmp_path / "log.jsonl"), "ab", buffering=0) as log:
            log.write(b"{}")

    def write_text() -> None:
        file = tmp_path / "log.jsonl"
        with file.open("a") as log:
            log.write("{}")

    def write_elsewhere() -> None:
        def library(where: str) -> None:
            raise OSError(errno.ENOSPC, "Error writing bytes to file")

        library(f"{tmp_path}/log.jsonl")

    for write in (write_bytes, write_text, write_elsewhere):
        assert run_reporting_errors(write) == 1
        said = capsys.readouterr().err
        assert said.startswith(
            f"rankmixer: error: {tmp_path}/log.jsonl: No space left on device; free some space there"
        )


def test_a_file_that_the_error_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").mkdir()

    def write() -> None:
        (tmp_path / "log.jsonl").write_text("{}")

    assert run_reporting_errors(write) == 1
    assert capsys.readouterr().err.startswith(
        f"rankmixer: error: {tmp_path}/log.jsonl: Is a directory; a folder stands"
    )


def test_a_rank_says_what_the_system_refused_another(capsys: pytest.CaptureFixture[str]) -> None:
    def read() -> None:
        together("cannot read it", lambda: Path("/nowhere").read_text())

    assert run_reporting_errors(read) == 1
    said = capsys.readouterr().err
    assert said.startswith("rankmixer: error: cannot read it: FileNotFoundError: [Errno 2] No such file or directory: ")
    assert "'/nowhere'; it was there, or its folder is missing" in said


def test_other_errors_of_the_system_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError("libsomething.so: cannot open shared object file")

    assert run_reporting_errors(fail) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(PRINTS, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_rank_is_silent_whose_agent_prints_what_its_peer_says(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise PeerFailed("rank 1 failed", is_said_here=True)

    assert run_reporting_errors(fail) == 1
    assert capsys.readouterr().err == ""


def test_a_mistake_is_one_sentence_where_the_project_is_reached_through_a_link(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    for folder in ("rankmixer", "rankmixer_head"):
        (tmp_path / folder).symlink_to(root / folder)
    command = [sys.executable, "-m", "rankmixer", "train", "--config", "nowhere.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("rankmixer: error: nowhere.yaml: cannot be read")
