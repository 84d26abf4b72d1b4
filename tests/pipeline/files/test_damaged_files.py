"""What goes wrong in the middle of an epoch: pages that are damaged, files that change, file systems that stall."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.read.blocks import LOST
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from tests.helpers.damage import ROWS, SCHEMA, batches, damage, rows_of, table, write
from tests.helpers.stalling import Stalling


@pytest.mark.parametrize("columnwise", [1, 100])
@pytest.mark.parametrize(("shuffle", "row_group", "lost"), [(True, 4, 4), (False, 4, 4), (False, 40, 40)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_row_group_that_is_damaged_keeps_its_places_and_counts_for_nothing(
    tmp_path: Path,
    columnwise: int,
    shuffle: bool,
    row_group: int,
    lost: int,
    world_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rankmixer.pipeline.files.decode.COLUMNWISE_ROWS", columnwise)
    write(tmp_path / "a.parquet", table(), row_group_size=row_group)
    bad = write(tmp_path / "b.parquet", table(ROWS, 40), row_group_size=row_group)
    expected = batches(tmp_path, world_size, shuffle=shuffle)[0]
    damage(bad, 0, "price")
    message = (
        r"b.parquet, row group 0: found nothing readable \(.*CRC.*\); expected the row group. Write the file again"
    )
    with pytest.raises(DataError, match=message):
        batches(tmp_path, world_size, shuffle=shuffle)

    read, readers = batches(
        ParquetDataset(str(tmp_path), SCHEMA, keys=["row"], on_bad_file="skip"), world_size, shuffle=shuffle
    )
    gone = set(range(ROWS, ROWS + lost))
    assert sum((reader.mended for reader in readers), start=Counter()) == {LOST: lost}
    assert {place for reader in readers for place in reader.damaged} == {(str(bad), 0)}
    assert len(read) == len(expected)
    for batch, other in zip(read, expected, strict=True):
        assert batch.keys is not None
        assert other.keys is not None
        rows = other.keys["row"].to_pylist()
        assert batch.keys["row"].to_pylist() == [None if row in gone else row for row in rows]
        kept = [number for number, row in enumerate(rows) if row not in gone]
        dropped = [number for number, row in enumerate(rows) if row in gone]
        assert batch.weights_B[dropped].tolist() == [0] * len(dropped)
        assert batch.weights_B[kept].tolist() == [1] * len(kept)
        assert batch.dense_BF[kept].tolist() == other.dense_BF[kept].tolist()
        for key in SCHEMA.sparse_features:
            ids, others = (some.sparse[key].to_dense() for some in (batch, other))
            assert [ids[number].tolist() for number in kept] == [others[number].tolist() for number in kept]
            assert all(not len(ids[number]) for number in dropped)


def test_a_giant_row_group_is_lost_from_the_piece_that_is_damaged_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(0, 40), row_group_size=40, use_dictionary=False, max_rows_per_page=10)
    damage(path, 0, "price")  # its last page
    dataset = ParquetDataset(str(path), SCHEMA, keys=["row"], on_bad_file="skip")
    read, (reader,) = batches(dataset, shuffle=False)
    found = rows_of(read)
    rest = reader.mended[LOST]
    assert 0 < rest < 40
    assert sorted(found) == list(range(40 - rest))


def test_rows_of_a_prediction_are_not_made_up(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table())
    damage(path, 1, "price")
    dataset = ParquetDataset(str(path), SCHEMA, labels=False, on_bad_file="skip")
    with pytest.raises(DataError, match=r"a.parquet, row group 1: found nothing readable"):
        batches(dataset, shuffle=False)


def test_a_file_that_vanishes_or_changes_is_named_whatever_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table())
    dataset = ParquetDataset(str(path), SCHEMA, on_bad_file="skip")
    data, stat = path.read_bytes(), path.stat()
    path.unlink()
    with pytest.raises(DataError, match=r"a.parquet: found no file any more; expected the file as it was. Put it back"):
        batches(dataset)
    path.write_bytes(data)  # the same bytes at another time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(
        DataError, match=r"a.parquet: found a file that has changed since its footer was read; expected"
    ):
        batches(dataset)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    batches(dataset)
    path.write_bytes(data + b"more")
    found = rf"a.parquet: found a file that has changed .* \({len(data)} bytes then, {len(data) + 4} now\)"
    with pytest.raises(DataError, match=found):
        batches(dataset)


@pytest.mark.parametrize("columnwise", [1, 100])
@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 100), lambda path: os.utime(path, ns=(0, 0))])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], columnwise: int
) -> None:
    monkeypatch.setattr("rankmixer.pipeline.files.decode.COLUMNWISE_ROWS", columnwise)
    path = write(tmp_path / "a.parquet", table())
    dataset = ParquetDataset(str(path), SCHEMA)
    opening = type(dataset.files.files[0]).open

    def open_and_change(*arguments: Any) -> Any:
        opened = opening(*arguments)
        change(path)
        return opened

    monkeypatch.setattr("rankmixer.pipeline.files.files.ParquetFile.open", open_and_change)
    with pytest.raises(DataError, match=r"a.parquet: found a file that has changed since its footer was read"):
        batches(dataset)


def test_bytes_that_cannot_be_had_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any) -> None:
        raise ConnectionError("the bucket is closed")

    path = write(tmp_path / "a.parquet", table())
    damage(path, 0, "price")
    dataset = ParquetDataset(str(path), SCHEMA, on_bad_file="skip")
    monkeypatch.setattr("rankmixer.pipeline.files.files.ParquetFile.fetch", fetch)
    found = r"row group 0: found no answer \(ConnectionError: the bucket is closed\); expected its bytes. See to memory"
    with pytest.raises(DataError, match=found):
        batches(dataset)


@pytest.fixture
def stalling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Stalling]]:
    """Two files on a file system that stalls at b.parquet once `slow` says so; at the end it answers again."""
    monkeypatch.setattr("rankmixer.pipeline.base.prefetch.SECONDS_BETWEEN_LOOKS", 0.02)
    for number, name in enumerate(("a", "b")):
        data = write(tmp_path / name, table(number * ROWS)).read_bytes()
        Stalling().pipe_file(f"/data/{name}.parquet", data)
    Stalling.answers.clear()
    yield Stalling
    Stalling.answers.set()
    Stalling.slow = ""
    for thread in threading.enumerate():
        if thread.name.startswith("prefetch"):
            thread.join(10)
    Stalling().rm("/data", recursive=True)


@pytest.mark.parametrize(("slow", "what"), [("b.parquet", "/data/b.parquet"), ("data", "stalling://data")])
def test_a_file_system_that_stalls_at_the_start(stalling: type[Stalling], slow: str, what: str) -> None:
    stalling.slow = slow
    message = f"^{what}: found a file system that has not answered for 2 s; expected its bytes. See to the file system"
    with pytest.raises(DataError, match=message):
        ParquetFiles.open("stalling://data", read_seconds=2)


def test_a_file_system_that_stalls_during_the_epoch(stalling: type[Stalling]) -> None:
    dataset = ParquetDataset("stalling://data", SCHEMA, read_seconds=2, on_bad_file="skip")
    reader = BatchReader(dataset, 4, shuffle=False, window_rows=4)
    assert len(list(reader.epoch())) == 6
    stalling.slow = "b.parquet"
    steps = reader.epoch()
    message = r"^/data/b.parquet, row group \d: found a file system that has not answered for 2 s; expected its bytes"
    with pytest.raises(DataError, match=message):
        list(steps)
    assert list(steps) == []


def test_a_process_ends_though_a_read_does_not(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table())
    script = f"""
import rankmixer.pipeline.base.prefetch
from rankmixer.launch.cli import command
from tests.helpers.stalling import Stalling
rankmixer.pipeline.base.prefetch.SECONDS_BETWEEN_LOOKS = 0.05
Stalling().pipe_file("/data/a.parquet", open({str(tmp_path / "a.parquet")!r}, "rb").read())
Stalling.slow = "a.parquet"
command(["train", "--config", {str(tmp_path / "run.yaml")!r}])
"""
    (tmp_path / "run.yaml").write_text(
        "feature_schema: {features: {user: {kind: id, range: 90, dim: 4}}, labels: {click: {}}}\n"
        f"data: {{train: 'stalling://data', timeout_seconds: 2}}\nrun: {{directory: {tmp_path / 'run'}}}\n"
        "model: {tokens: 1, width: 8, layers: 1}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.count("rankmixer: error: /data/a.parquet: found a file system that has not answered for 2 s") == 1
    )
    assert "Traceback" not in done.stderr
