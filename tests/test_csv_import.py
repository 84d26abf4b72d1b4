"""CSV to Parquet and the proposed schema."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import csv_import
from pipeline.csv_import import import_csv
from pipeline.schema import Schema


def imported(tmp_path: Path, text: str, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """Rows of the Parquet file and text of the schema made from a CSV."""
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    import_csv(str(tmp_path / "log.csv"), str(tmp_path / "out"), **options)
    return pq.read_table(tmp_path / "out/data").to_pylist(), (tmp_path / "out/schema.yaml").read_text()


def test_the_proposal_fits_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cities = ["Paris", "Rome", "Oslo", ""]
    lines = [f"{i % 7},{i % 5 + 1e9:.0f},{cities[i % 4]},a|b{i % 3},{i / 4},{i % 2}" for i in range(40)]
    rows, text = imported(tmp_path, "user,stamp,city,tags,price,click\n" + "\n".join(lines))
    assert rows[3] == {"user": 3, "stamp": 1_000_000_003, "city": None, "tags": "a|b0", "price": 0.75, "click": 1}
    schema = Schema.load(str(tmp_path / "out/schema.yaml"))
    assert {name: feature.kind for name, feature in schema.features.items()} == {
        "user": "id",
        "stamp": "id",
        "city": "id",
        "tags": "id_list",
        "price": "number",
    }
    assert {name: table.rows for name, table in schema.tables.items()} == {
        "user": 7,
        "stamp": 32,
        "city": 16,
        "tags": 16,
    }
    assert schema.tasks == ["click"]
    assert "log.csv (40 rows). Check every line" in text
    assert "40 rows, 6 columns; now edit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "expected", "line"),
    [
        (["1", "", "3"], [1, None, 3], "x: {kind: id, range: 4, dim: 8}  # 2 values, 1 to 3; if it is a quantity"),
        (["-5", "3"], [-5, 3], "x: {kind: id, buckets: 16, dim: 8}  # 2 values, -5 to 3; if it is a quantity"),
        (["1.5", "NA", "2.5"], [1.5, None, 2.5], "x: {kind: number, standardise: [2.0, 0.5], default: 2.0}"),
        (["7.5", "7.5"], [7.5, 7.5], "x: {kind: number}  # 7.5 to 7.5, nulls: 0"),
        (["01", "002"], ["01", "002"], "x: {kind: id, buckets: 16, dim: 8}  # 2 values, such as '002'"),
        (["E10", "E5"], ["E10", "E5"], "x: {kind: id, buckets: 16, dim: 8}"),
        (["NA", "one"], ["NA", "one"], "x: {kind: id, buckets: 16, dim: 8}"),
        (["12345678901234567890"], ["12345678901234567890"], "x: {kind: id, buckets: 16, dim: 8}"),
        (["a;b", "b", "a;b"], ["a;b", "b", "a;b"], 'x: {kind: id_list, separator: ";", buckets: 16, dim: 8}'),
        (["a;b", "c"], ["a;b", "c"], "x: {kind: id, buckets: 16, dim: 8}"),
        (["", ""], [None, None], '# "x": empty in every row'),
        ([" 1 ", "2"], [1, 2], "x: {kind: id, range: 3, dim: 8}"),
    ],
)
def test_kinds(tmp_path: Path, values: list[str], expected: list[Any], line: str) -> None:
    rows, schema = imported(tmp_path, "x,click\n" + "".join(f"{v},{i % 2}\n" for i, v in enumerate(values)))
    assert [row["x"] for row in rows] == expected
    assert schema.split("features:\n  ")[1].startswith(line)


def test_names_that_yaml_would_misread_are_quoted(tmp_path: Path) -> None:
    imported(tmp_path, 'on,Item ID,"a.b",é,label\nx,1,2.5,3.5,0\ny,2,3.5,4.5,1\n')
    schema = Schema.load(str(tmp_path / "out/schema.yaml"))
    columns = {name: feature.reads[0] for name, feature in schema.features.items()}
    assert columns == {"on": "on", "Item_ID": "Item ID", "a_b": "a.b", "é": "é"}


def test_a_label_may_read_1_0_and_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, text = imported(tmp_path, "x,Target\n1,0.0\n2,1.0\n3,1.0\n")
    assert [row["Target"] for row in rows] == [0, 1, 1]
    assert "labels:\n  Target: {}  # 66.7% are 1\n" in text
    (tmp_path / "other").mkdir()
    _, text = imported(tmp_path / "other", "x,click\n1,0\n2,2\n")
    assert "labels:\n  # name here the column of 0 and 1 to predict" in text
    assert "no label was recognised, name one" in capsys.readouterr().out


def test_types_hold_for_the_whole_file_and_blocks_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_import, "BLOCK_BYTES", 64)
    monkeypatch.setattr(csv_import, "ROW_GROUP_ROWS", 50)
    lines = [f'{i},"two\nlines",{i % 2}' for i in range(199)] + ["2.5,x,1"]
    rows, _ = imported(tmp_path, "x,text,click\n" + "\n".join(lines))
    assert [row["x"] for row in rows] == [*map(float, range(199)), 2.5]
    assert rows[7]["text"] == "two\nlines"
    assert pq.ParquetFile(tmp_path / "out/data/part-00000.parquet").num_row_groups == 4


def test_other_delimiters_compression_and_byte_order_mark(tmp_path: Path) -> None:
    rows, _ = imported(tmp_path, "\ufeffx\tclick\n1,5\t0\n", delimiter="\t")
    assert rows == [{"x": "1,5", "click": 0}]
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"x,click\n4,1\n"))
    import_csv(str(tmp_path / "log.csv.gz"), str(tmp_path / "gz"))
    assert pq.read_table(tmp_path / "gz/data").to_pylist() == [{"x": 4, "click": 1}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "log.csv is empty; expected a line of column names, then rows"),
        ("a,b\n", "log.csv has a header but no rows"),
        ("a,b\n1,2\n\n3\n", r"log.csv: row 3 \(the header is row 1, .*\) has 1 values, the header has 2: '3'; put"),
        ("a,b\n" + "1,2\n" * 50 + "3,4,5\n", r"log.csv: row 52 .* has 3 values, the header has 2: '3,4,5'"),
        ("a,b,a\n1,2,3\n", "log.csv: columns 1 and 3 are both named 'a'; rename or delete one"),
        (",b\n1,2\n", "log.csv: column 1 has no name; name it in the first line, or delete it"),
    ],
)
def test_a_bad_file_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr(csv_import, "BLOCK_BYTES", 64)
    with pytest.raises(ValueError, match=message):
        imported(tmp_path, text)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.csv: no such file"):
        import_csv("nowhere.csv", str(tmp_path / "out"))
    (tmp_path / "latin.csv").write_bytes("name,click\nCafé,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv is not UTF-8 .*; save it as UTF-8"):
        import_csv(str(tmp_path / "latin.csv"), str(tmp_path / "out"))
