"""A training job whose disk fails: it says so, goes on, tries again, and claims nothing that is not there."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankmixer.launch.config.config import load_config
from rankmixer.launch.job import saving
from rankmixer.launch.job.rollback import Rollbacks
from rankmixer.launch.job.save_report import SaveReport
from rankmixer.launch.job.train import Training
from rankmixer.launch.ranks.distributed import process_group
from rankmixer.launch.ranks.errors import JobFailed
from rankmixer.launch.ranks.run_lock import RunLock
from rankmixer.launch.rows.learnt import with_schema_to_train
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsWriter
from rankmixer.pipeline.checkpoint.save import Failure, Outcome
from rankmixer.pipeline.journal.journal import Journal, read_log
from tests.helpers.job import Job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "RETRY_SECONDS", (0.0, 0.0))


def train(job: Job, run: str, at: Callable[[Training, int], None]) -> dict[str, Any]:
    """Train in this process, calling `at` after every step."""
    config = load_config(str(job.config), [f"run.directory={job.folder}/{run}", "train.evaluate_every=2", "run.keep=2"])
    with process_group(config) as ranks, RunLock(config) as lock:
        training = Training(with_schema_to_train(config), ranks, Rollbacks(config, ranks), lock)
        report = training.loop.report

        def then(step: int, **values: Any) -> None:
            report(step, **values)
            at(training, step)

        training.loop.report = then
        return training.run()


def events(job: Job, run: str, *kinds: str) -> list[tuple[int, str]]:
    """Step and name or message of records, without those of training's health."""
    lines = [line for line in read_log(str(job.folder / run)) if line["kind"] in kinds]
    told = [line for line in lines if line["kind"] == "checkpoint" or "name" not in line]
    return [(line["step"], line.get("name") or line["message"]) for line in told]


def failing(monkeypatch: pytest.MonkeyPatch, steps: range) -> Callable[[Training, int], None]:
    """The disk is full from one step to another."""
    original = SafetensorsWriter.write_data
    step = 0

    def write(self: SafetensorsWriter, *args: Any) -> Any:
        if step in steps:
            raise OSError(errno.ENOSPC, "full")
        return original(self, *args)

    monkeypatch.setattr(SafetensorsWriter, "write_data", write)

    def at(training: Training, now: int) -> None:
        nonlocal step
        training.saver.wait()  # or the save before would meet the disk of this step
        step = now

    return at


def test_a_disk_that_is_full_for_a_while(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(job, "full", failing(monkeypatch, range(4, 9)))
    assert result["steps"] == 12
    happened = events(job, "full", "checkpoint", "warning")
    steps = [(step, text.partition(":")[0]) for step, text in happened]
    path = f"{job.folder}/full/checkpoints"
    assert steps == [
        (2, "step-00000002"),
        (4, f"cannot save {path}/step-00000004"),
        (10, "checkpoints are written again, after 3 that could not be written"),
        (10, "step-00000010"),
        (12, "step-00000012"),
    ]
    said = happened[1][1]
    assert "No space left on device (rank 0, which has " in said
    assert "training goes on, and the next checkpoint is tried: free space there, or lower run.keep" in said
    assert capsys.readouterr().err.count("No space left on device") == 1
    lines = [line for line in read_log(str(job.folder / "full")) if line["kind"] == "checkpoint"]
    line = next(line for line in lines if line["step"] == 10)
    assert line["bytes"] == sum(file.stat().st_size for file in saved_files(Path(path, "step-00000010")))
    assert line["bytes_per_second"] == pytest.approx(line["bytes"] / line["seconds"])


def saved_files(checkpoint: Path) -> list[Path]:
    return [file for file in checkpoint.iterdir() if file.name != "manifest.json"]


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    message = (
        r"cannot save .*step-00000012: No space left on device .*, after 3 attempts. It was to be the last of the job, "
        "and what was trained since is lost: step-00000010 is the last good checkpoint. Free space there"
    )
    with pytest.raises(JobFailed, match=message):
        train(job, "never", failing(monkeypatch, range(12, 99)))
    assert "finish" not in {line["kind"] for line in read_log(str(job.folder / "never"))}


def test_a_last_checkpoint_is_tried_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = SafetensorsWriter.write_data, []

    def write(self: SafetensorsWriter, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # the last of six
            raise OSError(errno.ENOSPC, "full")
        return original(self, *args)

    monkeypatch.setattr(SafetensorsWriter, "write_data", write)
    assert train(job, "again", lambda training, step: None)["steps"] == 12
    assert events(job, "again", "checkpoint")[-1] == (12, "step-00000012")
    assert len(calls) == 7


def test_a_run_whose_directory_is_deleted_is_whole_again_at_the_next_checkpoint(job: Job) -> None:
    def delete(training: Training, step: int) -> None:
        if step == 7:
            training.saver.wait()
            shutil.rmtree(job.folder / "deleted")

    result = train(job, "deleted", delete)
    left = job.folder / "deleted" / "checkpoints"
    assert sorted(path.name for path in left.iterdir()) == ["schema", "step-00000010", "step-00000012"]
    (remark,) = (text for step, text in events(job, "deleted", "warning") if step == 8)
    assert remark == f"{left}: step-00000004, step-00000006 went while the job runs, and not by it"
    assert (left / "schema" / "asked.json").exists()
    undisturbed = train(job, "undisturbed", lambda training, step: None)
    assert result == undisturbed
    for file in ("schema.yaml", "asked.json"):
        again = (job.folder / "undisturbed" / "checkpoints" / "schema" / file).read_text()
        assert (left / "schema" / file).read_text() == again


def test_each_cause_is_said_once(tmp_path: Path) -> None:
    def failed(step: int, rank: int, code: str) -> Outcome:
        return Outcome("name", "path", step, failures=[Failure(rank, code, code, 1, None)])

    with Journal(str(tmp_path), quiet=True) as journal:
        report = SaveReport(journal)
        report.tell_slow(1, 0.5)
        report.tell_slow(2, 2.5)
        report.tell_slow(3, 2.5)
        for step, (rank, code) in enumerate([(0, "EROFS"), (0, "EROFS"), (1, "EROFS"), (1, "Throttled")], start=4):
            report.tell(failed(step, rank, code))
        for step in (8, 9):
            report.tell(Outcome("name", "path", step, num_bytes=1000, seconds=1.0, waiting=[0, 1]))
    lines = [line for line in read_log(str(tmp_path)) if line["kind"] == "warning"]
    said = {line["step"]: line["message"] for line in lines}
    assert list(said) == [2, 4, 6, 7, 8]
    assert said[2].startswith("training waited 2.5 s to save, for the checkpoint before was still being written")
    assert said[4].endswith("is tried: mount it to be written")
    assert said[8].startswith("training waits while rank 0, 1 writes a checkpoint: the host has not the memory for a")
    assert said[7].endswith("is tried: see to it that its filesystem answers")
