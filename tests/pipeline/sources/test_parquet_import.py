"""Parquet of any origin as training data, with the proposals that a CSV gets, and a run on what was written."""

import datetime
import decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.launch.cli import main
from rankmixer.launch.config.config import load_config
from rankmixer.pipeline.propose.split import PARTS
from rankmixer.pipeline.sources import parquet_import, parquet_part
from rankmixer.pipeline.sources.parquet_import import import_parquet, import_parquet_like

ROWS = 400


def write(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def labels(rows: int = ROWS) -> list[int]:
    return [row % 2 for row in range(rows)]


def imported(tmp_path: Path, **options: Any) -> tuple[pa.Table, str]:
    """All rows that were written of `tmp_path`/in, and the schema."""
    import_parquet([str(tmp_path / "in")], str(tmp_path / "out"), **options)
    tables = [pq.read_table(tmp_path / "out" / part) for part in PARTS]
    return pa.concat_tables(tables), (tmp_path / "out/schema.yaml").read_text()


def line_of(text: str, name: str) -> str:
    return next(line.strip() for line in text.splitlines() if line.strip().startswith((f"{name}:", f'# "{name}":')))


DECIMAL = [decimal.Decimal(row % 5) for row in range(ROWS)]
MOMENT = datetime.datetime(2024, 6, 1, 13)
AS_WRITTEN: list[tuple[pa.Array, pa.DataType | None, str]] = [
    (pa.array(["a", "b", None, "c"] * 100).dictionary_encode(), pa.string(), "{kind: id, vocabulary:"),
    (pa.array(["a", "b"] * 200, pa.large_string()), pa.large_string(), "{kind: id, vocabulary:"),
    (pa.array(["007", "12"] * 200), pa.string(), "{kind: id, vocabulary:"),
    (pa.array([b"a", b"b"] * 200, pa.binary()), pa.string(), "{kind: id, vocabulary:"),
    (pa.array([b"a", b"b"] * 200, pa.large_binary()), pa.large_string(), "{kind: id, vocabulary:"),
    (pa.array([b"aa", b"bb"] * 200, pa.binary(2)), pa.string(), "{kind: id, vocabulary:"),
    (pa.array([b"\xff", b"b"] * 200), None, "bytes that are no text in UTF-8"),
    (pa.array([True, False, None, True] * 100), pa.bool_(), "{kind: id, range: 2, on_bad: reserve, dim: 8}"),
    (pa.array([1, 2, None, 3] * 100, pa.uint8()), pa.uint8(), "{kind: id, range: 4, on_bad: reserve, dim: 8}"),
    (pa.array([2**64 - 1, 2**63, 5, 6] * 100, pa.uint64()), pa.uint64(), "{kind: id, vocabulary:"),
    (pa.array([1.0, float("nan"), None, 3.0] * 100), pa.int64(), "{kind: id, range: 4, on_bad: reserve, dim: 8}"),
    (pa.array([1.5, 2.0, None, 3.0] * 100), pa.float64(), "{kind: number, standardise: learn, default: "),
    (pa.array(np.array([1.5, 2] * 200, np.float16)), pa.float32(), "{kind: number, standardise: learn}"),
    (pa.array([1e300, 2.5] * 200), pa.float64(), "{kind: number, quantiles: 32, dim: 8}"),
    (pa.array([float("inf"), 2.5] * 200), pa.float64(), "infinite in "),
    (pa.array(DECIMAL, pa.decimal128(38, 0)), pa.int64(), "{kind: id, range: 5, on_bad: reserve, dim: 8}"),
    (pa.array([decimal.Decimal(10**30 + n % 3) for n in range(ROWS)]), pa.string(), "{kind: id, vocabulary:"),
    (pa.array([value / 2 for value in DECIMAL], pa.decimal128(9, 2)), pa.float64(), "{kind: number, standardise:"),
    (pa.array([MOMENT] * 399 + [None], pa.timestamp("ns")), pa.timestamp("ns"), "{column: x, kind: time, part: hour"),
    (pa.array([MOMENT] * 400, pa.timestamp("ms", "UTC")), pa.timestamp("ms", "UTC"), "{column: x, kind: time, part"),
    (pa.array([MOMENT.date()] * 400), pa.date32(), "{column: x, kind: time, part: weekday, dim: 8}"),
    (pa.array([MOMENT.date()] * 400, pa.date64()), pa.date32(), "{column: x, kind: time, part: weekday, dim: 8}"),
    (pa.array([datetime.datetime(9999, 12, 31), MOMENT] * 200), pa.timestamp("us"), "times are not from 1900 to 2199"),
    (pa.array([[1, 2], None, [], [3]] * 100), pa.list_(pa.int64()), "{kind: id_list, range: 4, on_bad: reserve"),
    (pa.array([["a"], ["b", None]] * 200, pa.large_list(pa.string())), pa.large_list(pa.string()), "{kind: id_list, v"),
    (pa.array([[1, 2], [3, 4]] * 200, pa.list_(pa.int32(), 2)), pa.list_(pa.int32()), "{kind: id_list, range: 5"),
    (pa.array(["a|b", "b", "a"] * 133 + ["a"]), pa.string(), '{kind: id_list, separator: "|", vocabulary:'),
    (pa.array([[0.5, 2.0]] * 400), None, "lists of double; lists hold integers or text"),
    (pa.array([{"a": 1}] * 400), None, "a struct; write its fields as columns of their own"),
    (pa.array([[("a", 1)]] * 400, pa.map_(pa.string(), pa.int8())), None, "a map; write its fields as columns of "),
    (pa.array([MOMENT.time()] * 400), None, "of which no feature is made; write it as a number or text"),
    (pa.nulls(400), None, "empty in every row"),
    (pa.nulls(400, pa.string()), pa.string(), "empty in every training row"),
    (pa.array(["line\nbreak", "b"] * 200), pa.string(), "{kind: id, buckets: 16, "),
    (pa.array([f"r{row}" for row in range(ROWS)]), pa.string(), "nearly every row has a value of its own, such as 'r"),
]


@pytest.mark.parametrize(("array", "type_", "line"), AS_WRITTEN, ids=[str(array.type) for array, _, _ in AS_WRITTEN])
def test_every_type_is_read_or_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], array: pa.Array, type_: pa.DataType | None, line: str
) -> None:
    write(tmp_path / "in/a.parquet", x=array, n=[row % 7 for row in range(ROWS)], click=labels())
    table, text = imported(tmp_path)
    name = "x_weekday" if "weekday" in line else "x_hour" if "hour" in line or "kind: time" in line else "x"
    assert line in line_of(text, name)
    if type_ is None:
        assert "x" not in table.schema.names
        assert "left out x: " in capsys.readouterr().out
    else:
        assert table["x"].type == type_
        said = "x: numbers from 2.5 to 1e+300, which no mean can be taken of" in capsys.readouterr().out
        assert said == ("quantiles" in line)
        if type_ == array.type:
            assert sorted(map(str, table["x"].to_pylist())) == sorted(map(str, array.to_pylist()))
    load_config(str(tmp_path / "out/run.yaml"))  # the schema and its vocabularies can be read


def test_imported_then_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rows = 1200
    user = random.integers(0, 40, rows)
    times = np.datetime64("2024-06-01", "us") + random.permutation(rows).astype("timedelta64[m]")
    write(
        tmp_path / "logs/day.parquet",
        user_id=user.astype(float),
        device=pa.array(random.choice(["mobile", "desktop", "tablet"], rows)).dictionary_encode(),
        genres=pa.array([["a", "b"][: row % 3] for row in range(rows)]),
        price=pa.array([decimal.Decimal(row % 90) / 4 for row in range(rows)], pa.decimal128(9, 2)),
        at=pa.array(times),
        bought=user < 20,
    )
    assert main(["data", "parquet", "logs", "--out", "data/logs", "--label", "bought", "--time", "at"]) == 0
    printed = capsys.readouterr().out
    assert "logs: 1,200 rows, 6 columns" in printed
    assert "960 rows train, 120 evaluate, 120 test, by time: from 2024-06-01 16:00:00" in printed
    assert main(["train", "--config", "data/logs/run.yaml", "train.epochs=2", "model.preset=tiny"]) == 0
    assert main(["evaluate", "--config", "data/logs/run.yaml"]) == 0


def test_files_directories_globs_and_urls_are_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_part, "ROW_GROUP_ROWS", 64)
    monkeypatch.setattr(parquet_import, "BATCH_ROWS", 50)
    x = [row % 9 for row in range(200)]
    write(tmp_path / "in/day=1/a.parquet", x=pa.array(x, pa.int32()), city=pa.nulls(200), click=labels(200))
    write(tmp_path / "in/day=2/b.parquet", x=pa.array(x, pa.int64()), click=labels(200))
    with fsspec.open("memory://logs/c.parquet", "wb") as file:
        pq.write_table(pa.table({"x": x, "city": ["Oslo", "Rome"] * 100, "click": labels(200)}), file)
    import_parquet([str(tmp_path / "in/day=*/*"), "memory://logs"], str(tmp_path / "out"))
    table = pa.concat_tables(pq.read_table(tmp_path / "out" / part) for part in PARTS)
    assert sorted(table["x"].to_pylist()) == sorted(x * 3)
    assert (table["x"].type, table["city"].null_count) == (pa.int64(), 400)
    assert pq.ParquetFile(tmp_path / "out/train/part-00000.parquet").metadata.num_row_groups > 3
    printed = capsys.readouterr().out
    assert "day=... in the paths is no column of the files, and is not read" in printed
    assert "city is not in " in printed
    write(tmp_path / "in/day=1/a.parquet", x=["a"] * 20, click=labels(20))
    with pytest.raises(
        ValueError, match=r"b.parquet: column 'x' is int64, in .*a.parquet it is string; write all files"
    ):
        import_parquet([str(tmp_path / "in/*/*")], str(tmp_path / "other"))


def test_proposals_without_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"x": [float(row % 5) for row in range(ROWS)], "b": [b"1", b"2"] * 200, "city": ["Oslo", "Rome"] * 200}
    path = write(tmp_path / "in/a.parquet", **columns, click=labels())
    import_parquet([path], str(tmp_path / "out"), split=False)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["run.yaml", "schema.yaml", "vocabulary"]
    config = load_config(str(tmp_path / "out/run.yaml"))
    assert config.data.train == [path]
    assert {name: feature.kind for name, feature in config.feature_schema.features.items()} == {
        "x": "number",  # as it lies it is a double
        "city": "id",
    }
    printed = capsys.readouterr().out
    assert "left out b: binary, which training does not read; without --no-split it is cast" in printed
    assert "all of them train; none is kept to evaluate or test" in printed
    for options in ({"time": "x"}, {"positive": ["1"]}):
        with pytest.raises(ValueError, match="--no-split writes no rows: leave out --positive and --time"):
            import_parquet([path], str(tmp_path / "other"), split=False, **options)
    write(tmp_path / "in/a.parquet", x=[1, 2] * 10, city=["yes", "no"] * 10)
    with pytest.raises(ValueError, match="label 'city' is string; without --no-split it is written as 0 and 1"):
        import_parquet([path], str(tmp_path / "other"), split=False, labels=["city"])


def test_later_files_in_the_types_of_an_earlier_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path / "in/a.parquet",
        user=[float(row % 7) for row in range(ROWS)],
        code=pa.array([1, 2] * 200, pa.int8()),
        city=pa.array([b"Oslo", b"Rome"] * 200),
        got=["no", "pro"] * 200,
    )
    imported(tmp_path, labels=["got"], positive=["pro"])
    later = write(
        tmp_path / "later/a.parquet",
        user=pa.array([decimal.Decimal(3), None]),
        code=pa.array([2, 1]),
        extra=[0.5, 1.5],
        deep=[{"a": 1}] * 2,
        got=["pro", None],
    )
    capsys.readouterr()
    arguments = ["data", "parquet", str(tmp_path / "later"), "--out", str(tmp_path / "new"), "--like"]
    assert main([*arguments, str(tmp_path / "out")]) == 0
    assert pq.read_table(tmp_path / "new").to_pylist() == [
        {"user": 3, "code": 2, "extra": 0.5, "got": 1},
        {"user": None, "code": 1, "extra": 1.5, "got": None},
    ]
    printed = capsys.readouterr().out
    assert f"2 rows, 4 columns; without city, which {tmp_path}/out has" in printed
    assert "left out deep: a struct" in printed
    write(tmp_path / "later/a.parquet", user=[1.0, 2.5])
    with pytest.raises(ValueError, match=r"row 1 of the files in their order, column 'user': found 2.5, of type d"):
        import_parquet_like([later], str(tmp_path / "bad"), str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"new is no import: .*part-00000.parquet is missing; give the --out of"):
        import_parquet_like([later], str(tmp_path / "bad"), str(tmp_path / "new"))
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"y": [{"a": 1}] * 20}, {"labels": ["y"]}, "column 'y' cannot be a label: a struct; write its fields"),
        ({"y": [1, 0] * 10}, {"labels": ["z"]}, "has no column 'z'; it has y, x"),
        ({"y": [1, 0] * 10}, {"labels": ["y"], "time": "x"}, "column 'x' holds no times that are understood, such as"),
        ({"y": [1, 0] * 10}, {}, r"which column is to be predicted\? Name it with --label; these hold 0 and 1: y"),
    ],
)
def test_what_cannot_be_imported(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    write(tmp_path / "in/a.parquet", **columns, x=[5, 6, 7, 8] * 5)
    with pytest.raises(ValueError, match=message):
        imported(tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
