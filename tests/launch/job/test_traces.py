"""Traces of chosen steps: what is in them, and what happens when there are none."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rankmixer.launch.cli import main
from rankmixer.launch.config.config import ProfileConfig, load_config
from rankmixer.launch.job.traces import NOTHING, StepTrace
from rankmixer.pipeline.journal.journal import read_log
from tests.helpers.job import Job


def warnings_of(run: Path) -> list[str]:
    return [line["message"] for line in read_log(str(run)) if line["kind"] == "warning"]


def train(job: Job, *overrides: str) -> list[str]:
    """Train 6 steps or what is said; the warnings."""
    run = job.folder / "run"
    assert main(["train", "--config", str(job.config), "train.epochs=1", "data.evaluate=null", *overrides]) == 0
    return warnings_of(run)


@pytest.mark.filterwarnings("ignore")  # the command silences libraries itself, in a process of its own
def test_the_steps_asked_for_are_traced(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert train(job, "train.profile.steps=[2,4]", "train.max_steps=5") == []
    traces = tmp_path / "run" / "traces"
    assert [path.name for path in traces.iterdir()] == ["rank-0-steps-2-4.pt.trace.json.gz"]
    (event,) = (line for line in read_log(str(tmp_path / "run")) if line["kind"] == "trace")
    assert event["step"] == 4
    with gzip.open(event["path"]) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    spans = {event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in events if event.get("ph") == "X"}
    assert [name for name in sorted(spans) if name.startswith("step ")] == ["step 2", "step 3", "step 4"]
    begin, end = spans["step 3"]
    inside = {name for name, (start, stop) in spans.items() if begin <= start and stop <= end}
    for stage in ("## next_batch ##", "## forward", "## backward", "## optimizer", "aten::mm", "aten::bmm"):
        assert any(name.startswith(stage) for name in spans), stage
    assert any(name.startswith("## forward") for name in inside)
    # The same run on, past the steps: nothing is traced again, and that is said.
    (warning,) = train(job, "train.profile.steps=[2,4]", "run.resume=auto")
    expected = "of the steps 2 to 4 none was trained here; this run ends after step 6"
    assert warning == f"train.profile.steps: {expected}"


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_ends_among_the_steps_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    job = Job(tmp_path)
    (warning,) = train(job, "train.profile.steps=[5,99]")
    assert warning.startswith("train.profile.steps: of the steps 5 to 99 only 5 to 6 were trained here")
    assert (tmp_path / "run" / "traces" / "rank-0-steps-5-99.pt.trace.json.gz").exists()
    run = tmp_path / "other"
    run.mkdir()
    (run / "traces").write_text("in the way")
    train(job, "train.profile.steps=[1,2]", f"run.directory={run}")
    (warning,) = warnings_of(run)
    assert warning.startswith(f"train.profile: {run}/traces/rank-0-steps-1-2.pt.trace.json.gz cannot be made: ")
    assert warning.endswith("; training goes on")


def test_other_ranks_and_other_steps_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for config in (None, ProfileConfig(steps=(1, 5), ranks=[0])):
        trace = StepTrace(config, 1, str(tmp_path), None, 2)
        assert trace.step(1) is NOTHING
        trace.close(9)
    trace = StepTrace(ProfileConfig(steps=(2, 5), ranks=[1]), 1, str(tmp_path), None, 2)
    assert trace.step(1) is NOTHING
    assert trace.step(6) is NOTHING
    assert capsys.readouterr().err == ""
    trace.close(1)
    assert capsys.readouterr().err.startswith("warning: train.profile.steps: of the steps 2 to 5 none was trained here")
    StepTrace(ProfileConfig(steps=(2, 5), ranks=[2, 3]), 0, str(tmp_path), None, 2)
    assert "train.profile.ranks is [2, 3], and the ranks of this job are 0 to 1" in capsys.readouterr().err


def test_steps_that_run_backwards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.profile.steps: .*e.g. \[100, 105\]; the first is 9"):
        load_config(str(Job(tmp_path).config), ["train.profile.steps=[9,5]"])
