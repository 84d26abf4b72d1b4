"""data.on_bad_file: ranks and attempts agree on what is set aside, and the run's directory says so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from rankmixer.launch.config.config import Config, load_config
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.rows.bad_files import (
    BadFileReport,
    check_resumed,
    found_bad,
    open_together,
    remembered,
    warn_of_bad,
)
from rankmixer.launch.rows.paths import check_training
from rankmixer.pipeline.journal.journal import Journal, read_log
from rankmixer.pipeline.read.blocks import LOST
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from tests.helpers.damage import ROWS, SCHEMA, damage, table, write
from tests.helpers.job import Job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good files and one of no bytes."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.parquet", table())
    write(tmp_path / "data" / "b.parquet", table(ROWS))
    (tmp_path / "data" / "c.parquet").touch()
    return tmp_path / "data"


def skipping(folder: Path, **keys: Any) -> ParquetDataset:
    return ParquetDataset(str(folder), SCHEMA, keys=["row"], on_bad_file="skip", **keys)


def test_a_resumed_run_keeps_aside_what_was_set_aside(folder: Path) -> None:
    saved = json.loads(json.dumps(remembered(skipping(folder))))
    assert list(saved["bad_files"]) == [str(folder / "c.parquet")]
    write(folder / "c.parquet", table(2 * ROWS))
    resumed = skipping(folder, set_aside=saved["bad_files"])
    check_resumed(resumed, saved, row=4)
    assert resumed.files.num_rows == 2 * ROWS


def test_a_run_does_not_resume_in_the_middle_of_an_epoch_of_other_rows(folder: Path) -> None:
    saved = remembered(skipping(folder))
    (folder / "b.parquet").write_bytes(b"no Parquet")
    resumed = skipping(folder, set_aside=saved["bad_files"])
    with pytest.raises(
        ValueError, match=r"b.parquet: found a file whose .* The run has read this file and stands in the"
    ):
        check_resumed(resumed, saved, row=4)
    check_resumed(resumed, saved, row=0)  # between two epochs no position is lost
    write(folder / "b.parquet", table(ROWS), row_group_size=5)
    message = (
        r"data.train: found 2 files with 24 rows, cut otherwise into files and row groups than when the checkpoint was "
        r"written \(2 files, 24 rows\); expected the same, for the run stands at row 4 of an epoch. Put them back"
    )
    with pytest.raises(ValueError, match=message):
        check_resumed(skipping(folder, set_aside=saved["bad_files"]), saved, row=4)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(
        "feature_schema: {features: {user: {kind: id, range: 90, dim: 4}}, labels: {click: {}}}\n"
        f"data: {{train: {tmp_path / 'data'}, on_bad_file: skip}}\nmodel: {{tokens: 1, width: 8, layers: 1}}\n"
    )
    return load_config(str(path))


def ranks(rank: int) -> Ranks:
    return Ranks(rank, 2, rank, 2, torch.device("cpu"), None)  # type: ignore[arg-type]


def test_ranks_open_what_rank_0_can(folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = skipping(folder).files.bad
    monkeypatch.setattr("rankmixer.launch.rows.bad_files.on_rank_0", lambda *_: bad)
    write(folder / "c.parquet", table(2 * ROWS))  # the other rank could read it
    assert open_together(config, ranks(1), config.data.train).files.num_rows == 2 * ROWS


def test_ranks_that_see_other_rows_are_told(folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_rank_fails_at_b(_: str, step: Callable[[], Any]) -> list[Any]:
        return [step(), ["another layout", 1, ROWS, [str(folder / "b.parquet")]]]

    monkeypatch.setattr("rankmixer.launch.rows.bad_files.together", other_rank_fails_at_b)
    message = (
        r"data: found 2 files with 24 rows on rank 0 and 1 files with 12 rows on rank 1, where .*b.parquet cannot be "
        r"read; expected the same row groups on all ranks. Give all nodes the same files"
    )
    with pytest.raises(ValueError, match=message):
        open_together(config, ranks(0), config.data.train)


def test_reads_end_before_the_other_ranks_give_up(config: Config) -> None:
    assert config.read_seconds == config.run.timeout_seconds / 2
    own = config.model_copy(update={"data": config.data.model_copy(update={"timeout_seconds": 7.0})})
    assert own.read_seconds == 7


def test_the_report_holds_each_once_and_the_log_their_number(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder / "b.parquet", 1, "price")
    dataset = skipping(folder)
    reader = BatchReader(dataset, 4, window_rows=4)
    run = str(tmp_path / "run")
    for _ in range(2):  # two attempts
        with Journal(run, quiet=True) as journal:
            report = BadFileReport(run, journal)
            report.tell(0, "train", found_bad(reader))
            list(reader.epoch())
            report.tell(6, "train", found_bad(reader))
            report.tell(7, "train", found_bad(reader))
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_files.jsonl").read_text().splitlines()]
    assert [(line["data"], Path(line["file"]).name, line["row_group"]) for line in lines] == [
        ("train", "c.parquet", None),
        ("train", "b.parquet", 1),
    ]
    assert lines[0]["reason"].endswith("Write it again, leave it out, or set `data.on_bad_file: skip`.")
    counts = [line["count"] for line in read_log(run) if line["kind"] == "bad_files"]
    assert counts == [1, 2]  # the second attempt began at step 0 too, took back what came later, and knew both
    BadFileReport(run, None).tell(0, "train", found_bad(reader))
    warn_of_bad("data", found_bad(reader) * 3)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 6
    assert warnings[0].startswith(f"warning: data: set aside: {folder / 'c.parquet'}: found an empty file (0 bytes)")
    assert warnings[-1] == "warning: data: 6 files and row groups set aside in all"


@pytest.mark.long
def test_two_ranks_train_without_bad_files_and_resume_without_them(tmp_path: Path) -> None:
    job = Job(tmp_path)
    train = tmp_path / "train"
    rows = pq.read_table(train / "a.parquet")
    write(train / "d.parquet", rows.slice(0, 20), row_group_size=10)
    damage(train / "d.parquet", 1, "click")
    (train / "c.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"c.parquet: found a file whose footer cannot be read \("):
        check_training(load_config(str(job.config)))

    outcome = job.result(2, "train", "data.on_bad_file=skip")
    assert outcome["steps"] == 14  # 90 rows and 20 more in batches of 16, twice
    lines = read_log(str(tmp_path / "run"))
    assert [line["count"] for line in lines if line["kind"] == "bad_files"] == [1, 2]
    assert [line for line in lines if line["kind"] == "mended"][-1][LOST] == 20  # 10 rows, twice
    report = [json.loads(line) for line in (tmp_path / "run" / "bad_files.jsonl").read_text().splitlines()]
    assert [(Path(line["file"]).name, line["row_group"]) for line in report] == [("c.parquet", None), ("d.parquet", 1)]

    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    for checkpoint in (tmp_path / "killed" / "checkpoints").glob("step-*"):
        if checkpoint.name != "step-00000004":
            (checkpoint / "manifest.json").unlink()
    write(train / "c.parquet", rows)  # mended meanwhile
    again = job.result(2, "train", "data.on_bad_file=skip", f"run.directory={tmp_path / 'killed'}")
    assert again == outcome
    assert job.losses("killed") == job.losses()

    evaluation = job.command(1, "evaluate", "data.on_bad_file=skip", f"data.test={train}", "--checkpoint", "latest")
    assert evaluation.returncode == 0, evaluation.stderr
    assert json.loads(evaluation.stdout.splitlines()[-1])["bad_files"] == 1  # c.parquet has been mended
    assert (
        f"warning: data: set aside: {train / 'd.parquet'}, row group 1: found nothing readable (" in evaluation.stderr
    )
