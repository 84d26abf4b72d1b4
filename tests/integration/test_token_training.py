"""`rankmixer train` with a token group is the same run as without."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rankmixer.launch.config.config import load_config
from rankmixer.launch.model.build import build
from rankmixer.launch.ranks.distributed import cluster_here, process_group
from rankmixer.pipeline.journal.journal import read_log
from tests.helpers.job import Job

# Batches of 10: with five examples a rank, the second begins with one that takes the other path.
MOE = ["model.moe={experts: 3, routing: dtsi_split}", "optimizer.clip_norm=0.2", "data.batch_size=10"]


def train_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(str(run)) if line["kind"] == "train"]


def loads(run: Path) -> list[float]:
    """Of all experts, one after another, evaluation after evaluation."""
    tables = [torch.tensor(line["load_LTE"]) for line in read_log(str(run)) if line["kind"] == "experts"]
    return [share for load_LTE in tables for share in load_LTE.flatten().tolist()]


def warnings(run: Path) -> list[str]:
    return [line["message"] for line in read_log(str(run)) if line["kind"] == "warning"]


@pytest.mark.slow
def test_a_token_group_trains_as_one_process_does_and_its_checkpoint_is_read_by_one(tmp_path: Path) -> None:
    job = Job(tmp_path)
    expected = job.result(1, "train", *MOE, f"run.directory={tmp_path / 'alone'}")
    alone = train_lines(tmp_path / "alone")
    assert len(alone) == 18
    assert alone[0]["grad_norm"] > 0.2  # it is clipped
    for ranks in ("auto", 1):
        group = tmp_path / f"group-{ranks}"
        got = job.result(2, "train", *MOE, f"parallel.token_group={ranks}", f"run.directory={group}")
        for one, two in zip(alone, train_lines(group), strict=True):
            for key in ("loss", "grad_norm", "active_ratio", "penalty"):
                assert two[key] == pytest.approx(one[key], rel=1e-5), f"{key} of step {one['step']}"
        assert loads(group) == pytest.approx(loads(tmp_path / "alone"), rel=1e-5)
        assert warnings(group) == warnings(tmp_path / "alone") != []
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert got[key] == pytest.approx(value, rel=1e-4), key
    experts = [
        weight for name, weight in job.weights("group-auto", 18).items() if "/model.head.blocks.0.ffn.up_TEMD" in name
    ]
    assert [tuple(weight.shape) for weight in experts] == [(2, 3, 64, 16)] * 2  # half of the tokens on each rank

    served = ["evaluate", *MOE, f"data.test={tmp_path / 'test'}", f"run.directory={tmp_path / 'group-auto'}"]
    metrics = job.result(2, *served, "parallel.token_group=2", "--checkpoint", "latest")
    for key, value in metrics.items():
        assert key == "checkpoint" or value == pytest.approx(expected[key], rel=1e-4), key

    # The checkpoint of two ranks, resumed by one, must go on as two did.
    checkpoints = tmp_path / "group-auto" / "checkpoints"
    for checkpoint in checkpoints.glob("step-*"):
        if checkpoint.name != "step-00000004":
            (checkpoint / "manifest.json").unlink()
    job.result(1, "train", *MOE, f"run.directory={tmp_path / 'group-auto'}")
    resumed = job.losses("group-auto")
    for line in alone:
        assert resumed[line["step"]] == pytest.approx(line["loss"], rel=1e-5)


def test_a_token_group_that_does_not_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    job = Job(tmp_path)
    done = job.command(1, "train", "parallel.token_group=2")
    assert done.returncode == 2
    assert (
        "parallel.token_group is 2, which does not divide the number of ranks, 1; use one of [1], or a" in done.stderr
    )


@pytest.mark.parametrize("exchange", ["fp32", "bf16"])
def test_the_dtype_of_the_exchange_reaches_the_token_group(
    exchange: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one rank there is no group: as far as the call that makes one, whose own tests send in both dtypes."""

    class Shared(Exception): ...

    def shard_tokens(model: object, mesh: object, dtype: torch.dtype | None, **_: object) -> None:
        raise Shared(dtype)

    monkeypatch.setattr("rankmixer.launch.model.build.token_group", lambda *_: 2)
    monkeypatch.setattr("rankmixer.launch.model.build.token_mesh", lambda *_: "mesh")
    monkeypatch.setattr("rankmixer.launch.model.build.shard_tokens", shard_tokens)
    config = load_config(str(Job(tmp_path).config), [f"parallel={{token_group: auto, exchange: {exchange}}}"])
    with process_group(config) as ranks, pytest.raises(Shared) as shared:
        build(config, ranks, cluster_here(ranks, config.plan), 1)
    assert shared.value.args == ({"fp32": None, "bf16": torch.bfloat16}[exchange],)
