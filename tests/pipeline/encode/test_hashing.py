import struct

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from rankmixer.pipeline.encode.hashing import hash_integers, hash_rows, hash_strings, into_buckets

# Never to change: a trained table belongs to these numbers. Made with the reference implementation.
STRINGS = {
    ("", 0): 0xEF46DB3751D8E999,
    ("a", 0): 0xD24EC4F1A98C6E5B,
    ("user-17", 0): 0xFC1C6A71863CE5E7,
    ("user-17", 3): 0x4E8DB47634CD375D,
    ("Zürich 漢", 1): 0xB25B4D4D44B94751,
    ("x" * 32, 0): 0xE2DF261FC2EC30EB,
    ("0123456789" * 10, 2**64 - 1): 0xACA8BEC8837A9821,
}
INTEGERS = {
    (0, 0): 0x34C96ACDCADB1BBB,
    (1, 0): 0x9F29CB17A2A49995,
    (-1, 5): 0x3C521821CD07FFAE,
    (2**63 - 1, 2**64 - 1): 0x4F33F2058914EAA9,
}


@pytest.mark.parametrize(("value", "seed"), STRINGS)
def test_golden_strings(value: str, seed: int) -> None:
    for type_ in (pa.string(), pa.large_string()):
        assert int(hash_strings(pa.array([value], type_), seed)[0]) == STRINGS[value, seed]


@pytest.mark.parametrize(("value", "seed"), INTEGERS)
def test_golden_integers(value: int, seed: int) -> None:
    assert int(hash_integers(np.array([value]), seed)[0]) == INTEGERS[value, seed]


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_equals_the_reference_implementation(seed: int) -> None:
    generator = np.random.default_rng(seed % 7)
    # Every length up to 100 and many rows, so that lengths mix and chunks end in between.
    texts = ["é漢x😀-"[length % 5] * (length % 101) for length in generator.integers(0, 1000, 20_000)]
    expected = [xxhash.xxh64_intdigest(text.encode(), seed) for text in texts]
    assert hash_strings(pa.array(texts), seed).tolist() == expected
    assert hash_strings(pa.array(["y", *texts, "z"]).slice(1, len(texts)), seed).tolist() == expected
    numbers = generator.integers(-(2**63), 2**63, 20_000)
    expected = [xxhash.xxh64_intdigest(struct.pack("<q", number), seed) for number in numbers]
    assert hash_integers(numbers, seed).tolist() == expected


def test_the_width_of_an_integer_makes_no_difference() -> None:
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64):
        assert hash_integers(np.array([7, 120], dtype)).tolist() == hash_integers(np.array([7, 120])).tolist()


def test_into_buckets_is_the_remainder() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 40_000, dtype=np.uint64)
    for buckets in (1, 2, 1000, 2**31 + 1):
        expected = [hash_ % buckets for hash_ in hashes.tolist()]
        assert into_buckets(hashes, buckets).tolist() == expected


def test_nothing_to_hash() -> None:
    assert hash_strings(pa.array([], pa.string())).shape == (0,)
    assert hash_strings(pa.nulls(2, pa.string())).shape == (2,)
    assert hash_integers(np.array([], np.int64)).shape == (0,)


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 9])
def test_rows_equal_the_reference_implementation(columns: int) -> None:
    rows = np.random.default_rng(columns).integers(-(2**63), 2**63, (20_000, columns))
    expected = [xxhash.xxh64_intdigest(struct.pack(f"<{columns}q", *row), 7) for row in rows.tolist()]
    assert hash_rows(rows, 7).tolist() == expected
    small = (rows % 100).astype(np.int16)
    assert hash_rows(small).tolist() == hash_rows(small.astype(np.int64)).tolist()
