"""Down-sampling: exact at any shape, unbiased, and calibrated at the end of a real run."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankmixer.launch.config.config import load_config
from rankmixer.launch.job.train import train
from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.read.sampling import Sampling
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.job import Job

SCHEMA = Schema.model_validate(
    {
        "features": {"user": {"kind": "id", "range": 1000, "dim": 4}},
        "labels": {"click": {}, "buy": {}},
        "weight": "importance",
    }
)
Row = tuple[int, float]


def write(folder: str, files: list[list[int]]) -> list[int]:
    """Files with row groups of those sizes, rows numbered through; the rows that were clicked."""
    first = 0
    for number, groups in enumerate(files):
        with pq.ParquetWriter(f"{folder}/{number}.parquet", table(0, 0).schema) as writer:
            for rows in groups:
                writer.write_table(table(first, rows))
                first += rows
    return [row for row in range(first) if row % 4 == 1]


def table(first: int, rows: int) -> pa.Table:
    numbers = np.arange(first, first + rows)
    labels = {"click": numbers % 4 == 1, "buy": numbers % 8 == 1}
    return pa.table({"row": numbers, "user": numbers, **labels, "importance": 1.0 + numbers % 3})


def read(dataset: ParquetDataset, world_size: int, epoch: int, row: int, **keys: Any) -> list[list[Row]]:
    """(row, weight) of every step, ranks one after the other."""
    ranks = []
    for rank in range(world_size):
        batches = BatchReader(dataset, rank=rank, world_size=world_size, **keys).epoch(epoch, row)
        read_here = []
        for batch in batches:
            assert batch.keys is not None
            read_here.append(list(zip(batch.keys["row"].to_pylist(), batch.weights_B.tolist(), strict=False)))
        ranks.append(read_here)
    return [[row for rank in step for row in rank] for step in zip(*ranks, strict=True)]


@given(
    files=st.lists(st.lists(st.integers(0, 13), max_size=3), min_size=1, max_size=3),
    keep=st.floats(0.05, 1.0),
    negatives_of=st.sampled_from([None, "click"]),
    world_size=st.sampled_from([1, 2, 4]),
    window_rows=st.integers(1, 30),
    fraction=st.floats(0, 0.99),
)
@settings(max_examples=40, deadline=None)
def test_every_kept_row_once_and_in_one_order(
    files: list[list[int]], keep: float, negatives_of: str | None, world_size: int, window_rows: int, fraction: float
) -> None:
    sampling = Sampling(keep=keep, negatives_of=negatives_of)
    with tempfile.TemporaryDirectory() as folder:
        clicked = write(folder, files)
        total = sum(map(sum, files))
        if not total:
            return
        dataset = ParquetDataset(folder, SCHEMA, keys=["row"])
        keys: dict[str, Any] = {"sampling": sampling, "window_rows": window_rows, "batch_size": 4, "seed": 3}
        try:
            reader = BatchReader(dataset, **keys)
        except ValueError:  # no row is left
            return
        epochs = [read(dataset, 1, epoch, 0, **keys) for epoch in range(3)]
        for steps in epochs:
            rows = [row for step in steps for row, _ in step]
            assert len(rows) == len(set(rows)) == reader.num_rows
            assert set(rows) <= set(range(total))
            if negatives_of:
                assert set(clicked) <= set(rows)
            for row, weight in (pair for step in steps for pair in step):
                may_go = negatives_of is None or row not in clicked
                assert weight == pytest.approx((1 + row % 3) * (1 / keep if may_go else 1))
        row = int(fraction * reader.num_rows) // 4 * 4
        assert read(dataset, world_size, 1, row, **keys) == epochs[1][row // 4 :]


def test_a_damaged_row_group_keeps_its_places(tmp_path: Path) -> None:
    pq.write_table(
        table(0, 60), tmp_path / "a.parquet", row_group_size=20, compression="none", write_page_checksum=True
    )
    labels = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(2)
    assert labels.path_in_schema == "click"
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[labels.data_page_offset + labels.total_compressed_size - 1] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    sampling = Sampling(keep=0.5, negatives_of="click")
    keys: dict[str, Any] = {"batch_size": 4, "sampling": sampling}
    with pytest.raises(DataError, match="row group 1"):
        BatchReader(ParquetDataset(str(tmp_path), SCHEMA, keys=["row"]), **keys)
    dataset = ParquetDataset(str(tmp_path), SCHEMA, keys=["row"], on_bad_file="skip")
    rows = [row for step in read(dataset, 1, 0, 0, **keys) for row in step]
    assert sorted(weight for row, weight in rows if row is None) == [0.0] * 20
    there = [row for row, _ in rows if row is not None]
    assert len(there) == len(set(there)) == BatchReader(dataset, **keys).num_rows - 20
    assert set(there) & set(range(20, 40)) == set()


def test_no_row_is_left(tmp_path: Path) -> None:
    write(str(tmp_path), [[3]])
    with pytest.raises(ValueError, match=r"data\.sample: keep 1e-09 leaves none of 3 rows; keep more"):
        BatchReader(ParquetDataset(str(tmp_path), SCHEMA), 4, sampling=Sampling(keep=1e-9))


def test_in_expectation_nothing_is_lost(tmp_path: Path) -> None:
    """Over seeds each row that may be left out is kept as often as `keep` says, in small row groups too."""
    clicked = write(str(tmp_path), [[3, 1, 2, 30], [1, 1, 1]])
    dataset = ParquetDataset(str(tmp_path), SCHEMA, keys=["row"])
    seeds, kept = 400, np.zeros(39)
    for seed in range(seeds):
        (step,) = read(dataset, 1, 0, 0, sampling=Sampling(keep=0.3, negatives_of="click"), batch_size=64, seed=seed)
        kept[[row for row, _ in step]] += 1
    assert (kept[clicked] == seeds).all()
    others = np.delete(kept, clicked) / seeds
    assert np.abs(others - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / seeds)  # four standard errors


def test_other_rows_in_other_epochs(tmp_path: Path) -> None:
    write(str(tmp_path), [[40, 40]])
    dataset = ParquetDataset(str(tmp_path), SCHEMA, keys=["row"])
    chosen = [
        {row for step in read(dataset, 1, epoch, 0, sampling=Sampling(keep=0.5), batch_size=8) for row, _ in step}
        for epoch in (0, 1, 0)
    ]
    assert chosen[0] == chosen[2] != chosen[1]


def test_a_file_that_changed_is_named(tmp_path: Path) -> None:
    write(str(tmp_path), [[40]])
    dataset = ParquetDataset(str(tmp_path), SCHEMA)
    reader = BatchReader(dataset, 8, sampling=Sampling(keep=0.5, negatives_of="click"))
    assert reader._sampler is not None
    reader._sampler._candidates[0] = 29
    with pytest.raises(DataError, match=r"0\.parquet.*row group 0.*'click': found 30 rows .* expected 29, as when"):
        list(reader.epoch())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sample={keep: 0}", r"data\.sample\.keep: .*greater than 0; found 0"),
        ("data.sample={keep: 1.5}", r"data\.sample\.keep: .*less than or equal to 1; found 1\.5"),
        (
            "data.sample={keep: 0.5, negatives_of: clicks}",
            r"data\.sample\.negatives_of is 'clicks'; the schema's labels are \['click', 'like'\]",
        ),
        ("data.sample={share: 0.5}", r"unknown key 'share'.*known keys: keep, negatives_of"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(str(Job(tmp_path).config), [override])


def test_negatives_that_are_not_there_are_missed_before_the_first_step(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for path in (tmp_path / "train").glob("*.parquet"):
        rows = pq.read_table(path)
        soft = pa.array(np.full(len(rows), 0.3))
        pq.write_table(rows.set_column(rows.schema.get_field_index("click"), "click", soft), path)
    config = load_config(str(job.config), ["data.sample={keep: 0.5, negatives_of: click}"])
    with pytest.raises(ValueError, match=r"data.sample: in no row is click 0, so that negatives_of leaves nothing out"):
        train(config)


@pytest.mark.slow
def test_a_model_of_sampled_negatives_is_calibrated(tmp_path: Path) -> None:
    """A quarter of the rows, one click in sixteen: predictions meet the rate of all rows, as without sampling."""
    rng = np.random.default_rng(0)
    for part, rows in (("train", 12_000), ("test", 8_000)):
        user = rng.integers(0, 20, rows)
        click = rng.random(rows) < np.where(user % 2, 0.1, 0.025)
        pq.write_table(pa.table({"user": user, "click": click}), tmp_path / f"{part}.parquet", row_group_size=5000)
    schema = '{"features": {"user": {"kind": "id", "range": 20, "dim": 8}}, "labels": {"click": {}}}'
    (tmp_path / "new").mkdir()
    job = Job(tmp_path / "new")
    overrides = [
        f"feature_schema={schema}",
        f"data.train={tmp_path / 'train.parquet'}",
        f"data.evaluate={tmp_path / 'test.parquet'}",
        "data.batch_size=128",
        "optimizer.schedule={warmup_steps: 0, decay: linear}",
        "train.epochs=4",
        "train.evaluate_every=null",
        "metrics.group=null",
        "model.tokens=2",
    ]
    result = job.result(1, "train", *overrides, "data.sample={keep: 0.2, negatives_of: click}")
    assert result["steps"] < 0.3 * 4 * 12_000 / 128
    assert result["calibration"] == pytest.approx(1.0, abs=0.25)  # without the weights: about 4
