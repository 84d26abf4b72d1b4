"""Files and values that are wrong: each is mended and counted, set aside, or one error that says where and what."""

import decimal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.encode.ids import IdEncoder
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.features import Id, IdList
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.damage import ROWS, SCHEMA, batches, changed, rows_of, table, write


def whole(folder: Path, rows: pa.Table) -> bytes:
    return write(folder / "whole", rows).read_bytes()


def cut(path: Path) -> None:
    path.write_bytes(whole(path.parent, table())[:-100])


def no_end(path: Path) -> None:
    path.write_bytes(whole(path.parent, table())[:700])


def wrong_footer(path: Path) -> None:
    data = whole(path.parent, table())
    path.write_bytes(data[:-60] + b"\xff" * 52 + data[-8:])


def other_count(path: Path) -> None:
    """A footer that counts 13 rows, in Thrift's zigzag 26, over row groups of 12."""
    data = whole(path.parent, table())
    assert data.count(b"\x16\x18\x19") == 1  # the 64-bit number 12, then a list
    path.write_bytes(data.replace(b"\x16\x18\x19", b"\x16\x1a\x19"))


def encrypted(path: Path) -> None:
    """What an encrypted footer looks like to a reader without keys."""
    path.write_bytes(b"PARE" + whole(path.parent, table())[4:-4] + b"PARE")


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (Path.touch, "found an empty file (0 bytes); expected a whole Parquet file"),
    "cut": (cut, "found a file whose footer cannot be read ("),
    "cut in the middle": (no_end, "found a file whose footer cannot be read ("),
    "wrong magic": (lambda path: path.write_text("user,click\n1,0\n" * 9), "magic bytes not found in footer"),
    "damaged footer": (wrong_footer, "found a file whose footer cannot be read ("),
    "rows that do not add up": (other_count, "cannot be read (it says 13 rows, its row groups [4, 4, 4])"),
    "encrypted": (encrypted, "found a file whose footer cannot be read ("),
}


def drift(column: str, array: pa.Array | None) -> Callable[[Path], Any]:
    return lambda path: write(path, changed(column, array))


NUMBERS = list(range(ROWS))
DRIFTED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        drift("price", None),
        "column 'price': found no such column; expected one, for feature 'price'. The file",
    ),
    "strings for integers": (drift("user", pa.array(map(str, NUMBERS))), "column 'user': found type string; expected"),
    "integers for strings": (
        drift("city", pa.array(NUMBERS)),
        "column 'city': found type int64; expected string as in ",
    ),
    "times for ids": (
        drift("user", pa.array(NUMBERS, pa.timestamp("us"))),
        "column 'user': found type timestamp[us]; expected integers, because of `range`, for feature 'user'",
    ),
    "lists for ids": (
        drift("user", pa.array([[1]] * ROWS)),
        "column 'user': found type list<element: int64>; expected",
    ),
    "ids for lists": (drift("seen", pa.array(NUMBERS)), "column 'seen': found type int64; expected lists of integers"),
    "nested too deep": (
        drift("seen", pa.array([[[1]]] * ROWS)),
        "column 'seen': found type list<element: list<element",
    ),
    "structs": (
        drift("price", pa.array([{"a": 1}] * ROWS)),
        "column 'price': found type struct<a: int64>; expected numb",
    ),
    "times": (
        drift("price", pa.array(NUMBERS, pa.timestamp("us"))),
        "column 'price': found type timestamp[us]; expected",
    ),
    "another key": (
        drift("row", pa.array(map(str, NUMBERS))),
        "column 'row': found type string; expected int64 as in ",
    ),
}


@pytest.mark.parametrize("name", [*UNREADABLE, *DRIFTED])
def test_a_bad_file_is_refused_or_set_aside_at_the_start(tmp_path: Path, name: str) -> None:
    make, message = (UNREADABLE | DRIFTED)[name]
    for good, first in (("a", 0), ("c", 2 * ROWS)):
        write(tmp_path / f"{good}.parquet", table(first))
    bad = tmp_path / "b.parquet"
    make(bad)
    paths = str(tmp_path)
    with pytest.raises(DataError) as error:
        ParquetDataset(paths, SCHEMA, keys=["row"])
    assert str(error.value).startswith(f"{bad}")
    assert message in str(error.value)

    skipping = ParquetDataset(paths, SCHEMA, keys=["row"], on_bad_file="skip")
    assert skipping.files.bad == {str(bad): str(error.value)}
    read, _ = batches(skipping)
    assert sorted(rows_of(read)) == [*range(ROWS), *range(2 * ROWS, 3 * ROWS)]
    # Another rank, or a later attempt, is told which files are set aside and does not look at them.
    bad.unlink()
    write(bad, table(ROWS))
    told = ParquetDataset(paths, SCHEMA, keys=["row"], set_aside=skipping.files.bad)
    assert told.files.bad == skipping.files.bad
    assert told.files.layout == skipping.files.layout != ParquetDataset(paths, SCHEMA, keys=["row"]).files.layout


def test_files_of_which_none_can_be_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").touch()
    with pytest.raises(
        ValueError, match=r"a.parquet: found no file that can be read; 2 were set aside. The first: .*0 b"
    ):
        ParquetDataset(str(tmp_path), SCHEMA, on_bad_file="skip")


def test_files_without_row_groups_are_fine_among_others(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table().slice(0, 0))
    write(tmp_path / "b.parquet", table())
    read, _ = batches(tmp_path)
    assert sorted(rows_of(read)) == list(range(ROWS))


SAME = {
    "narrow integers": ("user", pa.array(NUMBERS, pa.int8())),
    "unsigned integers": ("user", pa.array(NUMBERS, pa.uint64())),
    "dictionary of integers": ("user", pa.array(NUMBERS).dictionary_encode()),
    "large strings": ("city", table()["city"].combine_chunks().cast(pa.large_string())),
    "string views": ("city", table()["city"].combine_chunks().cast(pa.string_view())),
    "dictionary of strings": ("city", table()["city"].combine_chunks().dictionary_encode()),
    "large lists": ("seen", table()["seen"].combine_chunks().cast(pa.large_list(pa.int16()))),
    "half floats": ("price", pa.array(np.arange(ROWS, dtype=np.float16))),
    "decimals": ("price", pa.array([decimal.Decimal(number) for number in NUMBERS], pa.decimal128(9, 3))),
    "large decimals": ("price", pa.array([decimal.Decimal(number) for number in NUMBERS], pa.decimal256(50, 3))),
    "booleans": ("click", pa.array([bool(number % 2) for number in NUMBERS])),
}


@pytest.mark.parametrize("name", SAME)
def test_types_that_differ_between_files_give_the_same_rows(tmp_path: Path, name: str) -> None:
    column, array = SAME[name]
    write(tmp_path / "a.parquet", table(ROWS))
    expected = rows_of(batches(write(tmp_path / "b.parquet", table()))[0])
    place = table().column_names.index(column)
    write(tmp_path / "b.parquet", table().set_column(place, column, array))
    read, _ = batches(tmp_path, shuffle=True)
    assert {row: made for row, made in rows_of(read).items() if row < ROWS} == expected


@pytest.mark.parametrize("rows_of_group", [4, 40])
def test_strings_that_arrow_makes_no_dictionary_of(tmp_path: Path, rows_of_group: int) -> None:
    encoding = {"city": "DELTA_BYTE_ARRAY", "words": "DELTA_BYTE_ARRAY"}
    expected = rows_of(batches(write(tmp_path / "plain", table(0, 40)), shuffle=False)[0])
    options = {"use_dictionary": False, "column_encoding": encoding, "row_group_size": rows_of_group}
    path = write(tmp_path / "a.parquet", table(0, 40), **options)
    for shuffle in (False, True):
        assert rows_of(batches(path, shuffle=shuffle)[0]) == expected


def text(values: Sequence[bytes | None]) -> pa.Array:
    """Strings that may hold anything."""
    data = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(data), *data.buffers()[1:], data.buffers()[0])


BAD_TEXT = text([b"fine"] * 5 + [b"Z\xfcrich", None, *[b"fine"] * 5])
LISTS = pa.ListArray.from_arrays(pa.array([0, 0, 1, 1, 2, *range(4, 12)], pa.int32()), BAD_TEXT)
VALUES: dict[str, tuple[str, pa.Array, str]] = {
    "not UTF-8": (
        "city",
        BAD_TEXT,
        "row group 1, row 5, column 'city': found bytes that are not UTF-8 (b'Z\\xfcrich'); ",
    ),
    "not UTF-8, separated": ("words", BAD_TEXT, "row group 1, row 5, column 'words': found bytes that are not UTF-8"),
    "too large": (
        "user",
        pa.array([1] * 6 + [2**64 - 1] * 6, pa.uint64()),
        f"row 6, column 'user': found {2**64 - 1}; ex",
    ),
    "negative": (
        "user",
        pa.array([1] * 6 + [-1] * 6),
        "row group 1, row 6, column 'user': found -1; expected an id from",
    ),
    "negative in a list": (
        "seen",
        pa.array([[-7] * (number % 3) for number in NUMBERS]),
        "row group 0, row 1, column 'seen': found -7; expected an id from 0 to 89",
    ),
    "no number": (
        "price",
        pa.array([1.0] * 9 + [float("nan")] * 3),
        "row group 2, row 9, column 'price': found NaN; expec",
    ),
    "infinite": (
        "price",
        pa.array([1.0] * 9 + [-float("inf")] * 3),
        "row group 2, row 9, column 'price': found -inf; exp",
    ),
    "beyond float32": (
        "price",
        pa.array([1.0] * 9 + [1e39] * 3),
        "row group 2, row 9, column 'price': found 1e+39; expect",
    ),
    "label": (
        "click",
        pa.array([0] * 4 + [2] * 8),
        "row group 1, row 4, column 'click': found 2; expected a label from 0",
    ),
    "label beyond float32": (
        "click",
        pa.array([0.0] * 4 + [1e300] * 8),
        "row 4, column 'click': found 1e+300; expected a",
    ),
    "null label": (
        "click",
        pa.array([0] * 4 + [None] * 8),
        "row group 1, row 4, column 'click': found null; expected a la",
    ),
    "weight beyond float32": (
        "seen_weights",
        pa.array([[1e39] * (number % 3) for number in NUMBERS]),
        "column 'seen_weights': found inf; expected a finite weight for each id",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_bad_value_is_named_whatever_is_skipped(tmp_path: Path, name: str) -> None:
    column, array, message = VALUES[name]
    path = write(tmp_path / "a.parquet", changed(column, array))
    for policy in ("fail", "skip"):
        with pytest.raises(DataError) as error:
            batches(ParquetDataset(str(path), SCHEMA, keys=["row"], on_bad_file=policy), shuffle=False)
        assert str(error.value).startswith(f"{path}, row group ")
        assert message in str(error.value)


def test_lists_of_text_and_keys_that_are_not_utf8(tmp_path: Path) -> None:
    schema = Schema.model_validate(
        {"features": {"tags": {"kind": "id_list", "buckets": 9, "dim": 4}}, "labels": {"click": {}}}
    )
    path = write(tmp_path / "a.parquet", pa.table({"tags": LISTS, "name": BAD_TEXT, "click": [0] * ROWS}))
    with pytest.raises(DataError, match=r"row group 1, row 6, column 'tags': found bytes that are not UTF-8"):
        list(BatchReader(ParquetDataset(str(path), schema), 4, shuffle=False).epoch())
    write(path, pa.table({"tags": pa.array([["a"]] * ROWS), "name": BAD_TEXT, "click": [0] * ROWS}))
    with pytest.raises(DataError, match=r"row group 1, row 5, column 'name': found bytes that are not UTF-8"):
        list(BatchReader(ParquetDataset(str(path), schema, keys=["name"]), 4, shuffle=False).epoch())


def test_empty_and_null_lists_are_mended_and_counted(tmp_path: Path) -> None:
    seen = pa.array([None, [], [None], [3, None], *[[4]] * 8])
    weights = pa.array([None, [], [0.5], [0.5, 0.5], *[[0.5]] * 8])
    rows = changed("seen", seen)
    rows = rows.set_column(rows.column_names.index("seen_weights"), "seen_weights", weights)
    read, (reader,) = batches(write(tmp_path / "a.parquet", rows))
    found = rows_of(read)
    assert [found[ROWS + number][0][2] for number in range(5)] == [[], [], [], [3], [4]]
    assert reader.mended == {"seen: null -> empty": 3}


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """Words at the end of 4 GiB of text, lists at the end of 2**32 numbers: a file with a hole, hardly memory."""
    far = 1 << 32
    data = np.memmap(tmp_path / "hole", np.uint8, "w+", shape=(far + 16,))
    data[far:] = np.frombuffer(b"abcdabcdabcdabcd", np.uint8)
    offsets = pa.py_buffer(far + np.array([0, 2, 4, 8, 8], np.int64))
    words = pa.LargeStringArray.from_buffers(4, offsets, pa.py_buffer(data))
    words.validate(full=True)
    encoder = IdEncoder(Id(kind="id", buckets=1000, dim=4), strings=True)
    assert encoder(words).values.tolist() == encoder(pa.array(["ab", "cd", "abcd", ""])).values.tolist()
    numbers = pa.Array.from_buffers(pa.uint8(), far + 16, [None, pa.py_buffer(data)])
    lists = pa.LargeListArray.from_arrays(pa.array([far, far + 3, far + 3, far + 5], pa.int64()), numbers)
    bags = IdEncoder(IdList(kind="id_list", range=256, dim=4), strings=False)(lists)
    assert bags.values.tolist() == [*b"abc", *b"da"]
    assert bags.offsets is not None
    assert bags.offsets.tolist() == [0, 3, 3, 5]
