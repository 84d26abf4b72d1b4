"""CSV to Parquet, and the proposed schema and configuration."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.launch.config.config import load_config
from rankmixer.pipeline.csv import rows as csv_rows
from rankmixer.pipeline.csv.dialect import CsvOptions
from rankmixer.pipeline.propose.split import PARTS
from rankmixer.pipeline.schema.schema import Schema
from rankmixer.pipeline.sources import parquet_part
from rankmixer.pipeline.sources.csv_import import import_csv
from rankmixer.pipeline.sources.csv_like import import_like


def imported(tmp_path: Path, text: str, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """Rows of the Parquet files, in the order of column `x` if there is one, and text of the schema made from a CSV."""
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    import_csv(str(tmp_path / "log.csv"), str(tmp_path / "out"), **options)
    tables = [pq.read_table(tmp_path / "out" / part) for part in PARTS]
    assert all(map(len, tables))
    return pa.concat_tables(tables).to_pylist(), (tmp_path / "out/schema.yaml").read_text()


def columns_of(tmp_path: Path, values: list[str], name: str = "x", label: str = "click") -> tuple[list[Any], str]:
    """What a column of values, each given ten times, becomes: its different values in order, and its line."""
    lines = [f"{value},{row % 2}" for row, value in enumerate(values * 10)]
    rows, schema = imported(tmp_path, "\n".join([f"{name},{label}", *lines]))
    seen = dict.fromkeys(str(row[name]) for row in rows)
    return sorted(seen), schema.split("features:\n  ")[1].split("\nlabels")[0]


def test_the_proposal_fits_the_file_and_is_a_whole_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cities = ["Paris", "Rome", "Oslo", ""]
    lines = [
        f"{i % 7},{i % 5 + 1e9:.0f},{cities[i % 4]},a|b{i % 3},{i / 4},2024-06-{i % 28 + 1:02d} 13:59,{i % 2}"
        for i in range(400)
    ]
    rows, text = imported(tmp_path, "user,stamp,city,tags,price,when,click\n" + "\n".join(lines))
    first = next(row for row in rows if row["price"] == 0.75)
    assert (first["user"], first["stamp"], first["city"], first["tags"]) == (3, 1_000_000_003, None, "a|b0")
    assert str(first["when"]) == "2024-06-04 13:59:00"
    config = load_config(str(tmp_path / "out/run.yaml"))
    schema = config.feature_schema
    assert {name: feature.kind for name, feature in schema.features.items()} == {
        "user": "id",
        "stamp_hour": "time",
        "stamp_weekday": "time",
        "city": "id",
        "tags": "id_list",
        "price": "number",
        "when_hour": "time",
        "when_weekday": "time",
    }
    assert {name: schema.tables[name].rows for name in ("user", "city", "tags")} == {"user": 8, "city": 4, "tags": 5}
    assert schema.tasks == ["click"]
    assert config.metrics.group == "user"
    assert config.data.batch_size == 32
    assert "log.csv (400 rows, 320 of which train;" in text
    printed = capsys.readouterr().out
    assert "320 rows train, 40 evaluate, 40 test, drawn at random (by time with --time 'stamp')" in printed
    assert f"rankmixer train --config {tmp_path}/out/run.yaml" in printed


@pytest.mark.parametrize(
    ("values", "expected", "line"),
    [
        (["1", "", "3"], ["1", "3", "None"], "x: {kind: id, range: 4, on_bad: reserve, dim: 8}  # 2 values, 1 to 3"),
        (["-5", "3"], ["-5", "3"], 'x: {kind: id, vocabulary: "vocabulary/x.txt", dim: 8}  # 2 values, -5 to 3'),
        (
            ["1.5", "NA", "2.5"],
            ["1.5", "2.5", "None"],
            "x: {kind: number, standardise: learn, default: ",
        ),
        (["7.5", "7.5"], ["7.5"], "# \"x\": '7.5' in every training row"),
        (["7.5", ""], ["7.5", "None"], "x: {kind: number, default: 7.5}"),
        (
            ["01", "002"],
            ["002", "01"],
            "x: {kind: id, vocabulary: \"vocabulary/x.txt\", dim: 8}  # 2 values, such as '002'",
        ),
        (["E10", "E5"], ["E10", "E5"], 'x: {kind: id, vocabulary: "vocabulary/x.txt", dim: 8}'),
        (["NA", "one"], ["NA", "one"], 'x: {kind: id, vocabulary: "vocabulary/x.txt", dim: 8}'),
        (
            ["12345678901234567890", "1"],
            ["1", "12345678901234567890"],
            'x: {kind: id, vocabulary: "vocabulary/x.txt", dim: 8}',
        ),
        (
            ["a;b", "b", "a;b"],
            ["a;b", "b"],
            'x: {kind: id_list, separator: ";", vocabulary: "vocabulary/x.txt", dim: 8}',
        ),
        (["a; b", "b", "a; b; c", "c; b"], ["a; b", "a; b; c", "b", "c; b"], 'x: {kind: id_list, separator: "; "'),
        (
            ["A; b", "C; b", "D"],
            ["A; b", "C; b", "D"],
            "x: {kind: id, vocabulary: \"vocabulary/x.txt\", dim: 8}  # 3 values, such as 'A; b'",
        ),
        (["", ""], ["None"], '# "x": empty in every training row'),
        ([" 1 ", "2"], ["1", "2"], "x: {kind: id, range: 3, on_bad: reserve, dim: 8}"),
        (["0.5"] * 199 + ["90000"], ["0.5", "90000.0"], "x: {kind: number, transform: log1p, standardise: learn}"),
        (
            ["2024-06-01", "NA"],
            ["2024-06-01", "None"],
            "x_weekday: {column: x, kind: time, part: weekday, dim: 8}  # 2024-06-01 to 2024-06-01",
        ),
        (
            ["2024-06-01 13:59", "2024-06-02"],
            ["2024-06-01 13:59:00", "2024-06-02 00:00:00"],
            "x_hour: {column: x, kind:",
        ),
        (
            ["2024-06-01T13:59:00+02:00", "2024-06-02T00:00:00.5Z"],
            ["2024-06-01 11:59:00+00:00", "2024-06-02 00:00:00.500000+00:00"],
            "x_hour: {column: x, kind: time",
        ),
        (
            ["2024-06-31", "2024-06-01"],
            ["2024-06-01", "2024-06-31"],
            'x: {kind: id, vocabulary: "vocabulary/x.txt", dim: 8}',
        ),
        (["0001-01-01", "2024-06-01"], ["2024-06-01", "None"], "x_weekday: {column: x, kind: time"),
        ([f"{n:x}-{n}" for n in range(40)], None, 'x: {kind: id, vocabulary: "vocabulary/x.txt", dim: 8}  # 40 values'),
    ],
)
def test_kinds(tmp_path: Path, values: list[str], expected: list[str] | None, line: str) -> None:
    found, schema = columns_of(tmp_path, values)
    assert expected is None or found == expected
    assert schema.startswith(line)


@pytest.mark.parametrize(
    ("name", "value", "unit"),
    [("created_at", 1_700_000_000, "s"), ("ts", 1_700_000_000_000, "ms"), ("visitor", 1_700_000_000, None)],
)
def test_integers_that_count_the_time(tmp_path: Path, name: str, value: int, unit: str | None) -> None:
    _, schema = columns_of(tmp_path, [str(value), str(value + 7)], name)
    hour = f"{name}_hour: {{column: {name}, kind: time, part: hour, unit: {unit}, dim: 8}}"
    assert schema.startswith(hour if unit else f"{name}: {{kind: id, vocabulary: ")


def test_a_column_that_hardly_repeats_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"r{i},{i},{i / 7},{i % 50},{i % 2}" for i in range(300)]
    _, text = imported(tmp_path, "request,number,price,user,click\n" + "\n".join(lines))
    assert list(Schema.load(str(tmp_path / "out/schema.yaml")).features) == ["price", "user"]
    assert "# \"request\": nearly every row has a value of its own, such as 'r0'\n" in text
    assert "left out number: nearly every row has a value of its own, such as '0'" in capsys.readouterr().out


def test_names_that_yaml_torchrec_or_the_schema_would_misread(tmp_path: Path) -> None:
    line = "x,1,2.5,3.5,2,1,2024-06-0{0},7,{0}\n"
    names = 'on,Item ID,"a.b",é,type,training,t,t_weekday,label'
    text = names + "\n" + "".join(line.format(i % 2 + 1).replace("2\n", "0\n") for i in range(20))
    text = text.replace("x,1,", "y,2,", 3).replace("2.5,3.5,2,1", "3.5,4.5,3,2", 5).replace(",7,", ",8,", 4)
    imported(tmp_path, text)
    schema = load_config(str(tmp_path / "out/run.yaml")).feature_schema
    columns = {name: feature.reads[0] for name, feature in schema.features.items()}
    assert columns == {
        "on": "on",
        "Item_ID": "Item ID",
        "a_b": "a.b",
        "é": "é",
        "type_": "type",
        "training_": "training",
        "t_weekday": "t",
        "t_weekday_": "t_weekday",
    }


@pytest.mark.parametrize(
    ("values", "question"),
    [
        (["12,50", "7", "0,5"], "numbers with a decimal comma? Write them with a point"),
        (["01.06.2024", "2/6/24"], "dates? Write them as 2024-06-01"),
        (["1,234", "7", "1,000,000"], "numbers with commas between thousands? Write them without"),
        (["1,2,3", "3", "1,2"], None),
    ],
)
def test_what_may_be_meant_as_something_else_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: list[str], question: str | None
) -> None:
    lines = [f"{value};{row % 2}" for row, value in enumerate(values * 10)]
    _, text = imported(tmp_path, "x;click\n" + "\n".join(lines))
    assert (f"; {question}\n" in text) == (question is not None)
    assert capsys.readouterr().out.count("kept as text x: ") == (question is not None)  # once


@pytest.mark.parametrize("words", [("0.0", "1.0"), ("no", "Yes"), ("False", "TRUE"), ("n", "y")])
def test_what_a_label_may_read(tmp_path: Path, words: tuple[str, str]) -> None:
    lines = [f"{i % 3},{words[i % 4 > 0]}" for i in range(40)]
    rows, text = imported(tmp_path, "x,Bought\n" + "\n".join(lines), labels=["Bought"])
    assert sorted(row["Bought"] for row in rows) == [0] * 10 + [1] * 30
    assert text.endswith("labels:\n  Bought: {}  # 75.0% of all rows are 1\n")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], r"log.csv: which column is to be predicted\? Name it with --label; these hold 0 and 1: seen, new"),
        (
            ["rating"],
            "column 'rating' holds '1' and '5'; a label is 0 or 1, .*: say which value counts as 1.*--positive 5",
        ),
        (["city"], "column 'city' holds 'Oslo' and 'Rome'; a label is 0 or 1, true or false, yes or no: say which"),
        (["click"], "column 'click' is empty in 10 rows; a label has a value in each; delete those rows"),
        (["one"], "column 'one' is 1 in every row; a label to learn has both 0 and 1"),
        (["clik"], "log.csv has no column 'clik'; it has rating, city, click, one, seen, new"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: list[str], message: str) -> None:
    lines = ["1,Oslo,,1,0,no", "5,Rome,1,1,1,yes"] * 10
    with pytest.raises(ValueError, match=message):
        imported(tmp_path, "rating,city,click,one,seen,new\n" + "\n".join(lines), labels=labels)
    assert not (tmp_path / "out").exists()


def test_split_by_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{i * 7 % 100},2024-06-01 13:{i * 7 % 100 // 2:02d}:{i % 2:02d},{i % 2}" for i in range(100)]
    text = "x,when,day,click\n" + "\n".join(lines).replace(",0\n", ",2024-06-01,0\n").replace(",1\n", ",2024-06-01,1\n")
    imported(tmp_path, f"{text[:-2]},2024-06-01,1\n" + "3,,,1\n" * 5, time="when")
    days = {part: pq.read_table(tmp_path / "out" / part)["when"].to_pylist() for part in PARTS}
    assert {part: len(times) for part, times in days.items()} == {"train": 85, "validation": 10, "test": 10}
    assert max(filter(None, days["train"])) < min(days["validation"]) <= max(days["validation"]) < min(days["test"])
    assert "by time: from 2024-06-01 13:40:00 and 2024-06-01 13:45:00 on" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"'x' holds no times that are understood, such as '0'; write them as 2024-06-"
    ):
        import_csv(str(tmp_path / "log.csv"), str(tmp_path / "other"), time="x")
    with pytest.raises(
        ValueError, match=r"log.csv: column 'day' does not tell old rows from new: too many have the sam"
    ):
        import_csv(str(tmp_path / "log.csv"), str(tmp_path / "other"), time="day")


def test_later_files_in_the_types_of_an_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "zip,n,price,when,at,click\n"
    imported(tmp_path, header + "".join(f"0{i},{i % 3},{i}.5,2024-06-01,2024-06-01 13:59,{i % 2}\n" for i in range(20)))
    later, new = tmp_path / "later.csv", tmp_path / "new"
    later.write_text("n,zip,price,when,at,extra\n1,12,2,2024-07-01,,7\n,13,NA,,2024-07-01,8\n")
    capsys.readouterr()
    import_like(str(later), str(new), str(tmp_path / "out"))
    first, second = pq.read_table(new).to_pylist()
    assert (first["zip"], first["n"], first["price"], str(first["when"]), first["extra"]) == (
        "12",
        1,
        2.0,
        "2024-07-01",
        "7",
    )
    assert (second["n"], second["price"], second["when"], str(second["at"])) == (
        None,
        None,
        None,
        "2024-07-01 00:00:00",
    )
    printed = capsys.readouterr().out
    assert (
        printed
        == f"{later}: 2 rows, 6 columns, in {new}; without 'click'; with 'extra'\ncolumn  taken as empty\nprice   1\n"
    )
    for column, value, expected in (
        ("n", "1.5", "an integer"),
        ("price", "cheap", "a number"),
        ("when", "1/6/2024", "a date, such as 2024-06-01"),
        ("at", "today", "a time, such as 2024-06-01 13:59:00"),
        ("click", "2", "0 or 1"),
    ):
        later.write_text(f"{column},zip\n,1\n{value},2\n" if column != "click" else f"click,zip\n1,1\n{value},2\n")
        expected = (
            f"later.csv: line 3, column '{column}': found '{value}'; expected {expected}, as in the earlier file; mend"
        )
        with pytest.raises(ValueError, match=expected):
            import_like(str(later), str(tmp_path / "bad"), str(tmp_path / "out"))
    with pytest.raises(
        ValueError, match=r"new is no import of a CSV: .*part-00000.parquet is missing; give the --out of"
    ):
        import_like(str(later), str(tmp_path / "bad"), str(new))
    assert not (tmp_path / "bad").exists()


def test_a_word_for_no_value_is_no_label_in_later_files_either(tmp_path: Path) -> None:
    lines = "".join(f"{row},{row % 5 + 1}\n" for row in range(100))
    (tmp_path / "log.csv").write_text(f"x,stars\n{lines}")
    import_csv(str(tmp_path / "log.csv"), str(tmp_path / "out"), labels=["stars"], positive=["4", "5"])
    (tmp_path / "later.csv").write_text("x,stars\n1,5\n2,NA\n3,2\n4,\n5,5.0\n")
    import_like(str(tmp_path / "later.csv"), str(tmp_path / "new"), str(tmp_path / "out"))
    assert pq.read_table(tmp_path / "new")["stars"].to_pylist() == [1, None, 0, None, 1]
    (tmp_path / "later.csv").write_text("x,stars\n1,5\n2,great\n")
    with pytest.raises(ValueError, match=r"later.csv: line 3, column 'stars': found 'great'; expected"):
        import_like(str(tmp_path / "later.csv"), str(tmp_path / "bad"), str(tmp_path / "out"))


def test_types_hold_for_the_whole_file_and_blocks_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 64)
    monkeypatch.setattr(parquet_part, "ROW_GROUP_ROWS", 50)
    lines = [f'{i},"two\nlines",{i % 2}' for i in range(199)] + ["2.5,x,1"]
    rows, _ = imported(tmp_path, "x,text,click\n" + "\n".join(lines))
    assert sorted(row["x"] for row in rows) == sorted([*map(float, range(199)), 2.5])
    assert rows[7]["text"] == "two\nlines"
    sizes = pq.ParquetFile(tmp_path / "out/train/part-00000.parquet").metadata
    assert (sizes.num_rows, sizes.num_row_groups) == (160, 4)
    again = tmp_path / "again"
    again.mkdir()
    assert imported(again, "x,text,click\n" + "\n".join(lines))[0] == rows  # the split is drawn alike


def test_other_delimiters_compression_and_byte_order_mark(tmp_path: Path) -> None:
    for number, (delimiter, given) in enumerate([("\t", None), (";", None), ("|", None), ("^", "^")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        lines = [
            delimiter.join(["\ufeff" + '"a,b,c"', "click"]),
            *(delimiter.join(["1,5", str(i % 2)]) for i in range(10)),
        ]
        rows, _ = imported(folder, "\n".join(lines), options=CsvOptions(delimiter=given))
        assert rows[0] in ({"a,b,c": "1,5", "click": 0}, {"a,b,c": "1,5", "click": 1})
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"x;click\n" + b"4;1\n5;0\n" * 5))
    import_csv(str(tmp_path / "log.csv.gz"), str(tmp_path / "gz"))
    assert pq.read_table(tmp_path / "gz/test").to_pylist() in ([{"x": 4, "click": 1}], [{"x": 5, "click": 0}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "log.csv is empty; expected a line of column names, then rows"),
        ("a,b\n", "log.csv has a header but no rows"),
        ("x,click\n" + "1,0\n1,1\n" * 4, "log.csv: 8 rows are too few to train, evaluate and test; ten would do"),
        ("a,b\n1,2\n\n3\n", "log.csv: line 4 has 1 values, the header has 2: '3'; put"),
        ("a,b\n" + "1,2\n" * 50 + "3,4,5\n", "log.csv: line 52 has 3 values, the header has 2: '3,4,5'"),
        ("a,b,a\n1,2,3\n", "log.csv: columns 1 and 3 are both named 'a'; rename or delete one"),
    ],
)
def test_a_bad_file_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 64)
    with pytest.raises(ValueError, match=message):
        imported(tmp_path, text)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.csv: no such file"):
        import_csv("nowhere.csv", str(tmp_path / "out"))
    (tmp_path / "latin.csv").write_bytes("name,click\nCafé,1\n".encode("latin-1"))
    with pytest.raises(
        ValueError,
        match=r"latin.csv: line 2, column .name.: byte 0xe9 is not UTF-8; save .* with --encoding latin-1 this is .Caf",
    ):
        import_csv(str(tmp_path / "latin.csv"), str(tmp_path / "out"))
