import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankmixer.pipeline.files.decode import Decoder
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.order import permutation, windows
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.told_apart import SCHEMA, check, read, table, write

shapes = st.lists(st.lists(st.integers(0, 13), max_size=3), min_size=1, max_size=3)


@given(
    files=shapes.filter(lambda files: sum(map(sum, files)) > 0),
    local=st.integers(1, 6),
    worlds=st.tuples(st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2])),
    threads=st.integers(1, 3),
    window_rows=st.integers(1, 30),
    shuffle=st.booleans(),
    epoch=st.integers(0, 2),
    fraction=st.floats(0, 0.99),
    columnwise=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_row_once_in_one_order(
    files: list[list[int]],
    local: int,
    worlds: tuple[int, int],
    threads: int,
    window_rows: int,
    shuffle: bool,
    epoch: int,
    fraction: float,
    columnwise: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankmixer.pipeline.files.decode.COLUMNWISE_ROWS", 1 if columnwise else 1000)
        write(folder, files)
        dataset = ParquetDataset(folder, SCHEMA, keys=["row"])
        rows = sum(map(sum, files))
        keys: dict[str, Any] = {"window_rows": window_rows, "shuffle": shuffle, "seed": 5}
        batch_size = local * worlds[0] * worlds[1]
        whole = read(dataset, batch_size, 1, epoch, 0, **keys, threads=1)
        order = [row for step in whole for row in step]
        assert sorted(order) == list(range(rows))
        assert order == sorted(order) or shuffle
        assert order == naive_order(dataset, window_rows, shuffle, epoch)
        # The same steps on other ranks and threads, from the middle of the epoch.
        row = int(fraction * rows) // batch_size * batch_size
        assert read(dataset, batch_size, worlds[0], epoch, row, **keys, threads=threads) == whole[row // batch_size :]
        # Another batch size continues where this one stopped.
        half = read(dataset, batch_size // worlds[1], worlds[0], epoch, row, **keys, threads=threads)
        assert [row for step in half for row in step] == order[row:]


def naive_order(dataset: ParquetDataset, window_rows: int, shuffle: bool, epoch: int) -> list[int]:
    groups = dataset.files.row_groups
    starts = np.cumsum([0, *(group.num_rows for group in groups)])
    order = []
    for window in windows([group.num_rows for group in groups], window_rows, 5, epoch, shuffle):
        held = [row for group in window.row_groups for row in range(starts[group], starts[group + 1])]
        order += [int(held[row]) for row in permutation(window, 5, epoch, shuffle)]
    return order


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ParquetDataset:
    """103 rows in two files, row groups of 40, 25, 30 and 8."""
    folder = str(tmp_path_factory.mktemp("data"))
    write(folder, [[40, 25], [30, 8]])
    return ParquetDataset(folder, SCHEMA, keys=["row"])


def test_epochs_and_seeds_differ_and_repeat(dataset: ParquetDataset) -> None:
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            first, again = (read(dataset, 10, 1, epoch, 0, seed=seed, window_rows=50) for _ in range(2))
            assert first == again
            orders[seed, epoch] = str(first)
    assert len(set(orders.values())) == 4


def test_steps_and_positions(dataset: ParquetDataset) -> None:
    reader = BatchReader(dataset, 10)
    assert reader.num_rows == 103
    assert (reader.steps(), reader.steps(5), reader.steps(93), reader.steps(102)) == (11, 10, 1, 1)
    assert reader.next_position(3, 0, 2) == (3, 20)
    assert reader.next_position(3, 93, 1) == (4, 0)
    assert reader.next_position(3, 0, 11) == (4, 0)
    assert reader.next_position(3, 7, 0) == (3, 7)
    rows = [check(batch) for batch in reader.epoch(1, row=0, steps=4)]
    assert len(rows) == 4
    rows += [check(batch) for batch in reader.epoch(1, row=40)]
    assert rows == read(dataset, 10, 1, 1, 0)
    assert list(reader.epoch(0, steps=0)) == []


def test_the_last_step_is_padded_with_rows_that_do_not_count(dataset: ParquetDataset) -> None:
    # 103 rows, 24 a step over 4 ranks: the last step has 7 rows, 6 on rank 0, 1 on rank 1, none on ranks 2 and 3.
    last = [list(BatchReader(dataset, 24, rank, 4).epoch())[-1] for rank in range(4)]
    assert [len(check(batch)) for batch in last] == [6, 1, 0, 0]
    assert [batch.weight_sum > 0 for batch in last] == [True, True, False, False]


def test_a_batch_larger_than_the_data(dataset: ParquetDataset) -> None:
    assert [len(rows) for rows in read(dataset, 1000, 2, 0, 0, window_rows=20)] == [103]


def test_a_giant_row_group_is_read_in_pieces_without_shuffling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path), [[5, 90, 4]])
    dataset = ParquetDataset(str(tmp_path), SCHEMA, keys=["row"])
    pieces: list[int] = []
    stream = Decoder.stream

    def counting(*arguments: Any) -> Iterator[pa.RecordBatch]:
        for piece in stream(*arguments):
            pieces.append(len(piece))
            yield piece

    monkeypatch.setattr(Decoder, "stream", counting)
    for world_size in (1, 2):
        steps = read(dataset, 8, world_size, 0, 16, shuffle=False, window_rows=20)
        assert [row for step in steps for row in step] == list(range(16, 99))
    assert max(pieces) == 20
    pieces.clear()
    read(dataset, 8, 1, 0, 0, shuffle=True, window_rows=20)
    assert pieces == []


def test_predicting_needs_neither_labels_nor_weights(tmp_path: Path) -> None:
    bare = table(0, 9).drop_columns(["click", "buy", "importance"])
    pq.write_table(bare, tmp_path / "a.parquet")
    dataset = ParquetDataset(str(tmp_path), SCHEMA, keys=["row", "user"], labels=False)
    batches = list(BatchReader(dataset, 6, shuffle=False).epoch())
    assert [batch.labels_BK.tolist() for batch in batches] == [[[0, 0]] * 6] * 2
    assert batches[1].weights_B.tolist() == [1, 1, 1, 0, 0, 0]
    assert batches[1].keys is not None
    assert batches[1].keys.to_pydict() == {"row": [6, 7, 8], "user": [6, 7, 8]}


def test_a_key_that_is_also_a_string_feature_keeps_its_type(tmp_path: Path) -> None:
    columns = {"city": ["a", "b", None, "a"], "click": [0, 1, 0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    schema = Schema.model_validate(
        {"features": {"city": {"kind": "id", "buckets": 9, "dim": 4}}, "labels": {"click": {}}}
    )
    dataset = ParquetDataset(str(tmp_path), schema, keys=["city"])
    for shuffle in (False, True):
        (batch,) = BatchReader(dataset, 4, shuffle=shuffle).epoch()
        assert batch.keys is not None
        assert batch.keys.schema == pa.schema([("city", pa.string())])
        assert Counter(batch.keys["city"].to_pylist()) == Counter(["a", "b", None, "a"])


def test_files_of_different_widths(tmp_path: Path) -> None:
    narrow = table(0, 10)
    wide = table(10, 10)
    for name, type_ in (("user", pa.int64()), ("tags", pa.large_list(pa.uint64())), ("price", pa.float32())):
        wide = wide.set_column(wide.column_names.index(name), name, wide[name].cast(type_))
    pq.write_table(narrow, tmp_path / "a.parquet")
    pq.write_table(wide, tmp_path / "b.parquet")
    steps = read(ParquetDataset(str(tmp_path), SCHEMA, keys=["row"]), 7, 1, 0, 0)
    assert sorted(row for step in steps for row in step) == list(range(20))


def test_from_memory() -> None:
    memory = fsspec.filesystem("memory")
    write("/reader", [[7, 0, 5], [], [4]], memory)
    steps = read(ParquetDataset("memory://reader/*.parquet", SCHEMA, keys=["row"]), 6, 2, 0, 0, window_rows=5)
    assert sorted(row for step in steps for row in step) == list(range(16))
    memory.rm("/reader", recursive=True)


def test_what_was_mended_is_counted_with_the_batches_handed_out(tmp_path: Path) -> None:
    users = [1, None] * 20
    pq.write_table(pa.table({"user": users, "click": [0] * 40}), tmp_path / "a.parquet", row_group_size=10)
    schema = Schema.model_validate(
        {"features": {"user": {"kind": "id", "range": 9, "dim": 4}}, "labels": {"click": {}}}
    )
    for world_size in (1, 2):
        counts: Counter[str] = Counter()
        for rank in range(world_size):
            reader = BatchReader(ParquetDataset(str(tmp_path), schema), 4, rank, world_size, window_rows=10)
            batches = reader.epoch()
            next(batches)
            assert reader.mended["user: null -> empty"] <= 10
            list(batches)
            counts += reader.mended
        assert counts == {"user: null -> empty": 20}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 10, "world_size": 4}, r"batch_size: found 10, .* multiple of the 4 ranks, such as 8 or 12"),
        ({"batch_size": 3, "world_size": 4}, r"batch_size: found 3, .* multiple of the 4 ranks, such as 4"),
        ({"batch_size": 0}, r"batch_size: found 0; expected at least 1"),
        ({"batch_size": 4, "threads": 0}, r"threads: found 0; expected at least 1"),
        ({"batch_size": 4, "window_rows": 0}, r"window_rows: found 0; expected at least 1"),
        ({"batch_size": 4, "seed": -1}, r"seed: found -1; expected at least 0"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, r"rank: found 2; expected 0 to 1"),
    ],
)
def test_numbers_that_cannot_be(dataset: ParquetDataset, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchReader(dataset, **arguments)


def test_positions_that_cannot_be(dataset: ParquetDataset) -> None:
    reader = BatchReader(dataset, 10)
    with pytest.raises(ValueError, match="row: found 103; expected a position from 0 to 102, the rows of the data"):
        reader.epoch(0, row=103)
    with pytest.raises(ValueError, match="steps: found 12; expected at most the 11 that are left in the epoch"):
        reader.epoch(0, steps=12)
