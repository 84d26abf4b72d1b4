"""What predict writes: numbers in their order, keys as they were; and what it leaves when a rank fails: nothing."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score

import rankmixer.launch.job.evaluate
import rankmixer.launch.job.job
from rankmixer.launch.cli import main
from rankmixer.launch.config.config import load_config
from rankmixer.launch.job.evaluate import predict
from rankmixer.launch.job.job import outputs
from rankmixer.launch.model.ranker import Output
from rankmixer.launch.ranks.errors import run_reporting_errors
from rankmixer.launch.rows.parts import ParquetParts
from tests.helpers.job import ROWS, Job
from tests.helpers.ranks import run_ranks


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A model, and test rows of which some have no user."""
    job = Job(tmp_path_factory.mktemp("predict"))
    assert main(["train", "--config", str(job.config), "train.max_steps=2", "data.evaluate=null"]) == 0
    for path in (job.folder / "test").iterdir():
        table = pq.read_table(path)
        user = [None if row % 4 == 0 else value for row, value in enumerate(table["user"].to_pylist())]
        pq.write_table(table.set_column(0, "user", pa.array(user)), path, row_group_size=20)
    return job


def planted(*arguments: Any) -> Iterator[Output]:
    """The outputs with logits from -30 to 30, all different, in place of the model's."""
    start = 0
    for output in outputs(*arguments):
        place_B = torch.arange(start, start + len(output.logits_BK)) * 37 % 101
        start += len(place_B)
        logits_BK = torch.stack([place_B * 0.6 - 30, 30 - place_B * 0.599], 1)
        yield output._replace(logits_BK=logits_BK)


def test_the_file_tells_what_evaluate_tells(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities in float32 are 1 from a logit of 17 on; the metrics know the logits."""
    monkeypatch.setattr(rankmixer.launch.job.evaluate, "outputs", planted)
    monkeypatch.setattr(rankmixer.launch.job.job, "outputs", planted)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(rankmixer.launch.job.evaluate, "show", lambda found, *_, **__: told.append(found))
    out = job.folder / "scores"
    on = ["--config", str(job.config), "--checkpoint", "latest"]
    assert main(["evaluate", *on]) == 0
    keys = "row,user,click,like"
    assert (
        main(["predict", *on, "--data", str(job.folder / "test"), "--out", str(out), "--keys", keys, "--logits"]) == 0
    )
    found = pq.read_table(out)
    assert found.column_names == [
        *keys.split(","),
        *("click_probability", "like_probability", "click_logit", "like_logit"),
    ]
    users = np.array([-1 if user is None else user for user in found["user"].to_pylist()])
    assert told[0]["ungrouped"] == pytest.approx(np.mean(users == -1), rel=1e-12)
    for task in ("click", "like"):
        p_N, z_N, y_N = (found[name].to_numpy() for name in (f"{task}_probability", f"{task}_logit", task))
        assert p_N.dtype == z_N.dtype == np.float64
        assert len(np.unique(p_N)) == ROWS
        assert (np.argsort(p_N) == np.argsort(z_N)).all()
        assert np.unique(p_N.astype(np.float32)).size < ROWS
        assert told[0][f"{task}/auc"] == pytest.approx(roc_auc_score(y_N, p_N), rel=1e-12)
        loss = np.logaddexp(0, np.where(y_N == 1, -z_N, z_N)).mean()
        assert told[0][f"{task}/logloss"] == pytest.approx(loss, rel=1e-12)
        mean = y_N.mean()
        entropy = -mean * np.log(mean) - (1 - mean) * np.log(1 - mean)
        assert told[0][f"{task}/ne"] == pytest.approx(loss / entropy, rel=1e-12)
        assert told[0][f"{task}/calibration"] == pytest.approx(p_N.mean() / mean, rel=1e-12)
        both = [own for user in set(users) - {-1} if len(set(y_N[own := users == user])) == 2]
        gauc = np.average([roc_auc_score(y_N[own], p_N[own]) for own in both], weights=[own.sum() for own in both])
        assert told[0][f"{task}/gauc"] == pytest.approx(gauc, rel=1e-12)


def test_what_no_probability_can_tell_apart_is_warned_of(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        rankmixer.launch.job.evaluate,
        "outputs",
        lambda *arguments: (output._replace(logits_BK=output.logits_BK * 0 + 50) for output in outputs(*arguments)),
    )
    arguments = ["predict", "--config", str(job.config), "--checkpoint", "latest", "--data", str(job.folder / "test")]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert f"warning: {2 * ROWS} probabilities are exactly 0 or 1" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "b"), "--logits"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert set(pq.read_table(tmp_path / "b")["like_logit"].to_pylist()) == {50.0}


def test_keys_come_back_as_they_were(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime(2024, 5, 17, tzinfo=UTC)
    kinds = {
        "int": pa.array([7, None, 2**62]),
        "small": pa.array([7, None, 0], pa.int8()),
        "unsigned": pa.array([2**64 - 1, None, 0], pa.uint64()),
        "float": pa.array([0.1, None, float("nan")], pa.float32()),
        "text": pa.array(["a", None, ""]),
        "large": pa.array(["a", None, ""], pa.large_string()),
        "bytes": pa.array([b"\xff", None, b""]),
        "bool": pa.array([True, None, False]),
        "time": pa.array([now, None, now], pa.timestamp("us", "Europe/Oslo")),
        "day": pa.array([now.date(), None, now.date()]),
        "decimal": pa.array([Decimal("1.20"), None, Decimal(0)], pa.decimal128(9, 2)),
        "list": pa.array([[1, None], None, []], pa.list_(pa.int64())),
        "record": pa.array([{"x": 1}, None, {"x": None}]),
        "nothing": pa.nulls(3),
    }
    for path in (job.folder / "test").iterdir():
        table = pq.read_table(path)
        for name, values in kinds.items():
            table = table.append_column(name, values.take(pa.array(np.arange(len(table)) % 3)))
        (tmp_path / "rows").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "rows" / path.name, row_group_size=11)
    arguments = ["predict", "--config", str(job.config), "--checkpoint", "latest", "--data", str(tmp_path / "rows")]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--keys", ",".join(kinds)]) == 0
    expected, found = pq.read_table(tmp_path / "rows"), pq.read_table(tmp_path / "out")
    for name in kinds:
        assert found[name].type == expected[name].type
        assert str(found[name].to_pylist()) == str(expected[name].to_pylist())  # NaN differs from itself
    assert main([*arguments, "--out", str(tmp_path / "no"), "--keys", "like_probability"]) == 2
    assert "--keys names ['like_probability'], which are columns of the output" in capsys.readouterr().err


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/part")


def fails(times: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, but on a full disk from a number of calls on."""
    calls = iter(range(10**6))

    def method(*arguments: Any, **named: Any) -> Any:
        if next(calls) >= times:
            raise FULL
        return work(*arguments, **named)

    return method


def removed_by_another(remove: Callable[..., Any]) -> Callable[..., Any]:
    """`rm` as it ends where another rank removes the same: what was there is gone, and one file was not found."""

    def rm(*arguments: Any, **named: Any) -> None:
        remove(*arguments, **named)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/disk/part")

    return rm


# What goes wrong, and on which rank; the last one strikes a rank alone, which then ends as a process does.
FAULTS: dict[str, tuple[str, int]] = {
    "none": ("", 0),
    "exists": ("", 0),
    "reading": ("", 0),
    "finishing": ("_close", 1),
    "naming": ("mv", 0),
    "writing": ("write", 1),
}


def predict_on_ranks(rank: int, world_size: int, folder: str, ports: list[int], ended: str) -> dict[str, Any]:
    """By fault: this rank's exit status, what it said, and what was left of its output."""
    dist.barrier()
    dist.destroy_process_group()
    files = type(fsspec.filesystem("file"))
    found = {}
    for (fault, (method, where)), port in zip(FAULTS.items(), ports, strict=True):
        # As one torchrun agent's, so that a rank which only hears of it leaves the word to the one that failed.
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), GROUP_RANK="0")
        out, data = Path(folder, f"out-{fault}"), Path(folder, "bad" if fault == "reading" else "test")
        if fault == "exists" and rank == 0:
            out.mkdir()
        said = io.StringIO()
        owner = files if method == "mv" else ParquetParts
        with contextlib.ExitStack() as patches:
            patches.enter_context(patch.object(files, "rm", removed_by_another(files.rm)))
            patches.enter_context(patch("rankmixer.launch.job.evaluate.print_result", lambda _: None))
            # On a busy machine one rank may be late, and that is said.
            patches.enter_context(patch("rankmixer.launch.ranks.world.SECONDS_IN_SILENCE", 600.0))
            patches.enter_context(contextlib.redirect_stderr(said))
            if method and rank == where:
                patches.enter_context(patch.object(owner, method, fails(method == "write", getattr(owner, method))))
            config = load_config(str(Path(folder, "run.yaml")), [])
            status = run_reporting_errors(lambda: predict(config, "latest", str(data), str(out), ["row"]))  # noqa: B023
        left = sorted(path.name for path in Path(folder).glob(f"out-{fault}*"))
        found[fault] = (status, said.getvalue(), left)
    if rank == where:
        Path(ended).write_bytes(pickle.dumps(found))
        os._exit(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return found


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


def test_a_key_given_twice_is_one_column(job: Job, tmp_path: Path) -> None:
    on = ["--config", str(job.config), "--checkpoint", "latest", "--data", str(job.folder / "test")]
    assert main(["predict", *on, "--out", str(tmp_path / "out"), "--keys", "user,row", "--keys", "user"]) == 0
    assert pq.read_table(tmp_path / "out").column_names == ["user", "row", "click_probability", "like_probability"]


def test_the_rank_that_fails_says_why_and_nothing_is_left(job: Job, tmp_path: Path) -> None:
    shutil.copytree(job.folder / "test", job.folder / "bad")
    table = pq.read_table(job.folder / "bad" / "b.parquet")
    user = [20, *table["user"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, "user", pa.array(user)), job.folder / "bad" / "b.parquet", row_group_size=7)
    ended = str(tmp_path / "ranks-0" / "1.result")
    ranks = run_ranks(2, predict_on_ranks, tmp_path, str(job.folder), free_ports(len(FAULTS)), ended)
    full = "No space left on device"
    causes = {
        "exists": f"{job.folder}/out-exists exists; remove it or give another --out",
        "reading": "b.parquet, row group 0, row 0, column 'user': found 20; expected an id from 0 to 19",
        "finishing": f"out-finishing (rank 1): OSError: [Errno {errno.ENOSPC}] {full}: '/disk/part'; free some space",
        "naming": f"out-naming (rank 0): OSError: [Errno {errno.ENOSPC}] {full}: '/disk/part'; free some space",
        "writing": f"/disk/part: {full}; free some space",
    }
    for fault, cause in causes.items():
        told = [rank[fault] for rank in ranks]
        assert any(cause in said for _, said, _ in told), told
        for status, said, _ in told:
            assert status != 0
            assert said == "" or (said.count("\n") == 1 and cause in said), told
        assert told[1][2] == (["out-exists"] if fault == "exists" else []), fault
    for status, said, _ in (rank["none"] for rank in ranks):
        assert status == 0, said
        assert "rankmixer: " not in said, said
    assert sorted(pq.read_table(job.folder / "out-none")["row"].to_pylist()) == list(range(ROWS))
    assert len(list((job.folder / "out-none").iterdir())) == 2
    assert not list(job.folder.glob("*.unfinished"))
