"""Trackers of TorchX: what they are told, and what broken ones cannot do."""

import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from torchx.tracker.backend.fsspec import FsspecTracker

from rankmixer.launch.cli import main
from rankmixer.launch.config.config import load_config
from rankmixer.launch.report import tracking
from rankmixer.launch.report.tracking import RunTracker, tracker_of
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.job import Job
from tests.integration.test_torchx import torchx_run

BROKEN = """
import time
from torchx.tracker.backend.fsspec import FsspecTracker

class Raising(FsspecTracker):
    def __init__(self): pass
    def add_source(self, run_id, source_id, artifact_name=None): pass
    def add_metadata(self, run_id, **metadata): raise RuntimeError("the tracker's disk is full")
    def add_artifact(self, run_id, name, path, metadata=None): raise SystemExit(3)

class Hanging(Raising):
    def add_metadata(self, run_id, **metadata): time.sleep(600)

def raising(config): return Raising()
def hanging(config): return Hanging()
"""


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for TorchX's own tracker, which the environment then names as a scheduler would."""
    folder = tmp_path / "records"
    folder.mkdir()
    (tmp_path / "fsspec.conf").write_text(f"protocol=file\nroot_path={folder}\n")
    monkeypatch.setenv("TORCHX_TRACKERS", "fsspec")
    monkeypatch.setenv("TORCHX_TRACKER_FSSPEC_CONFIG", str(tmp_path / "fsspec.conf"))
    monkeypatch.setenv("TORCHX_JOB_ID", "local://torchx/job-1")
    return folder


def recorded(folder: Path) -> FsspecTracker:
    return FsspecTracker(fsspec.filesystem("file"), str(folder))


def leave_a_report(job: Job) -> None:
    (job.folder / "run").mkdir()
    (job.folder / "run" / "report.html").write_text("<html>")


def check_a_run(tracker: FsspecTracker, run_id: str, job: Job) -> None:
    metadata = tracker.metadata(run_id)
    assert metadata["optimizer.clip_norm"] == 1.0
    assert metadata["run.directory"] == str(job.folder / "run")
    trained = Schema.load(str(job.folder / "run" / "checkpoints" / "schema" / "schema.yaml"))
    assert metadata["feature_schema"] == trained.digest()
    assert metadata["checkpoints"] == f"{job.folder}/run/checkpoints"
    assert metadata["start.0.world_size"] == 1
    assert str(metadata["start.0.versions.torch"]).startswith("2.")
    lines = read_log(str(job.folder / "run"))
    (finish,) = (line for line in lines if line["kind"] == "finish")
    told = {*finish, "checkpoint"} - {"kind", "step", "time"}
    assert metadata["finish.checkpoint"] == f"{job.folder}/run/checkpoints/step-00000012"
    assert metadata["status"] == "FINISHED"
    assert not any(key.startswith("train.") and key[6].isdigit() for key in metadata)
    assert {key for key in metadata if key.startswith("finish.")} == {f"finish.{key}" for key in told}
    assert metadata["finish.click/auc"] == finish["click/auc"]
    for step in (4, 6, 8, 12):
        (line,) = (line for line in lines if (line["kind"], line["step"]) == ("evaluate", step))
        assert metadata[f"evaluate.{step}.click/auc"] == line["click/auc"]
    artifacts = {name: artifact.path for name, artifact in tracker.artifacts(run_id).items()}
    # Files, no folder: a tracker may upload what it is given, and all below it.
    assert artifacts == {name: str(job.folder / "run" / name) for name in ("report.html", "log.jsonl")}


@pytest.mark.filterwarnings("ignore")  # the command silences libraries itself, in a process of its own
def test_a_job_tells_its_tracker_and_survives_broken_ones(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_trackers.py").write_text(BROKEN)
    (tmp_path / "unimportable.py").write_text("raise OSError('no network')")
    monkeypatch.syspath_prepend(str(tmp_path))
    others = ["unimportable:create", "nowhere:create", "broken_trackers:raising", "broken_trackers:hanging"]
    monkeypatch.setenv("TORCHX_TRACKERS", ",".join([*others, "fsspec"]))
    monkeypatch.setenv("TORCHX_PARENT_RUN_ID", "local://torchx/parent")
    monkeypatch.setattr(tracking, "SECONDS", 2.0)
    job = Job(tmp_path)
    leave_a_report(job)
    assert main(["train", "--config", str(job.config)]) == 0
    printed = capfd.readouterr()
    tracker = recorded(records)
    check_a_run(tracker, "local://torchx/job-1", job)
    assert [source.source_run_id for source in tracker.sources("local://torchx/job-1")] == ["local://torchx/parent"]
    for warning in (
        "tracker unimportable:create: OSError: no network",
        "tracker nowhere:create: ModuleNotFoundError: No module named 'nowhere'",
        "tracker broken_trackers:raising: RuntimeError: the tracker's disk is full",
        "tracker broken_trackers:hanging: has not recorded everything 2 s after the end",
    ):
        assert printed.err.count(f"warning: {warning}; training goes on\n") == 1, printed.err
    assert printed.err.count("warning: tracker") == len(others)


def test_a_trackers_process_that_does_not_read_is_given_up(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = RunTracker(load_config(str(Job(tmp_path).config)))
    process = tracker._process
    assert process is not None
    process.send_signal(19)  # SIGSTOP
    for step in range(9999):
        tracker.event("evaluate", step, {"auc": 0.5, "note": "x" * 999})
        if tracker._process is None:
            break
    assert process.returncode == -9
    tracker.close()
    assert capfd.readouterr().err.count("warning: the trackers' process: ") == 1


def test_one_that_has_been_killed_too(tmp_path: Path, records: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = RunTracker(load_config(str(Job(tmp_path).config)))
    assert tracker._process is not None
    tracker._process.kill()
    tracker._process.wait()
    tracker.event("evaluate", 1, {"auc": 0.5})
    tracker.close()
    assert "warning: the trackers' process: [Errno 32] Broken pipe" in capfd.readouterr().err


def test_what_was_told_is_recorded_after_the_rank_is_gone(tmp_path: Path, records: Path) -> None:
    job = Job(tmp_path)
    killed = "import os, signal; from rankmixer.launch.config.config import load_config; "
    killed += "from rankmixer.launch.report.tracking import tracker_of; "
    killed += f"tracker_of(load_config({str(job.config)!r})).event('evaluate', 7, {{'auc': 0.5}}); "
    killed += "os.kill(0, signal.SIGTERM)"  # the whole process group, as a scheduler does
    assert subprocess.run([sys.executable, "-c", killed], start_new_session=True).returncode == -15
    for _ in range(3000):  # five minutes, which only a fault takes
        if recorded(records).metadata("local://torchx/job-1").get("evaluate.7.auc") == 0.5:
            return
        time.sleep(0.1)
    raise AssertionError("not recorded")


def test_without_trackers_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHX_TRACKERS", raising=False)
    assert tracker_of(load_config(str(Job(tmp_path).config))) is None


@pytest.mark.long
def test_torchx_run_with_a_tracker_in_its_configuration(tmp_path: Path, records: Path) -> None:
    job = Job(tmp_path)
    leave_a_report(job)
    section = f"[torchx:tracker]\nfsspec =\n\n[tracker:fsspec]\nconfig = {tmp_path / 'fsspec.conf'}\n"
    done = torchx_run(job, "rankmixer.train", "-j", "1x1", "--config", str(job.config), configuration=section)
    assert done.returncode == 0, done.stderr
    (run_id,) = recorded(records).run_ids()
    assert run_id.startswith("local_cwd://torchx/")
    check_a_run(recorded(records), run_id, job)
