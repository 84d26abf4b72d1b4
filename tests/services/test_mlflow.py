"""Runs on a real MLflow server: what they look like there, and what a server that stalls or dies costs.

`make test-services` installs MLflow (requirements/services.txt), in a folder of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rankmixer.launch.report.mlflow_tracker import MLflowTracker
from tests.helpers.job import Job
from tests.services.ceph import free_ports

if TYPE_CHECKING:
    from mlflow.entities import Run

HAS_MLFLOW = find_spec("mlflow") is not None
pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(not HAS_MLFLOW, reason="mlflow not found; run `make test-services`"),
    pytest.mark.filterwarnings("ignore"),  # of MLflow and what it imports
]
SECONDS_TO_START = 180.0
STEPS = [4, 6, 8, 12]  # of the job's evaluations


class Server:
    """An `mlflow server` with its store in a folder."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        # It ends with the test, even if that is killed: `timeout` passes the signal on to all that MLflow starts.
        command = ["setpriv", "--pdeathsig", "TERM", "timeout", "--kill-after=5", "3600"]
        command += [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", f"{folder}/files"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1"],
                cwd=folder,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,  # its workers end with it
            )
        until = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"MLflow has not started: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def runs(self, experiment: str) -> list[Run]:
        """The runs of an experiment, the oldest first."""
        from mlflow import MlflowClient

        client = MlflowClient(self.url)
        found = client.get_experiment_by_name(experiment)
        return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time"])) if found else []

    def curve(self, run: Run, metric: str) -> list[tuple[int, float]]:
        from mlflow import MlflowClient

        history = MlflowClient(self.url).get_metric_history(run.info.run_id, metric)
        return sorted((point.step, point.value) for point in history)

    def files(self, run: Run) -> list[str]:
        from mlflow import MlflowClient

        return sorted(file.path for file in MlflowClient(self.url).list_artifacts(run.info.run_id))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        server = Server(tmp_path_factory.mktemp("mlflow"))
        yield server
        server.stop()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Job:
    """A job whose environment names the tracker, as TorchX would."""
    monkeypatch.setenv("TORCHX_TRACKERS", "rankmixer.launch.report.mlflow_tracker:create")
    monkeypatch.setenv("RANKMIXER_TRACKER_SECONDS", "200")  # MLflow's import takes some on a busy machine
    monkeypatch.setenv("TORCHX_JOB_ID", "local://torchx/job-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return Job(tmp_path)


def test_a_run_that_finished(job: Job, server: Server) -> None:
    result = job.result(2, "train")
    (run,) = server.runs(job.folder.name)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["train.epochs"] == "2"
    assert run.data.params["data.train"] == str(job.folder / "train")
    assert run.data.tags["start.world_size"] == "2"
    assert dict(server.curve(run, "train/loss")) == pytest.approx(job.losses())
    curve = server.curve(run, "evaluate/click/auc")
    assert curve[-1][1] == pytest.approx(result["click/auc"])
    assert len(curve) > 1
    assert run.data.tags["finish.checkpoint"].startswith(f"{job.folder}/run/checkpoints/step-")
    assert server.files(run) == ["config.json", "log.jsonl", "report.html"]  # no weights


def test_a_run_that_resumes_goes_on_there(job: Job, server: Server) -> None:
    job.result(1, "train", "train.epochs=1")
    job.result(1, "train")
    (run,) = server.runs(job.folder.name)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "1"
    assert run.data.tags["resumed.6.train.epochs"] == "2"
    assert [step for step, _ in server.curve(run, "evaluate/click/auc")] == STEPS
    assert [step for step, _ in server.curve(run, "train/loss")] == list(range(1, 13))


def test_a_run_whose_mlflow_run_was_deleted_begins_another(job: Job, server: Server) -> None:
    from mlflow import MlflowClient

    job.result(1, "train", "train.epochs=1")
    (run,) = server.runs(job.folder.name)
    MlflowClient(server.url).delete_run(run.info.run_id)
    job.result(1, "train")
    (other,) = server.runs(job.folder.name)
    assert other.info.run_id != run.info.run_id
    assert other.info.status == "FINISHED"


def started(job: Job, *overrides: str) -> subprocess.Popen[str]:
    """A job that trains for long; returns when its first checkpoint is whole."""
    command = [sys.executable, "-m", "rankmixer", "train", "--config", str(job.config), "train.epochs=9999"]
    process = subprocess.Popen([*command, *overrides], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("checkpoint at step"):
            return process
    raise AssertionError("no checkpoint")


def ended(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = process.stderr.read()
    process.wait(300)
    process.stderr.close()
    return said


def wait_for(server: Server, job: Job, status: str) -> Run:
    for _ in range(300):
        runs: list[Any] = server.runs(job.folder.name)
        if runs and runs[-1].info.status == status:
            return runs[-1]
        time.sleep(0.2)
    raise AssertionError(f"{[run.info.status for run in runs]}, expected {status}")


def test_one_that_was_preempted_is_killed_and_goes_on(job: Job, server: Server) -> None:
    process = started(job)
    process.terminate()
    assert "preempted by SIGTERM" in ended(process)
    assert process.returncode == 75
    run = wait_for(server, job, "KILLED")
    assert run.data.tags["preempted.signal"] == "SIGTERM"
    process = started(job)
    process.kill()  # without a word
    ended(process)
    again = wait_for(server, job, "FAILED")
    assert again.info.run_id == run.info.run_id


def test_one_that_failed_says_so(job: Job, server: Server) -> None:
    done = job.command(1, "train", "optimizer.dense.lr=1e30", "optimizer.clip_norm=null", "train.evaluate_every=null")
    assert done.returncode == 2, done.stderr  # it diverged
    (run,) = server.runs(job.folder.name)
    assert run.info.status == "FAILED"


def test_long_values_are_cut_and_kept_whole_in_a_file(job: Job, server: Server) -> None:
    from mlflow.artifacts import load_dict

    files = [str(job.folder / "train" / name) for name in ("a.parquet", "b.parquet")] * 80
    assert len(str(files)) > 6000
    job.result(1, "train", f"data.train={files}", "train.max_steps=1")
    (run,) = server.runs(job.folder.name)
    value = run.data.params["data.train"]
    assert len(value) == 6000
    assert value.endswith(" characters)")
    assert str(files[-1]) in str(load_dict(f"{run.info.artifact_uri}/config.json")["data.train"])


def test_metrics_wait_for_a_server_that_does_not_answer(
    job: Job, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr("rankmixer.launch.report.mlflow_tracker.METRICS_HELD", 3)
    tracker = MLflowTracker()
    tracker.begin(str(job.folder / "run"), {"a": 1}, {})
    with monkeypatch.context() as patched:
        patched.setattr(tracker._client, "log_batch", refuse)
        for step in range(1, 5):
            tracker.event("train", step, float(step), {"loss": float(step)})
            with pytest.raises(ConnectionError):
                tracker.flush()
    tracker.close("FINISHED")
    (run,) = server.runs(job.folder.name)
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})
    assert server.curve(run, "train/loss") == [(2, 2.0), (3, 3.0), (4, 4.0)]


def test_a_server_that_stalls_or_dies_costs_a_warning(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = Server(tmp_path_factory.mktemp("mlflow-of-its-own"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own.url)
    monkeypatch.setenv("RANKMIXER_TRACKER_SECONDS", "5")
    try:
        own.signal(signal.SIGSTOP)
        done = job.command(1, "train", "train.epochs=1")
        assert done.returncode == 0, done.stderr
        warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: tracker launch.mlflow")]
        assert 1 <= len(warnings) <= 2
        assert all(line.endswith("; training goes on") for line in warnings)
        own.stop()
        done = job.command(1, "train", "train.epochs=1", f"run.directory={job.folder}/other")
        assert done.returncode == 0, done.stderr
        warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: tracker launch.mlflow")]
        assert 1 <= len(warnings) <= 2
    finally:
        own.stop()
