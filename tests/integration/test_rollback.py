"""`train.on_divergence: rollback`: the batch that spoils the weights is found, set aside and passed over."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rankmixer.launch.config.config import load_config
from rankmixer.launch.job.train import train
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.train.loop import DivergedError
from tests.helpers.job import Job

HUGE = 3e38  # a number, until it is multiplied
OVERRIDES = ("feature_schema.features.price.transform=none", "train.on_divergence=rollback", "train.log_steps=3")


def spoil(job: Job, *rows: int) -> None:
    """Give rows of the first training file a number that makes the loss infinite."""
    file = job.folder / "train" / "a.parquet"
    table = pq.read_table(file)
    price = np.array(table["price"].to_pylist(), float)
    price[list(rows)] = HUGE
    column = table.schema.get_field_index("price")
    pq.write_table(table.set_column(column, "price", pa.array(price, from_pandas=True)), file, row_group_size=20)


@pytest.mark.slow
def test_the_batch_is_set_aside_and_named(tmp_path: Path) -> None:
    job, ranks = Job(tmp_path), 2
    spoil(job, 33)
    done = job.command(ranks, "train", *OVERRIDES)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rollbacks"] == 2  # once in each epoch
    assert result["rows_set_aside"] == 32
    assert max(job.losses()) == 10  # twelve batches, and two of them passed over
    events = [line for line in read_log(str(job.folder / "run")) if line["kind"] == "rollback"]
    # searched for, and found
    assert [bool(event["batch"]) for event in events] == [False, True, False, True]
    assert torch.cat([weight.flatten() for weight in job.weights("run", 10).values()]).isfinite().all()
    for epoch in (0, 1):
        files = sorted((job.folder / "run" / "set_aside").glob(f"epoch-{epoch}-*.parquet"))
        assert len(files) == ranks
        rows = pa.concat_tables([pq.read_table(file) for file in files])
        assert rows.column_names[:3] == ["_file", "_row_group", "_row"]
        assert HUGE in rows["price"].to_pylist()
        for row in rows.to_pylist():
            source = pq.read_table(row["_file"]).slice(row["_row"], 1).to_pylist()[0]
            assert source == {name: row[name] for name in source}
            assert (
                pq.ParquetFile(row["_file"]).read_row_group(row["_row_group"])["row"].to_pylist().count(row["row"]) == 1
            )


def test_training_stops_after_three(tmp_path: Path) -> None:
    job = Job(tmp_path)
    spoil(job, *range(50))
    with pytest.raises(DivergedError, match="Rolled back 3 times before"):
        train(load_config(str(job.config), OVERRIDES))


def test_the_rest_is_as_if_the_batches_had_never_been(tmp_path: Path) -> None:
    job = Job(tmp_path)
    spoil(job, 33)
    train(load_config(str(job.config), OVERRIDES))
    told = tmp_path / "told" / "set_aside"
    told.mkdir(parents=True)
    shutil.copy(tmp_path / "run" / "set_aside" / "batches.json", told)
    overrides = (*OVERRIDES, "train.on_divergence=stop", f"run.directory={tmp_path / 'told'}")
    train(load_config(str(job.config), overrides))
    weights, expected = job.weights("run", 10), job.weights("told", 10)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_search_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    job = Job(tmp_path)
    spoil(job, 33)
    file = tmp_path / "run" / "set_aside" / "batches.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"count": 1, "careful_until": 6, "batches": []}))  # and then the job was killed
    train(load_config(str(job.config), (*OVERRIDES, "train.epochs=1")))
    known = json.loads(file.read_text())
    assert (known["count"], known["careful_until"]) == (1, 0)
    assert [batch["step"] for batch in known["batches"]] == [5]
