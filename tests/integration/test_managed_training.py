"""`rankmixer` on ids without bound: trained, evicted, resumed, evaluated and predicted, on one rank and on two."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from rankmixer.embeddings.managed import FREE
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.schema.features import managed_rows
from tests.helpers.job import Job

ROWS = 1800  # 18 batches of 100; ids are new throughout, and of either table more than have a row


def managed_job(folder: Path) -> Job:
    job = Job(folder)
    random = np.random.RandomState(0)
    user = (random.rand(ROWS) ** 2 * 2000).astype(np.int64) * 10**15 - 10**18
    words = [[f"tag {n}" for n in random.randint(1500, size=random.randint(4))] for _ in range(ROWS)]
    table = pa.table(
        {
            "user": user,
            "tags": words,
            "city": random.randint(9, size=ROWS),
            "click": ((user // 10**15 % 2) ^ (random.rand(ROWS) < 0.1)).astype(np.int8),
            "row": np.arange(ROWS),
        }
    )
    for part in ("train", "test"):
        shutil.rmtree(folder / part)
        (folder / part).mkdir()
        pq.write_table(table, folder / part / "a.parquet", row_group_size=200)
    tree = yaml.safe_load(job.config.read_text())
    tree["feature_schema"] = {
        "features": {
            "user": {"kind": "id", "managed": 1, "dim": 8},
            "tags": {"kind": "id_list", "managed": 1, "dim": 4, "pooling": "mean"},
            "city": {"kind": "id", "range": 9, "dim": 8},
        },
        "labels": {"click": {}},
    }
    tree["data"] |= {"batch_size": 100, "evaluate_batch_size": 200, "window_rows": 400}
    # Step 17 ends with ids that wait for a row: 16 and 18 give them out.
    tree["train"] |= {"epochs": 2, "evaluate_every": 17}
    del tree["metrics"]
    job.config.write_text(yaml.safe_dump(tree, sort_keys=False))
    return job


def maps(job: Job, run: str, step: int) -> dict[str, torch.Tensor]:
    """Whole maps by name, whatever ranks wrote them."""
    pieces: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for file in (job.folder / run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"):
        for key, value in load_file(file).items():
            if found := re.fullmatch(r"(model\..*_N)(?:\[(\d+)\])?", key):
                pieces.setdefault(found[1], []).append((int(found[2] or 0), value))
    return {
        name: torch.cat([value for _, value in sorted(found, key=lambda p: p[0])]) for name, found in pieces.items()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = managed_job(tmp_path_factory.mktemp("managed"))
    job.outcome = job.result(1, "train")
    return job


def test_ids_without_bound_are_learnt_and_evicted(trained: Job) -> None:
    assert trained.outcome["auc"] > 0.75
    user = "model.embeddings.managed._managed_collision_collection._managed_collision_modules.user.id_N"
    first, last = (set(maps(trained, "run", step)[user].tolist()) - {FREE} for step in (17, 36))
    assert len(first) > 300
    told = [line for line in read_log(str(trained.folder / "run")) if line["kind"] == "managed"]
    assert (told[-1]["user/rows_taken"], told[-1]["user/rows_to_take"]) == (len(last), 960)
    assert first - last, "nobody was evicted"
    assert last - first, "nobody came"


@pytest.mark.parametrize("ranks", [1, 2])
def test_resumed_equals_undisturbed(trained: Job, ranks: int) -> None:
    run = f"resumed-{ranks}"
    shutil.copytree(trained.folder / "run", trained.folder / run)
    for step in (18, 34, 35, 36):
        shutil.rmtree(trained.folder / run / "checkpoints" / f"step-{step:08d}", ignore_errors=True)
    resumed = trained.result(ranks, "train", f"run.directory={trained.folder / run}")
    lines = read_log(str(trained.folder / run))
    assert [line["resumed_from"] for line in lines if line["kind"] == "start"][-1] == "step-00000017"
    assert maps(trained, run, 36).keys() == maps(trained, "run", 36).keys()
    for name, value in maps(trained, "run", 36).items():
        assert torch.equal(maps(trained, run, 36)[name], value), name
    if ranks == 1:
        assert resumed == trained.outcome
        for name, value in trained.weights("run", 36).items():
            assert torch.equal(trained.weights(run, 36)[name], value), name
    else:
        assert resumed["auc"] == pytest.approx(trained.outcome["auc"], abs=1e-3)


def test_prediction_is_that_of_the_evaluation_in_training(trained: Job) -> None:
    scores = {}
    for ranks in (1, 2):
        out = trained.folder / f"scores-{ranks}"
        arguments = ["--data", str(trained.folder / "test"), "--out", str(out), "--keys", "row,click"]
        trained.result(ranks, "predict", "--checkpoint", "latest", *arguments)
        scores[ranks] = pq.read_table(out).sort_by("row")
    probability = scores[1]["click_probability"].to_numpy()
    assert roc_auc_score(scores[1]["click"].to_numpy(), probability) == pytest.approx(trained.outcome["auc"], rel=1e-6)
    np.testing.assert_allclose(scores[2]["click_probability"].to_numpy(), probability, rtol=1e-5)


def test_ranks_that_cannot_share_the_segments_are_refused(trained: Job) -> None:
    done = trained.command(1, "plan", "-j", "1x7", "data.batch_size=98", "data.evaluate_batch_size=98")
    assert done.returncode == 2
    assert "managed tables ['user', 'tags'] are cut into 960 segments" in done.stderr
    assert "use 6 or 8 ranks" in done.stderr


def test_the_plan_counts_the_maps(trained: Job) -> None:
    done = trained.command(1, "plan", "-j", "1x4", "feature_schema.features.user.managed=10000000")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if re.search(r"user .* row_wise", line)]
    assert len(rows) == 4
    # Of every row 40 bytes of map and 4 of the optimizer's state, shared by four ranks.
    assert f"{managed_rows(10_000_000) * 44 / 4 / 2**30:.3f}" in done.stdout, done.stdout
