"""One run directory, one job: by an open file on local disks, by a lease elsewhere."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rankmixer.launch.config.config import load_config
from rankmixer.launch.ranks import lease, run_lock
from rankmixer.launch.ranks.lease import Lease, identity
from rankmixer.launch.ranks.run_lock import FileLock, RunLock, is_held, named
from tests.helpers.job import Job

HOLD = """
import sys, time
from rankmixer.launch.ranks.run_lock import lock_of
lock = lock_of(sys.argv[1])
print(lock.take(), flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "SECONDS_TO_END", 0.3)
    for name, seconds in (("BEAT", 0.1), ("LAPSE", 3.0), ("SETTLE", 0.1)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)


def test_a_second_job_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    job = Job(tmp_path)
    config = load_config(str(job.config), [])
    run = str(tmp_path / "run")
    assert is_held(run) is None
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "None\n"
        (tmp_path / "run" / "log.jsonl").write_text('{"kind": "train", "step": 1234, "time": 0}\n')
        who = rf"host {os.uname().nodename}, pid {first.pid}, since [0-9: -]{{19}}, at step 1,234"
        with pytest.raises(ValueError, match=rf"^cannot train: {run} is in use by {who}; wait for that job's end"):
            RunLock(config).__enter__()
        assert re.fullmatch(who, is_held(run) or "")
        first.kill()
        with RunLock(config) as lock:  # at once, or while it ends
            lock.check()
            assert f"pid {os.getpid()}" in (is_held(run) or "")
    assert is_held(run) is None


def test_a_directory_deleted_under_its_run_is_locked_again_unless_another_came_first(tmp_path: Path) -> None:
    ours, other = FileLock(str(tmp_path / "run")), FileLock(str(tmp_path / "run"))
    assert ours.take() is None
    (tmp_path / "run" / "lock").unlink()
    (tmp_path / "run").rmdir()
    assert ours.check() is None
    (tmp_path / "run" / "lock").unlink()
    assert other.take() is None
    assert (ours.check() or "").startswith(f"host {os.uname().nodename}, pid {os.getpid()}, since ")
    ours.release()
    other.release()


@pytest.fixture
def path() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    yield "/lease/lock"
    filesystem.rm("/lease", recursive=True)


def lease_of(host: str, path: str) -> Lease:
    return Lease(fsspec.filesystem("memory"), path, {"host": host, "pid": 7, "since": "noon"}, named)


def test_a_lease_that_is_renewed_keeps_others_out_and_one_that_lapses_is_taken_over(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (lease_of(host, path) for host in "abc")
    assert first.take() is None
    assert second.take() == second.holder() == "host a, pid 7, since noon"
    assert first.check() is None
    monkeypatch.setattr(first, "_write", lambda: None)  # the laptop sleeps
    assert second.take() is None
    assert f"{path}: no sign of life; taken over" in capsys.readouterr().err
    assert first.check() == "host b, pid 7, since noon"
    first.release()  # another's: it stays
    assert third.holder() == "host b, pid 7, since noon"
    second.release()
    assert third.holder() is None


def test_of_two_that_take_a_lease_at_the_same_time_the_last_has_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (lease_of(host, path) for host in "ab")

    def sleep(_: float) -> None:
        second._write()

    monkeypatch.setattr(lease.time, "sleep", sleep)
    assert first.take() == "host b, pid 7, since noon"


def test_a_lease_of_a_process_of_this_host_that_was_killed_does_not_wait(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen(["sleep", "600"])
    holder = {"host": "here", "pid": process.pid, "since": "noon", "process": identity(process.pid)}
    filesystem = fsspec.filesystem("memory")
    Lease(filesystem, path, holder, named)._write()
    assert lease._has_died_here(holder) is False
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lease_of("here", path).take() is None
    assert capsys.readouterr().err == ""


def test_other_file_systems_and_urls_get_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(run_lock.lock_of("memory://runs/1"), Lease)
    assert isinstance(run_lock.lock_of(str(tmp_path)), FileLock)
    monkeypatch.setattr(run_lock, "file_system_of", lambda path: "nfs4")
    assert isinstance(run_lock.lock_of(str(tmp_path)), Lease)
    held: Any = run_lock.lock_of(str(tmp_path / "run"))
    assert held.take() is None
    for _ in range(3000):  # five minutes, which only a fault takes
        if json.loads((tmp_path / "run" / "lock").read_text() or "{}").get("beat", 0) > 0:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("nobody renews the lease")
    held.release()
    assert not (tmp_path / "run" / "lock").exists()
