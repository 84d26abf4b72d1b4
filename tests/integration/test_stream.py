"""A directory that grows while a run goes on: every file once, in portions that a resumed run finds again."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.launch.config.config import load_config
from rankmixer.pipeline.files.locate import urls
from rankmixer.pipeline.files.watch import Watch
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.read.arrivals import Arrivals
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.job import Job

STREAM = ["data.stream={poll_seconds: 0.2, idle_seconds: 1.0}", "train.epochs=1", "optimizer.schedule.decay=none"]
SCHEMA = Schema.model_validate({"features": {"user": {"kind": "id", "buckets": 9, "dim": 4}}, "labels": {"click": {}}})


def write(path: Path, rows: int = 5, **columns: Any) -> None:
    """A file that appears whole."""
    table = pa.table({"user": np.arange(rows), "click": np.arange(rows) % 2, **columns})
    hidden = path.with_name(f"_{path.name}")
    pq.write_table(table, hidden)
    hidden.rename(path)


def arrivals(folder: Path, idle_seconds: float | None = 0.0) -> Arrivals:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    return Arrivals(
        str(folder / "run"),
        find=lambda: urls(f"{folder / 'data'}/*.parquet", Watch()) if any((folder / "data").glob("*.parquet")) else [],
        open_files=lambda files: ParquetDataset(files, SCHEMA),
        poll_seconds=0.05,
        idle_seconds=idle_seconds,
    )


def test_each_look_that_finds_new_files_makes_a_portion(tmp_path: Path) -> None:
    stream = arrivals(tmp_path)
    assert stream.wait(0) is None
    write(tmp_path / "data" / "b.parquet")
    write(tmp_path / "data" / "a.parquet", rows=3)
    first = stream.wait(0)
    assert first is not None
    assert ([Path(file).name for file in first.files], first.rows) == (["a.parquet", "b.parquet"], 8)
    assert stream.wait(1) is None
    write(tmp_path / "data" / "0.parquet")  # its name comes before the others
    second = stream.wait(1)
    assert second is not None
    assert [Path(file).name for file in second.files] == ["0.parquet"]
    # Another process finds the same portions, and what has come since.
    write(tmp_path / "data" / "c.parquet")
    again = arrivals(tmp_path)
    assert (again.recorded(0), again.wait(1)) == (first, second)
    third = again.wait(2)
    assert third is not None
    assert [Path(file).name for file in third.files] == ["c.parquet"]


def test_it_waits_for_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = arrivals(tmp_path, idle_seconds=None)
    waits = iter(range(100))

    def sleep() -> None:
        if next(waits) == 3:
            write(tmp_path / "data" / "a.parquet")

    monkeypatch.setattr(stream, "_sleep", sleep)
    assert stream.wait(0) is not None
    assert next(waits) == 4


def test_files_without_a_row_are_passed_over_and_wrong_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = arrivals(tmp_path)
    write(tmp_path / "data" / "empty.parquet", rows=0)
    assert stream.wait(0) is None
    assert "found 1 files without a row" in capsys.readouterr().err
    write(tmp_path / "data" / "a.parquet")
    assert stream.wait(0) is not None
    write(tmp_path / "data" / "b.parquet", user=["x"] * 5)
    with pytest.raises(
        ValueError, match=r"b.parquet, column 'user': found strings; expected integers, as in the files"
    ):
        stream.wait(1)
    # The record has not taken it up: mended, it comes as if for the first time.
    write(tmp_path / "data" / "b.parquet")
    assert arrivals(tmp_path).wait(1) is not None


def test_half_a_line_of_the_record_is_taken_out(tmp_path: Path) -> None:
    write_first = arrivals(tmp_path)
    write(tmp_path / "data" / "a.parquet")
    first = write_first.wait(0)
    record = tmp_path / "run" / "arrivals.jsonl"
    record.write_text(record.read_text() + '{"number": 1, "fil')
    again = arrivals(tmp_path)
    write(tmp_path / "data" / "b.parquet")
    assert again.wait(0) == first
    second = again.wait(1)
    assert second is not None
    assert [Path(file).name for file in second.files] == ["b.parquet"]
    assert [json.loads(line)["number"] for line in record.read_text().splitlines()] == [0, 1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epochs=2"], "train.epochs is 2, but data.stream trains on each file once"),
        (
            ["optimizer.schedule.decay=linear"],
            "'linear', but a stream has no last step; set it to none, or set train.max",
        ),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(str(Job(tmp_path).config), [*STREAM, *overrides])


@pytest.mark.slow
def test_a_run_on_a_growing_directory_and_one_that_is_resumed_are_the_same(tmp_path: Path) -> None:
    """Two ranks: 50 rows at first, then 40, then 50 again; the second run is begun anew between portions."""
    job = Job(tmp_path)
    files = [tmp_path / "train" / name for name in ("a.parquet", "b.parquet")]
    later = tmp_path / "later"
    later.mkdir()
    files[1].rename(later / "b.parquet")

    def grow(name: str, source: Path) -> None:
        (tmp_path / "train" / f"_{name}").write_bytes(source.read_bytes())
        (tmp_path / "train" / f"_{name}").rename(tmp_path / "train" / name)

    overrides = [*STREAM, "train.evaluate_every=null", f"data.train={tmp_path / 'train'}"]
    run = [f"run.directory={tmp_path / 'whole'}"]
    timer = threading.Thread(
        target=_when_trained, args=(tmp_path / "whole", 4, lambda: grow("b.parquet", later / "b.parquet"))
    )
    timer.start()
    whole = job.result(2, "train", *overrides, *run)
    timer.join()
    log = read_log(str(tmp_path / "whole"))
    (arrival,) = [line for line in log if line["kind"] == "arrival"]
    assert (arrival["portion"], arrival["files"], arrival["rows"], arrival["step"]) == (1, 1, 40, 4)
    assert 0 <= arrival["click/auc"] <= 1
    assert whole["steps"] == 4 + 3  # 50 and 40 rows in batches of 16

    (tmp_path / "train" / "b.parquet").unlink()
    parted = [f"run.directory={tmp_path / 'parted'}"]
    assert job.result(2, "train", *overrides, *parted)["steps"] == 4
    grow("b.parquet", later / "b.parquet")
    assert job.result(2, "train", *overrides, *parted)["steps"] == 7
    assert job.losses("parted") == job.losses("whole")
    # Nothing new: it ends as it stands.
    assert job.result(2, "train", *overrides, *parted)["steps"] == 7


def _when_trained(run: Path, step: int, action: Any) -> None:
    """Act as soon as the log has a training step."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if (run / "log.jsonl").exists() and any(
            line["kind"] == "train" and line["step"] >= step for line in read_log(str(run))
        ):
            return action()
        time.sleep(0.05)
