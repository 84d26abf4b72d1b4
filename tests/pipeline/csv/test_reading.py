"""A CSV is read as it is meant, or refused in a sentence that names the line; no row and no value is lost unsaid."""

import bz2
import csv
import gzip
import io
import lzma
import math
import re
import subprocess
import sys
import zipfile
from datetime import date, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rankmixer.pipeline.csv import rows as csv_rows
from rankmixer.pipeline.csv.dialect import CsvOptions
from rankmixer.pipeline.csv.source import CsvSource
from rankmixer.pipeline.sources.csv_import import import_csv
from rankmixer.pipeline.sources.csv_like import import_like


def rows_of(files: Any, folder: Path, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows of CSV files, and what is said of them."""
    source = CsvSource(files, folder, CsvOptions(**options))
    rows = [row for batch in source.batches() for row in batch.to_pylist()]
    assert len(rows) == source.rows
    return rows, source.report()


def read(folder: Path, content: str | bytes, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    file = folder / "log.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return rows_of(str(file), folder, **options)


def column(folder: Path, values: list[str], name: str = "x", **options: Any) -> tuple[list[Any], str]:
    """What a column of values becomes; and all that is said of it."""
    text = io.StringIO()
    csv.writer(text).writerows([["row", name], *([f"r{row}", value] for row, value in enumerate(values))])
    rows, report = read(folder, text.getvalue(), **options)
    return [row[name] for row in rows], "\n".join(report[2:])


@pytest.mark.parametrize(
    ("content", "options", "rows"),
    [
        ("a,b\r1,2\r3,4\r", {}, [(1, 2), (3, 4)]),
        ("a,b\r\n1,2\n3,4\r5,6", {}, [(1, 2), (3, 4), (5, 6)]),
        ("\n\na,b\n\n1,2\n   \n3,4\n\n", {}, [(1, 2), (3, 4)]),
        ("a,b\n1,é\n".encode("utf-16"), {}, [(1, "é")]),
        ("a,b\n1,é\n".encode("utf-32"), {}, [(1, "é")]),
        ("a,b\n1,é\n".encode("utf-8-sig"), {}, [(1, "é")]),
        ("a,b\n1,é\n".encode("utf-16-le"), {"encoding": "utf-16-le"}, [(1, "é")]),
        ("a,b\n1,é\n".encode("latin-1"), {"encoding": "latin-1"}, [(1, "é")]),
        ('a,b\n1,"x, ""y""\nz"\n2,5" disk\n', {}, [(1, 'x, "y"\nz'), (2, '5" disk')]),
        ("a,b\n1,x\ry\n\r2,z\r\n,\r0\n", {}, [(1, "x\ry"), (2, "z"), (None, "0")]),  # as pandas writes it
        ("a,b\n1,x\r2,y\n3,z\r", {}, [(1, "x"), (2, "y"), (3, "z")]),
        ("a,b\r1,x\r2,y\r", {}, [(1, "x"), (2, "y")]),
        ('a, b\n1, "x, y"\n', {}, [(1, "x, y")]),
        ('a,b\n1,"x\\"y"\n2,\\N\n', {"escape": "\\"}, [(1, 'x"y'), (2, None)]),
        ("a,b\n1,'x,y'\n", {"quote": "'"}, [(1, "x,y")]),
        ('a,b\n1,"x\n2,y"\n', {"quote": "none"}, [(1, '"x'), (2, 'y"')]),
        (f"a,b\n1,{'x' * 300_000}\n2,y\n", {}, [(1, "x" * 300_000), (2, "y")]),
        ("a;b\n1;x|y|z\n2;x|y\n", {}, [(1, "x|y|z"), (2, "x|y")]),
        ("a^b\n1^2\n", {"delimiter": "^"}, [(1, 2)]),
        ("a b\n1 2\n", {"delimiter": "space"}, [(1, 2)]),
        ("1\x01\\N\n2\x01x\n", {"names": ("a", "b")}, [(1, None), (2, "x")]),
        ("1,2\n3,4\n", {"names": ("a", "b")}, [(1, 2), (3, 4)]),
        ("u,v\n3,4\n", {"names": ("a", "b"), "header": "yes"}, [(3, 4)]),
        ("u,v\n3,4\n", {"names": ("a", "b"), "header": "no"}, [("u", "v"), ("3", "4")]),
        (gzip.compress(b"a,b\n1,2\n"), {}, [(1, 2)]),
        (bz2.compress(b"a,b\n1,2\n"), {}, [(1, 2)]),
        (lzma.compress(b"a,b\n1,2\n"), {}, [(1, 2)]),
    ],
)
def test_what_is_read(
    tmp_path: Path, content: str | bytes, options: dict[str, Any], rows: list[tuple[Any, ...]]
) -> None:
    assert [tuple(row.values()) for row in read(tmp_path, content, **options)[0]] == rows


def zipped(**files: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def test_archives_and_compressed_streams_that_end_early(tmp_path: Path) -> None:
    assert read(tmp_path, zipped(a="a,b\n1,2\n"))[0] == [{"a": 1, "b": 2}]
    with pytest.raises(ValueError, match=r"log.csv: holds 2 files \(a, b\); unpack it and name the files"):
        read(tmp_path, zipped(a="a,b\n1,2\n", b=""))
    with pytest.raises(ValueError, match="found an Excel workbook; save the sheet as CSV"):
        read(tmp_path, zipped(**{"[Content_Types].xml": "", "xl": ""}))
    text = "".join(f"{i * 7919 % 1000003},{i}\n" for i in range(20_000)).encode()
    with pa.CompressedOutputStream(str(tmp_path / "all.zst"), "zstd") as stream:
        stream.write(b"a,b\n" + text)
    packed = [gzip.compress(text), bz2.compress(text), lzma.compress(text), (tmp_path / "all.zst").read_bytes()]
    assert len(read(tmp_path, packed[-1])[0]) == 20_000
    for content in packed:
        with pytest.raises(ValueError, match=r"log.csv: cannot be read \(.*\); copy it again, or check access"):
            read(tmp_path, content[: len(content) // 2], names=("a", "b"), header="no")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "log.csv is empty"),
        ("\ufeff", {}, "log.csv is empty"),
        ("a,b\n", {}, "log.csv has a header but no rows"),
        (b"PAR1....", {}, "found a Parquet file; `rankmixer data parquet` reads it"),
        (b"\xd0\xcf\x11\xe0....", {}, "found an Excel workbook"),
        ('{"a": 1}\n', {}, "looks like JSON"),
        (
            "a,b\n1,é\n".encode("latin-1"),
            {},
            "line 2, column 'b': byte 0xe9 is not UTF-8; .*with --encoding latin-1 .*'é'",
        ),
        ("á,b\n1,2\n".encode("latin-1"), {}, "line 1: byte 0xe1 is not UTF-8"),
        (
            "a,b\n1,é\n".encode("utf-16-le"),
            {},
            "holds NUL bytes; if it is UTF-16 without a mark, say --encoding utf-16-le",
        ),
        (b"a,b\n" + b"1,2\n" * 99 + b"3,\0\n", {}, "line 101 holds a NUL byte"),
        (b"a,b\n1,2\n", {"encoding": "utf-16"}, "log.csv: is not utf-16"),
        ("a,b\n1,2\n", {"encoding": "utf-99"}, "encoding 'utf-99' is unknown"),
        ("a,b\n1,2\n", {"delimiter": "ab"}, "--delimiter is 'ab'; expected one character"),
        ("a,b,a\n1,2,3\n", {}, "columns 1 and 3 are both named 'a'"),
        ("a,b\n1,2\n3\n", {}, "line 3 has 1 values, the header has 2: '3'"),
        ("a,b\n1,2\n3,4,\n", {}, "line 3 has 3 values"),
        ('a,b\n"x\ny",2\n\n3\n', {}, "line 5 has 1 values"),
        ("1,2\n3,4\n", {}, "line 1 holds '1', as a row would, not a name; name the columns with --names A,B"),
        ("x,y\nz,w\nx,q\n", {}, "'x' stands in the first line and in rows of the same column"),
        (
            "x,y\nz,w\n",
            {"names": ("a", "b")},
            r"do --names replace the first line \(x, y\), or is it a row\? Say --header",
        ),
        ("1,2\n", {"names": ("a",)}, "--names has 1 names, line 1 has 2 values; is ',' the delimiter"),
        ("a,b\n1,2\na,b\n3,4\n", {}, "line 3 repeats the header, as where files were joined"),
        (
            'a,b\n1,x\n2,"y\n3,z\n',
            {},
            "line 3: a value that begins with a quotation mark is not closed when the file ends on",
        ),
        ('a,b\n1,x\n2,"y\n3,"z\n', {}, "line 3: .* closes before more text on line 4: .*--quote none"),
        ('a,b\n1,"x"y\n', {}, "line 2: .* closes before more text: "),
        ('a,b\n1,"x\\"y"\n', {}, r"or --escape '\\' if that stands before it"),
        (
            'a,b,c\n1,"x,2\n3,y,4\n5,z",6\n',
            {},
            "line 2: the value .* of column 'b' runs over 3 lines that look like 3 rows",
        ),
        ('"a,b\n1,2\n', {}, "line 1: a value that begins with a quotation mark is not closed"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: str | bytes, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, content, **options)
    assert "\n" not in str(error.value)


def test_a_value_that_never_closes_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "LINE_CHARS", 1000)
    with pytest.raises(ValueError, match="line 2 has more than 1,000 characters; is it text"):
        read(tmp_path, "a,b\n1," + "x" * 2000 + "\n")
    before = csv.field_size_limit()
    assert before >= 1 << 24
    csv.field_size_limit(1 << 24)
    monkeypatch.setattr(csv_rows, "LINE_CHARS", 1 << 24)
    with pytest.raises(ValueError, match=r"line 2: .* is not closed within"):
        read(tmp_path, 'a,b\n1,"' + ("x" * 1000 + "\n") * 17_000)


def test_two_rows_that_two_stray_marks_may_have_joined_are_named(tmp_path: Path) -> None:
    rows, report = read(tmp_path, 'a,b,c\n1,"x,2\n5,z",6\n')
    assert rows == [{"a": 1, "b": "x,2\n5,z", "c": 6}]
    assert any("line 2: the value 'x,2\\n5,z' of column 'b' runs over 2 lines" in line for line in report)


def test_columns_without_a_name_get_one(tmp_path: Path) -> None:
    rows, report = read(tmp_path, ",a,\n0,5,\n")  # as pandas writes an index, and others a delimiter at the end
    assert rows == [{"column_1": 0, "a": 5, "column_3": None}]
    assert "column 1 has no name and is called column_1" in report


def test_several_files_are_one_table(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    for name, text in {
        "1.csv": "a,b\n1,2\n",
        "2.csv": "b,a\n4,3\n",
        "3.csv": "",
        "_SUCCESS": "",
        "4.csv": "a,b\n",
    }.items():
        (part / name).write_text(text)
    expected = [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    for paths in (str(part), str(part / "*.csv"), [str(part), str(part / "1.csv")]):
        assert rows_of(paths, tmp_path)[0] == expected
    (part / "5.csv").write_text("a,bb,c\n1,2,3\n")
    with pytest.raises(
        ValueError, match=r"5.csv has other columns than .*1.csv: with 'c'; 'b' may be what is called 'bb' here"
    ):
        rows_of(str(part), tmp_path)
    (part / "5.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match=r"5.csv: line 3 has 1 values"):
        rows_of(str(part), tmp_path)


def test_what_stands_for_no_file(tmp_path: Path) -> None:
    for path, message in {
        "nowhere.csv": "nowhere.csv: no such file",
        "*.csv": r"\*.csv: no such file",
        "foo://a.csv": "found a URL that fsspec does not open",
        "memory://nowhere.csv": "memory://nowhere.csv: no such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            CsvSource(path if "://" in path else str(tmp_path / path), tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/000000_0").write_text("1")
    with pytest.raises(
        ValueError, match=r"d: a directory without a file that ends in .csv, .tsv or .txt; it holds 000000_0"
    ):
        CsvSource(str(tmp_path / "d"), tmp_path)
    (tmp_path / "d/0.parquet").write_text("1")
    with pytest.raises(ValueError, match="a directory of Parquet files; `rankmixer data parquet` reads those"):
        CsvSource(str(tmp_path / "d"), tmp_path)


def test_files_that_are_not_local(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/csv_reading/1.csv", b"a,b\n1,2\n")
    for path in ("memory://csv_reading", "memory://csv_reading/*.csv", "memory://csv_reading/1.csv"):
        assert rows_of(path, tmp_path)[0] == [{"a": 1, "b": 2}]


FEW = ["0.25", "1.5", "-2", "7.125"]


@pytest.mark.parametrize(
    ("values", "options", "expected", "said"),
    [
        # integers as pandas writes them where some are missing
        (["1.0", "2.0", ""], {}, [1, 2, None], "int64"),
        (["1.0", "2.0"], {}, [1.0, 2.0], "double"),
        (["1.0", "2.0"], {"name": "user_id"}, [1, 2], "int64"),
        (["9223372036854775807", "-9223372036854775808"], {}, [2**63 - 1, -(2**63)], "int64"),
        (["9223372036854775808", "1"], {}, None, "integers but for '9223372036854775808' (1 row, the first in"),
        (["12345678901234567.5", "1.5"], {}, None, "numbers but for"),
        (["007", "12"], {}, None, "integers but for '007' (1 row, the first in"),
        (["0x1F", "0x2A"], {}, None, "string"),
        (["1e5", "2e7"], {}, None, "codes that look like numbers with exponents"),
        (["1.5e-07", "1e+20", "2"], {}, [1.5e-07, 1e20, 2.0], "double"),
        (["+1", "-1", "0"], {}, [1, -1, 0], "int64"),
        (["+4712345678", "4712345678"], {}, None, "codes that begin with +"),
        # words among numbers
        (
            [*FEW, "?", "\u2014", "N/A", "NULL", "inf", "1e400"],
            {},
            [0.25, 1.5, -2, 7.125, *[None] * 6],
            "'?' in 1, '\u2014' in 1",
        ),
        (
            [*FEW, "1.7976931348623157e308", "3.4028235e38"],
            {},
            [0.25, 1.5, -2, 7.125, None, None],
            "'1.7976931348623157e308' in 1",
        ),
        ([*FEW, "cheap"], {}, None, "numbers but for 'cheap' (1 row, the first in"),
        ([*FEW, "cheap"], {"missing": ("cheap",)}, [0.25, 1.5, -2, 7.125, None], "'cheap' in 1"),
        (["NULL", "a", "\\N"], {}, ["NULL", "a", None], "kept as values of x: 'NULL' in 1"),
        # thousands, decimal commas, units
        ([*FEW, "1,200.50", "1,000"], {}, [0.25, 1.5, -2, 7.125, 1200.5, 1000], "double"),
        (["1,200", "850"], {}, None, "say --decimal . if these group thousands"),
        (["1,200", "850"], {"decimal": "."}, [1200, 850], "int64"),
        (["12,5", "7"], {}, None, "numbers with a decimal comma? Say --decimal ,"),
        (["12,5", "1.200,50", "1\u00a0300,2", "7"], {"decimal": ","}, [12.5, 1200.5, 1300.2, 7], "double"),
        (["$3.20", "-$4"], {}, [3.2, -4.0], "x: numbers without their sign, such as '$3.20'"),
        (["3%", "4.5 %"], {}, [3.0, 4.5], "without their sign"),
        ([*FEW, "$3.20"], {}, None, "numbers with different units: '0.25', '$3.20'"),
        # times
        (["2024-06-01", "2024/06/02", "NaT"], {}, [date(2024, 6, 1), date(2024, 6, 2), None], "'NaT' in 1"),
        (
            ["2024-06-01T13:59", "2024-06-01 00:00:00.25"],
            {},
            [datetime(2024, 6, 1, 13, 59), datetime(2024, 6, 1, 0, 0, 0, 250_000)],
            "timestamp[us]",
        ),
        (
            ["2024-06-01 13:59:00 UTC", "2024-06-01T13:59:00+0200", "2024-06-01 13:59:00-03"],
            {},
            ["13:59", "11:59", "16:59"],
            "timestamp[us, tz=UTC]",
        ),
        (["2024-06-01T13:59:00Z", "2024-06-01T13:59:00"], {}, None, "times but for"),
        (
            ["2024-06-01", "0000-00-00", "9999-12-31", "1900-01-01", "1899-12-30"],
            {},
            [date(2024, 6, 1), *[None] * 4],
            "'9999-12-31' in 1",
        ),
        (["2024-06-01 10:00:00", "0001-01-01T00:00:00"], {}, [datetime(2024, 6, 1, 10), None], "in 1"),
        (["2024-06-01", "2500-01-01"], {}, None, "times but for '2500-01-01'"),
        (["2024-06-01", "2024-06-31"], {}, None, "times but for '2024-06-31'"),
        (["01/06/2024", "02/06/2024"], {}, None, "dates? Say how they are written, as in --time-format"),
        (["01/06/2024", "2/6/2024"], {"time_format": "%d/%m/%Y"}, [date(2024, 6, 1), date(2024, 6, 2)], "date32"),
        (["01/06/2024 13:59"], {"time_format": "%d/%m/%Y %H:%M"}, [datetime(2024, 6, 1, 13, 59)], "timestamp"),
        (["31/02/2024"], {"time_format": "%d/%m/%Y"}, None, "dates?"),
        (["20240601", "20240602"], {}, [20240601, 20240602], "kept as integers x: dates? Say --time-format %Y%m%d"),
        (["1700000000", "0", "-1"], {"name": "created_at"}, [1700000000, None, None], "'0' in 1, '-1' in 1"),
        (["1700000000000", "9223372036854775807"], {"name": "ts"}, [1700000000000, None], "in 1"),
        (["1700000000", "0"], {}, [1700000000, 0], "int64"),
        (["1.9", "1.10"], {"name": "app_version"}, None, "codes with a point, such as versions"),
        (["1.9", "1.10"], {"name": "conversion"}, [1.9, 1.1], "double"),
        # lists
        (["[1, 2]", "[]", ""], {}, [[1, 2], [], None], "list of int64"),
        (["(1,2)", "(5,)"], {}, [[1, 2], [5]], "list of int64"),
        (["{a,b}", "{c}"], {}, [["a", "b"], ["c"]], "list of string"),
        (["[1 2\n 3]", "[4]"], {}, [[1, 2, 3], [4]], "list of int64"),
        (["['a' 'b']", "['it\\'s']"], {}, [["a", "b"], ["it's"]], "list of string"),
        (['["a, b", "\\u00e9"]', '["c"]'], {}, [["a, b", "é"], ["c"]], "list of string"),
        (["[0.5, 1]", "[2]"], {}, [[0.5, 1.0], [2.0]], "list of double"),
        (["[01, 02]", "[01]"], {}, [["01", "02"], ["01"]], "list of string"),
        (["[0 1 ... 8 9]"], {}, None, "cut short with ..."),
        (["[[1, 2], [3]]"], {}, None, "nested"),
        (["[1, 2]", "[3, None]"], {}, None, "hold empty elements"),
        (["[1, 2]"] * 3 + ["7"], {}, None, "lists in brackets but for '7'"),
        (["{3F25-04E0}", "{3F25-04E1}"], {}, None, "string"),
        (['{"a": 1, "b": 2}'], {}, None, "JSON objects"),
        (["1|2", "3"], {}, None, "string"),
    ],
)
def test_what_values_mean(
    tmp_path: Path, values: list[str], options: dict[str, Any], expected: list[Any] | None, said: str
) -> None:
    found, report = column(tmp_path, values, **options)
    assert said in report
    if "tz=UTC" in said:
        found = [f"{time:%H:%M}" for time in found]
    # Without an expectation the text stays what it was.
    assert found == (values if expected is None else expected)


def test_nanoseconds_are_kept(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,t\nx,2024-06-01 13:59:00.123456789\n")
    source = CsvSource(str(tmp_path / "log.csv"), tmp_path)
    assert next(source.batches(["t"]))["t"][0].value % 1_000_000_000 == 123_456_789


def test_later_files_are_read_as_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, later = tmp_path / "first.csv", tmp_path / "later.csv"
    rows = [f"{i % 3 + 0.5},{i % 3}%,[1{i % 2}],0{i % 3 + 1}/06/2024,{i % 2}" for i in range(30)]
    rows[3] = rows[3].replace("[11]", '"[11, 5]"')
    first.write_text("\n".join(["price,share,seen,day,label", *rows]))
    options = CsvOptions(time_format="%d/%m/%Y", missing=("n.k.",))
    import_csv(str(first), str(tmp_path / "d"), options=options)
    later.write_text("day,seen,price,share\n05/06/2024,[7],n.k.,8%\n,,inf,\n")
    import_like(str(later), str(tmp_path / "e"), str(tmp_path / "d"))
    found = pa.parquet.read_table(tmp_path / "e").to_pylist()
    assert found[0] == {"day": date(2024, 6, 5), "seen": [7], "price": None, "share": 8.0}
    assert re.search(r"2 rows, 4 columns, in \S+/e; without 'label'\n", capsys.readouterr().out)
    later.write_text("price,share\n1.5,8\n")
    with pytest.raises(ValueError, match=r"later.csv: line 2, column 'share': found '8'; expected an integer"):
        import_like(str(later), str(tmp_path / "f"), str(tmp_path / "d"))
    later.write_text("Price_,shares,x\n1.5,8%,1\n")
    with pytest.raises(ValueError, match=r"later.csv has none of the columns of .*/d: it has Price_, shares, x, and"):
        import_like(str(later), str(tmp_path / "f"), str(tmp_path / "d"))
    later.write_text("Price_,share,x\n1.5,8%,1\n")
    import_like(str(later), str(tmp_path / "f"), str(tmp_path / "d"))
    said = capsys.readouterr().out
    assert "without 'seen', 'day', 'label'; with 'x'; 'price' may be what is called 'Price_' here" in said


def test_one_column_is_a_wrong_delimiter(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user item label\n1 2 1\n")
    with pytest.raises(ValueError, match="found one column, 'user item label'; which character separates the values"):
        import_csv(str(tmp_path / "log.csv"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


# Any table, through the writers that people have, comes back.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
CELLS = st.one_of(
    st.none(),
    TEXT,
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.floats(allow_nan=True).map(repr),
    st.sampled_from(
        ["NA", "\\N", "1,5", "1,200", "$3", "[1, 2]", '"', "a\nb", "a,b", "2024-06-01", "0000-00-00", "007", "-0.0"]
    ),
)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str | None]]:
    """Columns of one kind with some odd cells, or of all kinds."""
    width, rows = draw(st.integers(2, 4)), draw(st.integers(1, 12))
    kinds = [
        draw(st.sampled_from([CELLS, st.floats().map(repr), st.integers(-9, 9).map(str), TEXT])) for _ in range(width)
    ]
    return [
        [draw(st.one_of(kind, CELLS) if draw(st.integers(0, 9)) == 0 else kind) for kind in kinds] for _ in range(rows)
    ]


def same(text: str | None, value: Any, taken_as_empty: set[str]) -> bool:
    """Whether a value means what the text does, or is null and was said to be."""
    stripped = (text or "").strip()
    # Arrow and Python trim alike but for some control characters.
    if value is None:
        return stripped == "" or not stripped.isprintable() or stripped in taken_as_empty
    if isinstance(value, str):
        return stripped == value.strip()
    if isinstance(value, list):
        return stripped.startswith("[")
    if isinstance(value, date):
        return stripped == value.isoformat()
    return math.isclose(float(stripped.replace("$", "").replace(",", "")), value)


@settings(max_examples=150, deadline=None)
@example(rows=[[None, "\r0"]], delimiter=",", end="\n", quoting=csv.QUOTE_MINIMAL, by_arrow=False)
@given(
    tables(),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
def test_any_table_comes_back(
    tmp_path_factory: Any, rows: list[list[str | None]], delimiter: str, end: str, quoting: Any, by_arrow: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    names = [f"name{index}" for index in range(len(rows[0]))]
    if by_arrow:
        table = pa.table(
            {name: pa.array([row[index] for row in rows], pa.string()) for index, name in enumerate(names)}
        )
        pa.csv.write_csv(table, folder / "x.csv", pa.csv.WriteOptions(delimiter=delimiter))
    else:
        with open(folder / "x.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([names, *rows])
    source = CsvSource(str(folder / "x.csv"), folder, CsvOptions(quote='"'))
    found = [row for batch in source.batches() for row in batch.to_pylist()]
    assert len(found) == len(rows) == source.rows
    for name, profile in source.profiles.items():
        words = set(profile.missing_words)
        index = names.index(name)
        for row, out in zip(rows, found, strict=True):
            assert same(row[index], out[name], words), (profile.kind, row[index], out[name])
        assert sum(row[name] is None for row in found) == profile.nulls + profile.words


def test_training_imports_nothing_of_this() -> None:
    """`data csv` alone reads CSV: its modules are imported inside of the command."""
    code = (
        "import rankmixer.launch.cli, rankmixer.launch.commands.jobs, rankmixer.pipeline.train.loop, sys; "
        "print([module for module in sys.modules if module.startswith('pipeline.csv')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
