"""Jobs whose data, checkpoints and results lie on an object store: Ceph's RADOS gateway, through s3fs.

`make test-services`, where Debian's packages are: tests/services/ceph.py names them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import yaml

from tests.helpers.job import Job
from tests.services.ceph import Ceph, ceph, missing

REASON = missing() or (None if find_spec("s3fs") else "s3fs not found; run `make test-services`")
pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A gateway with the bucket `bucket`, which s3fs finds by the environment."""
    with ceph(tmp_path_factory.mktemp("ceph")) as gateway, pytest.MonkeyPatch.context() as patched:
        for name, value in gateway.environment.items():
            patched.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield gateway


@pytest.fixture
def job(store: Ceph, tmp_path: Path) -> Job:
    """A job whose data and checkpoints lie in a folder of their own on the store."""
    job = Job(tmp_path)
    url = f"s3://bucket/{tmp_path.name}"
    for part in ("train", "test"):
        fsspec.filesystem("s3").put(str(tmp_path / part), f"{url}/{part}", recursive=True)
    tree = yaml.safe_load(job.config.read_text())
    tree["data"] |= {"train": f"{url}/train", "evaluate": f"{url}/test"}
    tree["run"] |= {"checkpoints": f"{url}/ck"}
    tree["url"] = url
    job.outcome["url"] = tree.pop("url")
    job.config.write_text(yaml.safe_dump(tree, sort_keys=False))
    return job


def rankmixer(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rankmixer", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def found(*words: str) -> dict[str, Any]:
    done = rankmixer(*words, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def names(url: str) -> list[str]:
    filesystem = fsspec.filesystem("s3")
    filesystem.invalidate_cache()
    return sorted(path.removeprefix(url.removeprefix("s3://") + "/") for path in filesystem.find(url))


def test_a_job_lives_there(job: Job) -> None:
    url = job.outcome["url"]
    first = job.result(2, "train", "train.epochs=1", "run.keep=1")
    assert first["steps"] > 1
    second = job.result(1, "train")
    assert second["steps"] > first["steps"]
    checkpoints = found("checkpoint", "list", f"{url}/ck")["checkpoints"]
    assert [entry["state"] for entry in checkpoints] == ["whole"] * len(checkpoints)
    latest = checkpoints[-1]["name"]
    assert found("checkpoint", "verify", f"{url}/ck")["damaged"] == 0
    assert found("checkpoint", "show", f"{url}/ck")["step"] == second["steps"]
    again = job.result(2, "evaluate", "--checkpoint", "latest")
    assert again["click/auc"] == pytest.approx(second["click/auc"], abs=1e-9)

    warm = job.result(1, "train", f"run.warm_start={url}/ck/{latest}", f"run.directory={job.folder}/warm",
                      f"run.checkpoints={url}/warm", "train.max_steps=1")  # fmt: skip
    assert warm["steps"] == 1

    for ranks in (1, 2):
        out = f"{url}/scores-{ranks}"
        predict = ("predict", "--data", f"{url}/test", "--checkpoint", "latest", "--keys", "row", "--out")
        assert job.result(ranks, *predict, out)["rows"] == 90
        assert names(out) == [f"part-{rank:05d}.parquet" for rank in range(ranks)]
        refused = job.command(1, *predict, out)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"{out} exists; remove it or give another --out" in refused.stderr
    assert job.result(1, *predict, f"{job.folder}/scores")["rows"] == 90
    local = pq.read_table(job.folder / "scores").sort_by("row")
    there = pq.read_table(f"{url.removeprefix('s3://')}/scores-1", filesystem=fsspec.filesystem("s3")).sort_by("row")
    assert there.equals(local)
    assert not [name for name in names(url) if "unfinished" in name]

    assert found("checkpoint", "prune", f"{url}/ck", "--keep", "1")["removed"]
    kept = {name.split("/")[0] for name in names(f"{url}/ck")}
    assert latest in kept
    assert {"schema"} < kept
    assert len(kept) <= 3  # the best one and the latest


def test_a_damaged_checkpoint_is_set_aside_whole(job: Job) -> None:
    url = job.outcome["url"]
    steps = job.result(1, "train", "train.epochs=1")["steps"]
    filesystem = fsspec.filesystem("s3")
    before = names(f"{url}/ck")
    filesystem.pipe_file(f"{url}/ck/step-{steps:08d}/meta.json", b"other")
    done = job.command(1, "train", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert f"it is kept as damaged-step-{steps:08d}" in done.stderr
    after = names(f"{url}/ck")
    assert [name for name in after if not name.startswith("damaged-")] == before
    aside = [name.removeprefix("damaged-") for name in after if name.startswith("damaged-")]
    assert aside == [name for name in before if name.startswith(f"step-{steps:08d}/")]


def test_data_profile_and_vocab(job: Job) -> None:
    url = job.outcome["url"]
    done = rankmixer("data", "profile", f"{url}/train", "--config", str(job.config), "--out", f"{url}/new/profile.json")
    assert done.returncode == 0, done.stderr
    assert names(f"{url}/new") == ["profile.json"]
    written = json.loads(fsspec.filesystem("s3").cat_file(f"{url}/new/profile.json"))
    assert written["profile"]["rows"] == 90
    vocab = ["vocab", "--config", str(job.config), "city", "--out"]
    assert rankmixer(*vocab, str(job.folder / "words")).returncode == 0
    refused = rankmixer(*vocab, f"{url}/words")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "is a URL; expected a path on this machine" in refused.stderr


WRONG = {
    "keys": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "bucket", "check the keys of this job"),
    "no keys": ({"AWS_SECRET_ACCESS_KEY": "", "AWS_ACCESS_KEY_ID": ""}, "bucket", "check the keys of this job"),
    "bucket": ({}, "no-such-bucket", "found no bucket no-such-bucket; make it"),
    "address": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        "bucket",
        "this may pass: try again when the storage answers",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_sentence_before_anything_starts(what: str, job: Job) -> None:
    environment, bucket, expected = WRONG[what]
    config, local = str(job.config), f"data.train={job.folder}/train"
    there = f"s3://{bucket}/else"
    for words in (
        ["train", "--config", config, local, f"data.evaluate={job.folder}/test", f"run.checkpoints={there}/ck"],
        ["checkpoint", "list", f"{there}/ck"],
        ["data", "profile", f"{job.folder}/train", "--config", config, "--out", f"{there}/p.json"],
    ):
        done = rankmixer(*words, **environment)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("rankmixer: error: ")
        assert expected in last
        # Where the driver tries again for long, that is told meanwhile.
        assert all("still waiting for s3://" in line for line in done.stderr.splitlines()[:-1]), done.stderr
    assert not (job.folder / "run").exists()
    assert not fsspec.filesystem("s3").exists("no-such-bucket")


def test_a_store_that_stalls_is_told_of(store: Ceph, job: Job) -> None:
    url = job.outcome["url"]
    assert job.result(1, "train", "train.max_steps=2")["steps"] == 2
    command = [sys.executable, "-m", "rankmixer", "checkpoint", "verify", f"{url}/ck", "--json"]
    with store.stalled():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert f"still waiting for {url}/ck" in process.stderr.readline()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads(out)["damaged"] == 0
