"""The whole path on small data: files, tables, steps, checkpoints; in one process and on ranks."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from rankmixer.launch.cli import main
from rankmixer.pipeline.journal.journal import read_log
from tests.helpers.job import ROWS, Job


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(tmp_path_factory.mktemp("job"))
    job.ranks = request.param
    job.outcome = job.result(job.ranks, "train")
    return job


def test_every_epoch_has_its_steps_and_the_log_tells_them(trained: Job) -> None:
    lines = read_log(str(trained.folder / "run"))
    assert list(trained.losses()) == list(range(1, 13))  # 90 rows in batches of 16, twice
    assert [line["step"] for line in lines if line["kind"] == "evaluate"] == [4, 6, 8, 12]
    mended = [line for line in lines if line["kind"] == "mended"]
    assert mended[-1]["price: null -> default"] == 18  # 9 of 90 rows, twice
    rates = [line["lr_dense"] for line in lines if line["kind"] == "train"]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[-1] == pytest.approx(1e-3 / 9)  # nine steps of decay, and this is the ninth
    assert all(line["lr_sparse"] == pytest.approx(50 * line["lr_dense"]) for line in lines if line["kind"] == "train")


def test_the_page_of_the_run_tells_of_all_ranks(trained: Job) -> None:
    page = (trained.folder / "run" / "report.html").read_text()
    assert '<span class="state finished">' in page
    assert "AUC of click" in page
    evaluation = [line for line in read_log(str(trained.folder / "run")) if line["kind"] == "evaluate"][-1]
    memory = [line for line in read_log(str(trained.folder / "run")) if line["kind"] == "memory"][-1]
    assert [set(rank) for rank in memory["ranks"].values()] == [{"rss_bytes"}] * trained.ranks
    assert sum(bin["rows"] for bin in evaluation["reliability"]["like"]) == ROWS
    start = read_log(str(trained.folder / "run"))[0]
    assert len(start["plan"]["memory"]) == trained.ranks
    assert {shard["table"] for shard in start["plan"]["shards"]} == {"user", "city", "tags"}
    assert start["config"]["model"]["width"] == 16


def test_resumed_equals_uninterrupted_bit_for_bit(trained: Job) -> None:
    # What a kill in step 7 leaves behind: the checkpoints of steps 4 and 6, a log that goes further, and half a
    # checkpoint. The one of step 6 has since been damaged, so that of step 4 is used.
    shutil.copytree(trained.folder / "run", trained.folder / "killed")
    checkpoints = trained.folder / "killed" / "checkpoints"
    for checkpoint in sorted(checkpoints.glob("step-*")):
        if checkpoint.name > "step-00000006":
            (checkpoint / "manifest.json").unlink()
    damaged = checkpoints / "step-00000006" / "rank-00000.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    done = trained.command(trained.ranks, "train", f"run.directory={trained.folder / 'killed'}")
    assert done.returncode == 0, done.stderr
    said = rf"warning: {damaged}: found checksum \w+, its manifest .*; step-00000006 is damaged, step-00000004 is used"
    assert len(re.findall(said, done.stderr)) == 1
    events = [line for line in read_log(str(trained.folder / "killed")) if line["kind"] == "damaged"]
    assert [(line["step"], line["checkpoint"], line["used"], line["file"]) for line in events] == [
        (4, "step-00000006", "step-00000004", str(damaged))
    ]
    assert (checkpoints / "damaged-step-00000006" / "manifest.json").exists()
    resumed = json.loads(done.stdout.splitlines()[-1])
    assert resumed == trained.outcome
    assert trained.losses("killed") == trained.losses()
    final, expected = trained.weights("killed", 12), trained.weights("run", 12)
    assert final.keys() == expected.keys()
    assert len(final) > 10
    for name, tensor in expected.items():
        assert torch.equal(final[name], tensor), name


def test_a_new_run_begins_with_the_weights_of_this_one(trained: Job, capsys: pytest.CaptureFixture[str]) -> None:
    # On one rank, whatever the old run had; steps that move nothing.
    arguments = [f"run.directory={trained.folder / 'new'}", f"run.warm_start={trained.folder / 'run'}"]
    arguments += ["optimizer.dense.lr=1e-30", "optimizer.sparse.lr=1e-30", "train.evaluate_every=1"]
    assert main(["train", "--config", str(trained.config), *arguments, "train.max_steps=1"]) == 0
    report = json.loads((trained.folder / "new" / "warm_start.json").read_text())
    source = Path(report["source"])
    assert source.parent == trained.folder / "run" / "checkpoints"
    assert f"warm start from {source}: {len(report['taken'])} tensors taken\n" in capsys.readouterr().err
    assert report["mapped"] == report["new"] == {}
    assert report["left_over"] == []
    [event] = [line for line in read_log(str(trained.folder / "new")) if line["kind"] == "warm_start"]
    assert (event["step"], event["taken"], event["new"]) == (0, len(report["taken"]), 0)

    def click_auc(run: str, step: int) -> float:
        lines = read_log(str(trained.folder / run))
        return next(float(line["click/auc"]) for line in lines if (line["kind"], line["step"]) == ("evaluate", step))

    assert click_auc("new", 1) == pytest.approx(click_auc("run", int(source.name[5:])), abs=1e-9)
    # What resumes has weights of its own.
    assert main(["train", "--config", str(trained.config), *arguments, "train.max_steps=2"]) == 0
    assert "warm start" not in capsys.readouterr().err
    assert main(["train", "--config", str(trained.config), "run.warm_start=nowhere", "run.directory=another"]) == 2
    assert "run.warm_start is nowhere: found no checkpoint there" in capsys.readouterr().err


def test_evaluation_of_a_checkpoint_on_another_number_of_ranks(trained: Job) -> None:
    arguments = ["evaluate", f"data.test={trained.folder / 'test'}", "--checkpoint", "latest"]
    metrics = trained.result(3 - trained.ranks, *arguments)
    assert metrics.pop("checkpoint") == "step-00000012"
    logged = [line for line in read_log(str(trained.folder / "run")) if line["kind"] == "evaluate"][-1]
    for name, value in metrics.items():
        assert value == pytest.approx(logged[name], rel=1e-5), name
    assert metrics["like/gauc"] is not None
    assert metrics["rows"] == ROWS


def test_prediction_writes_every_row_once(trained: Job) -> None:
    out = trained.folder / "scores"
    arguments = ["predict", "--checkpoint", "latest", "--data", str(trained.folder / "test"), "--out", str(out)]
    trained.result(trained.ranks, *arguments, "--keys", "row,click")
    scores = pq.read_table(out).sort_by("row")
    assert scores.column_names == ["row", "click", "click_probability", "like_probability"]
    assert scores["row"].to_pylist() == list(range(ROWS))
    logged = [line for line in read_log(str(trained.folder / "run")) if line["kind"] == "evaluate"][-1]
    auc = roc_auc_score(scores["click"].to_numpy(), scores["click_probability"].to_numpy())
    assert auc == pytest.approx(logged["click/auc"], rel=1e-5)
    again = trained.command(1, *arguments)
    assert again.returncode == 2
    assert "scores exists" in again.stderr


def test_a_row_that_cannot_be_read_ends_every_rank_with_one_message(trained: Job) -> None:
    bad = trained.folder / "bad"
    shutil.copytree(trained.folder / "train", bad)
    table = pq.read_table(bad / "b.parquet")
    user = table["user"].to_pylist()
    user[11] = 20
    pq.write_table(table.set_column(0, "user", pa.array(user)), bad / "b.parquet", row_group_size=7)
    run = trained.folder / "bad-run"
    done = trained.command(trained.ranks, "train", f"data.train={bad}", f"run.directory={run}")
    assert done.returncode == (2 if trained.ranks == 1 else 1)
    assert done.stderr.count("rankmixer: error:") == 1
    for part in ("b.parquet", "row group 1", "row 11", "user", "20"):
        assert part in done.stderr, done.stderr
    assert "pipeline/read/dataset.py" not in done.stderr  # no traceback of ours, only torchrun's own
    assert "row group 1" in json.loads((run / "failed.json").read_text())["message"]
    for checkpoint in (run / "checkpoints").glob("step-*"):
        assert (checkpoint / "manifest.json").exists()


def test_a_run_that_must_not_resume_is_refused_where_one_stands(trained: Job) -> None:
    done = trained.command(1, "train", "run.resume=never")
    assert done.returncode == 2
    assert "holds step-00000012 and run.resume is never" in done.stderr


def test_another_feature_schema_is_refused(trained: Job) -> None:
    done = trained.command(1, "train", "feature_schema.features.city.buckets=13")
    assert done.returncode == 2
    assert "was trained with another feature schema" in done.stderr


def test_another_model_is_refused_with_the_keys_that_differ(trained: Job) -> None:
    done = trained.command(1, "train", "model.expansion=3", "model.mixing_gain=true")
    assert done.returncode == 2
    for part in (
        "model.head.blocks.0.ffn.up_TDM: shape (4, 16, 64) in the checkpoint, (4, 16, 48) here",
        "configuration: model.expansion = None there, 3.0 here; model.mixing_gain = False there, True here",
        "Use the configuration it was trained with, or another run.directory",
    ):
        assert part in done.stderr, done.stderr


def test_early_stopping(tmp_path: Path) -> None:
    job = Job(tmp_path)
    still = ["optimizer.dense.lr=1e-12", "optimizer.sparse.lr=1e-12", "train.early_stopping.patience=1"]
    stopped = job.result(1, "train", "model.compile=true", "model.precision=bf16", *still)
    assert stopped["steps"] == 6  # the second evaluation was no better than the first


def test_divergence_names_step_layers_and_checkpoint_and_loses_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.result(1, "train", "train.max_steps=4")
    wild = ["optimizer.dense.lr=1e30", "optimizer.clip_norm=null", "optimizer.schedule.warmup_steps=0"]
    diverged = job.command(1, "train", *wild)
    assert diverged.returncode == 2
    step = re.search(r"rankmixer: error: the loss is (nan|inf) in step (\d+) \(epoch 0\)", diverged.stderr)
    assert step, diverged.stderr
    assert int(step[2]) in (5, 6)
    for part in ("  head.blocks.0.ffn: ", "  embedding_bags.user: ", "The last good checkpoint is step-00000004 in "):
        assert part in diverged.stderr, diverged.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000004"]
    (record,) = (line for line in read_log(str(tmp_path / "run")) if line["kind"] == "diverged")
    assert record["checkpoint"] == "step-00000004"
    assert f"  head.blocks.0.ffn: {record['layers']['head.blocks.0.ffn']}\n" in diverged.stderr
    resumed = job.result(1, "train")
    assert resumed["steps"] == 12


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_sparse_moe_resumes_bit_for_bit_and_tells_of_its_experts(ranks: int, tmp_path: Path) -> None:
    job = Job(tmp_path)
    moe = "model.moe={experts: 3, active_ratio: 0.34, routing: dtsi}"
    whole = job.result(ranks, "train", moe)
    assert 0 < whole["active_ratio"] < 1
    assert whole["dead_experts"] in range(12 + 1)
    lines = read_log(str(tmp_path / "run"))
    start, trained = lines[0], [line for line in lines if line["kind"] == "train"]
    assert start["training_flops_per_example"] > 5 * start["flops_per_example"]  # all experts, on both paths
    for line in trained:
        flops = start["training_flops_per_example"] * line["examples_per_second"] / ranks
        assert line["mfu"] == pytest.approx(flops / (start["peak_tflops"] * 1e12))
    penalties = [line["penalty"] for line in trained]
    assert len(set(penalties)) == len(penalties) == 12, "lambda moves at every step"
    experts = [line["load_LTE"] for line in lines if line["kind"] == "experts"]
    assert torch.tensor(experts).shape == (4, 1, 4, 3)
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*"):
        if checkpoint.name != "step-00000008":
            (checkpoint / "manifest.json").unlink()
    assert job.result(ranks, "train", moe) == whole
    again = read_log(str(tmp_path / "run"))
    assert [line["penalty"] for line in again if line["kind"] == "train"] == penalties
