from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankmixer.pipeline.encode.hashing import hash_integers, hash_strings
from rankmixer.pipeline.encode.ids import BAD, NULL, IdEncoder
from rankmixer.pipeline.schema.features import Id, IdList

INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]
STRINGS = [pa.string(), pa.large_string(), pa.string_view()]


def one(strings: bool = False, **keys: Any) -> IdEncoder:
    return IdEncoder(Id(kind="id", dim=4, **keys), strings)


def many(strings: bool = False, **keys: Any) -> IdEncoder:
    return IdEncoder(IdList(kind="id_list", dim=4, **keys), strings)


def rows_of(encoder: IdEncoder, array: pa.Array) -> list[list[int]]:
    bags = encoder(array)
    offsets = np.arange(len(bags.values) + 1) if bags.offsets is None else bags.offsets
    rows = [bags.values[start:stop].tolist() for start, stop in pairwise(offsets)]
    return rows if bags.index is None else [rows[bag] for bag in bags.index]


def string_hash(word: str, buckets: int, seed: int = 0) -> int:
    return int(hash_strings(pa.array([word]), seed)[0]) % buckets


@pytest.mark.parametrize("type_", INTEGERS, ids=str)
def test_range_of_any_integer_type(type_: pa.DataType) -> None:
    array = pa.array([3, None, 0, 100, 99], type_)
    assert rows_of(one(range=100), array) == [[3], [NULL], [0], [BAD], [99]]
    assert rows_of(one(range=100), array.slice(2, 2)) == [[0], [BAD]]
    assert rows_of(one(range=100), array.dictionary_encode()) == [[3], [NULL], [0], [BAD], [99]]
    if not pa.types.is_unsigned_integer(type_):
        assert rows_of(one(range=100), pa.array([-1, -100, 1], type_)) == [[BAD], [BAD], [1]]


def test_range_of_huge_numbers_and_booleans() -> None:
    assert rows_of(one(range=9), pa.array([2**64 - 1, 2**63, 8], pa.uint64())) == [[BAD], [BAD], [8]]
    assert rows_of(one(range=2), pa.array([True, None, False])) == [[1], [NULL], [0]]
    assert rows_of(one(range=9), pa.array([], pa.int64())) == []


def test_an_id_in_range_is_not_copied() -> None:
    array = pa.array([1, 2, 3], pa.int32())
    assert one(range=9)(array).values.ctypes.data == array.buffers()[1].address


def test_ids_are_narrow_unless_the_table_is_too_long() -> None:
    array = pa.array([2**31 - 2, 2**31, None], pa.int64())
    narrow, wide = one(range=2**31 - 1)(array).values, one(range=2**31 + 1)(array).values
    assert (str(narrow.dtype), narrow.tolist()) == ("int32", [2**31 - 2, BAD, NULL])
    assert (str(wide.dtype), wide.tolist()) == ("int64", [2**31 - 2, 2**31, NULL])
    for buckets, dtype in (
        (128, np.int8),
        (129, np.int16),
        (2**15 + 1, np.int32),
        (2**31, np.int32),
        (2**31 + 1, np.int64),
    ):
        encoder = one(buckets=buckets)
        assert encoder(array).values.dtype == encoder(array.dictionary_encode()).values.dtype == encoder.dtype == dtype


@pytest.mark.parametrize("type_", STRINGS, ids=str)
def test_hashes_of_any_string_type(type_: pa.DataType) -> None:
    words = ["b", None, "", "b", "Zürich, a long name, longer than thirty-two bytes"]
    expected = [[NULL] if word is None else [string_hash(word, 50, 7)] for word in words]
    encoder = one(True, buckets=50, seed=7)
    assert rows_of(encoder, pa.array(words, type_)) == expected
    assert rows_of(encoder, pa.array(words, type_).slice(2)) == expected[2:]
    if not pa.types.is_string_view(type_):
        assert rows_of(encoder, pa.array(words, type_).dictionary_encode()) == expected
        assert rows_of(encoder, pa.array(words, type_).dictionary_encode().slice(1, 3)) == expected[1:4]


def test_hashes_of_integers() -> None:
    expected = [[int(hash_ % np.uint64(50))] for hash_ in hash_integers(np.array([7, -3]), 2)]
    for type_ in (pa.int8(), pa.int64()):
        assert rows_of(one(buckets=50, seed=2), pa.array([7, -3, None], type_)) == [*expected, [NULL]]


def test_managed_values_are_their_hashes_which_int64_holds() -> None:
    integers = pa.array([7, -3, None], pa.int64())
    expected = [int(hash_) % (2**63 - 1) for hash_ in hash_integers(np.array([7, -3]), 5)]
    assert rows_of(one(managed=10, seed=5), integers) == [[expected[0]], [expected[1]], [NULL]]
    ids = one(True, managed=10)(pa.array(["a", "b", "a"])).values
    assert ids.dtype == np.int64
    assert ids.tolist() == [string_hash(word, 2**63 - 1) for word in "aba"]


def test_a_distinct_value_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counting(array: pa.Array, seed: int) -> np.ndarray:
        hashed.append(len(array))
        return hash_strings(array, seed)

    monkeypatch.setattr("rankmixer.pipeline.encode.ids.hash_strings", counting)
    array = pa.array(["a", "b", "a", "a", None] * 100).dictionary_encode()
    assert len(rows_of(one(True, buckets=9), array)) == 500
    assert hashed == [2]


def test_vocabulary_of_strings_and_integers(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("Rome\nOslo\nÅrhus\n")
    (tmp_path / "numbers").write_text("30\n-7\n20\n")
    words, numbers = str(tmp_path / "words"), str(tmp_path / "numbers")
    for type_ in STRINGS:
        array = pa.array(["Oslo", None, "oslo", "Århus", "Rome"], type_)
        assert rows_of(one(True, vocabulary=words), array) == [[1], [NULL], [BAD], [2], [0]]
    for type_ in (pa.int8(), pa.int64()):
        assert rows_of(one(vocabulary=numbers), pa.array([20, None, 21, -7], type_)) == [[2], [NULL], [BAD], [1]]
    assert rows_of(one(vocabulary=numbers), pa.array([2**64 - 1, 20], pa.uint64())) == [[BAD], [2]]
    with pytest.raises(ValueError, match=r"the column holds integers but its vocabulary does not: .*'Rome'"):
        one(vocabulary=words)
    assert one(True, vocabulary=words, default="Oslo").default == 1
    assert one(vocabulary=numbers, default=20).default == 2


def test_a_word_with_the_hash_of_another_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rankmixer.pipeline.encode.ids.hash_strings", lambda array, seed=0: np.zeros(len(array), np.uint64)
    )
    (tmp_path / "words").write_text("Rome\n")
    assert rows_of(one(True, vocabulary=str(tmp_path / "words")), pa.array(["Oslo", "Rome"])) == [[BAD], [0]]


def test_default_must_fit_the_column() -> None:
    assert one(buckets=9, default=5).default == int(hash_integers(np.array([5]))[0]) % 9
    assert one(True, buckets=9, default=5).default == string_hash("5", 9)
    assert one(range=9).default is None
    with pytest.raises(ValueError, match="default 'none' is not an integer as the column is"):
        one(buckets=9, default="none")


LISTS = [[1, 2], None, [], [9, None, 0]]


@pytest.mark.parametrize(
    "type_",
    [pa.list_(pa.int64()), pa.large_list(pa.int16()), pa.list_(pa.uint8()), pa.large_list(pa.uint64())],
    ids=str,
)
def test_lists_of_integers(type_: pa.DataType) -> None:
    expected = [[1, 2], [NULL], [], [BAD, NULL, 0]]
    array = pa.array(LISTS, type_)
    assert rows_of(many(range=9), array) == expected
    assert rows_of(many(range=9), array.slice(1, 3)) == expected[1:]
    assert rows_of(many(range=9), array.slice(3)) == expected[3:]
    assert rows_of(many(range=9), array.slice(0, 1)) == expected[:1]
    assert rows_of(many(range=9), array.slice(2, 0)) == []


def test_lists_of_a_fixed_size() -> None:
    array = pa.array([[1, 2], None, [3, None]], pa.list_(pa.int32(), 2))
    assert rows_of(many(range=9), array) == [[1, 2], [NULL], [3, NULL]]
    assert rows_of(many(range=9), array.slice(1)) == [[NULL], [3, NULL]]
    assert rows_of(many(range=9), array.slice(2)) == [[3, NULL]]


def test_lists_of_strings_and_of_dictionaries() -> None:
    lists = [["a", "b"], None, [], ["b", None, "c"]]
    a, b, c = (string_hash(word, 50) for word in "abc")
    expected = [[a, b], [NULL], [], [b, NULL, c]]
    for type_ in STRINGS:
        assert rows_of(many(True, buckets=50), pa.array(lists, pa.list_(type_))) == expected
    plain = pa.array(lists, pa.list_(pa.string()))
    coded = pa.ListArray.from_arrays(plain.offsets, plain.values.dictionary_encode(), mask=plain.is_null())
    assert rows_of(many(True, buckets=50), coded) == expected


def test_what_a_null_list_hides_is_not_read() -> None:
    array = pa.ListArray.from_arrays(
        pa.array([0, 2, 3], pa.int32()), pa.array([99, 99, 1]), mask=pa.array([True, False])
    )
    assert rows_of(many(range=9), array) == [[NULL], [1]]


def test_strings_split_at_a_separator() -> None:
    texts = ["a|b", "", None, "|a||", "b"]
    a, b = (string_hash(word, 50) for word in "ab")
    expected = [[a, b], [], [NULL], [a], [b]]
    encoder = many(True, buckets=50, separator="|")
    for type_ in STRINGS:
        assert rows_of(encoder, pa.array(texts, type_)) == expected
    assert rows_of(encoder, pa.array(texts * 2).dictionary_encode()) == expected * 2


def test_split_strings_that_hold_integers() -> None:
    array = pa.array(["3, 08", "9,2", "x,-1", "99999999999999999999,1"])
    array = pa.array([text.replace(" ", "") for text in array.to_pylist()])
    assert rows_of(many(True, range=9, separator=","), array) == [[3, 8], [BAD, 2], [BAD, BAD], [BAD, 1]]


def test_large_columns_keep_their_order() -> None:
    generator = np.random.default_rng(1)
    numbers = generator.integers(0, 5000, 50_000)
    texts = [f"item-{number}" for number in numbers.tolist()]
    expected = {text: string_hash(text, 97) for text in set(texts)}
    assert rows_of(one(True, buckets=97), pa.array(texts)) == [[expected[text]] for text in texts]


@given(
    rows=st.lists(st.none() | st.lists(st.integers(-1, 9), max_size=6), min_size=1, max_size=6),
    most=st.integers(1, 4),
    end=st.sampled_from(["last", "first"]),
)
@settings(max_examples=200, deadline=None)
def test_truncated_lists_are_slices(rows: list[list[int] | None], most: int, end: str) -> None:
    lists = pa.array([[7], *rows], pa.list_(pa.int64())).slice(1)
    texts = pa.array([None if row is None else "|".join(map(str, row)) for row in rows], pa.string())
    cut = {"range": 9, "truncate": most, "keep": end}
    for array, keys in ((lists, {}), (texts, {"separator": "|"}), (texts.dictionary_encode(), {"separator": "|"})):
        whole = rows_of(many("separator" in keys, range=9, **keys), array)
        expected = [row[-most:] if end == "last" else row[:most] for row in whole]
        assert rows_of(many("separator" in keys, **cut, **keys), array) == expected
    # Where null elements may have to go first, or weights are still to be compared with ids, lists stay whole.
    assert rows_of(many(range=9, truncate=1), pa.array([[1, None, 2]])) == [[1, NULL, 2]]
    assert rows_of(many(range=9, truncate=1, weights="w"), pa.array([[1, 2]])) == [[1, 2]]
