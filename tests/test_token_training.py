"""`rankmixer train` with a token group is the same run as without."""

from pathlib import Path

import pytest

from pipeline.journal import read_log
from tests.job import Job

MOE = ["model.moe={experts: 3, routing: dtsi_split}", "optimizer.clip_norm=0.2"]


@pytest.mark.slow
def test_a_token_group_trains_as_one_process_does_and_its_checkpoint_is_read_by_one(tmp_path: Path) -> None:
    job = Job(tmp_path)
    expected = job.result(1, "train", *MOE, f"run.directory={tmp_path / 'alone'}")
    got = job.result(2, "train", *MOE, "parallel.token_group=auto", f"run.directory={tmp_path / 'group'}")
    lines = {
        run: [line for line in read_log(str(tmp_path / run)) if line["kind"] == "train"] for run in ("alone", "group")
    }
    assert len(lines["alone"]) == 12
    assert lines["alone"][0]["grad_norm"] > 0.2  # it is clipped
    for alone, group in zip(lines["alone"], lines["group"], strict=True):
        for key in ("loss", "grad_norm", "active_ratio", "penalty"):
            assert group[key] == pytest.approx(alone[key], rel=1e-5), f"{key} of step {alone['step']}"
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-4), key
    experts = [
        weight for name, weight in job.weights("group", 12).items() if "/model.head.blocks.0.ffn.up_TEMD" in name
    ]
    assert [tuple(weight.shape) for weight in experts] == [(2, 3, 64, 16)] * 2  # half of the tokens on each rank

    # The checkpoint of two ranks, resumed by one, must go on as two did.
    checkpoints = tmp_path / "group" / "checkpoints"
    for checkpoint in checkpoints.iterdir():
        if checkpoint.name != "step-00000004":
            (checkpoint / "manifest.json").unlink()
    job.result(1, "train", *MOE, f"run.directory={tmp_path / 'group'}")
    resumed = job.losses("group")
    for line in lines["group"]:
        assert resumed[line["step"]] == pytest.approx(line["loss"], rel=1e-5)


def test_a_token_group_that_does_not_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    job = Job(tmp_path)
    done = job.command(1, "train", "parallel.token_group=2")
    assert done.returncode == 2
    assert (
        "parallel.token_group is 2, into groups of which 1 ranks cannot be divided; use one of [1], or a" in done.stderr
    )
