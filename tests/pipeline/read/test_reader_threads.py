"""The reader's threads: they work ahead, end with the iterator, and an error comes in its turn."""

import gc
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.files.decode import Decoder, Read
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.told_apart import SCHEMA, write

GUARD = 300  # seconds, which only a fault takes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ParquetDataset:
    """103 rows in two files, row groups of 40, 25, 30 and 8."""
    folder = str(tmp_path_factory.mktemp("data"))
    write(folder, [[40, 25], [30, 8]])
    return ParquetDataset(folder, SCHEMA, keys=["row"])


def prefetching() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")}


def test_closing_early_stops_every_thread(dataset: ParquetDataset) -> None:
    assert not prefetching()
    batches = BatchReader(dataset, 5, threads=3, window_rows=10).epoch()
    next(batches)
    assert prefetching()
    batches.close()
    assert not prefetching()
    # So does forgetting the iterator.
    next(iter(BatchReader(dataset, 5, threads=3, window_rows=10).epoch()))
    gc.collect()
    assert not prefetching()


def test_an_error_comes_in_place_of_its_batch_and_stops_the_threads(tmp_path: Path) -> None:
    columns = {"user": [1] * 30 + [9], "click": [0] * 31}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=10)
    schema = Schema.model_validate(
        {"features": {"user": {"kind": "id", "range": 9, "dim": 4}}, "labels": {"click": {}}}
    )
    batches = BatchReader(ParquetDataset(str(tmp_path), schema), 10, shuffle=False, window_rows=10).epoch()
    for _ in range(3):
        next(batches)
    with pytest.raises(DataError, match="row group 3, row 30, column 'user': found 9"):
        next(batches)
    assert list(batches) == []
    assert not prefetching()


def test_batches_are_prepared_while_the_last_one_is_used(
    dataset: ParquetDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = threading.Semaphore(0)
    opening = Decoder.open

    def counting(*arguments: Any) -> Read:
        decoded.release()
        return opening(*arguments)

    monkeypatch.setattr(Decoder, "open", counting)
    batches = BatchReader(dataset, 2, threads=2, window_rows=1).epoch()
    next(batches)
    for _ in range(2):
        assert decoded.acquire(timeout=GUARD), "only what was asked for is decoded"
    batches.close()
