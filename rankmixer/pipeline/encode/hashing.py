"""Stable hashing of Arrow columns into buckets, vectorised: XXH64, which every language has.

    id = XXH64(bytes of the value, seed) mod buckets

The bytes of a string are its UTF-8; those of an integer are 8, little-endian, in two's complement, whatever its width.
So an id depends on nothing but value, seed and buckets, and a serving system can compute it with any xxhash library.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
CHUNK = 1 << 14  # temporaries of this many rows stay in the cache


def hash_integers(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """XXH64 of each integer's 8 little-endian bytes.

    Args:
        values: (N,) any integer type.
        seed: 0 to 2**64 - 1.

    Returns:
        (N,) uint64.

    >>> [hex(h) for h in hash_integers(np.array([0, 1, -1]))]
    ['0x34c96acdcadb1bbb', '0x9f29cb17a2a49995', '0x85d136adb773c6c9']
    """
    hashes = np.empty(len(values), np.uint64)
    for start in range(0, len(values), CHUNK):
        words = values[start : start + CHUNK].astype(np.int64, copy=False).view(np.uint64)
        chunk = hashes[start : start + CHUNK]
        chunk.fill(_wrapped(seed + int(_P5) + 8))
        _add_word(chunk, words)
        _avalanche(chunk)
    return hashes


def hash_strings(array: pa.Array, seed: int = 0) -> np.ndarray:
    """XXH64 of each string's bytes, straight from Arrow's buffers; a null counts as the empty string.

    Args:
        array: (N,) string or large_string, binary or large_binary.
        seed: 0 to 2**64 - 1.

    Returns:
        (N,) uint64.

    >>> [hex(h) for h in hash_strings(pa.array(["", "a", "rank mixer"]))]
    ['0xef46db3751d8e999', '0xd24ec4f1a98c6e5b', '0x21a97d90eb406fdc']
    """
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, offset_buffer, data_buffer = array.buffers()
    hashes = np.empty(len(array), np.uint64)
    if not len(array):
        return hashes
    offsets = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    for start in range(0, len(array), CHUNK):
        ends = offsets[start : start + CHUNK + 1].astype(np.int64)
        hashes[start : start + CHUNK] = _hash_slices(data, ends[:-1], np.diff(ends), seed)
    return hashes


def hash_rows(values_NK: np.ndarray, seed: int = 0) -> np.ndarray:
    """XXH64 of the 8 little-endian bytes of each integer of a row, one after the other.

    Args:
        values_NK: (N, K) any integer type.
        seed: 0 to 2**64 - 1.

    Returns:
        (N,) uint64; for K = 1 those of `hash_integers`.

    >>> [hex(h) for h in hash_rows(np.array([[0], [1]]))]
    ['0x34c96acdcadb1bbb', '0x9f29cb17a2a49995']
    """
    hashes = np.empty(len(values_NK), np.uint64)
    size = 8 * values_NK.shape[1]
    for start in range(0, len(values_NK), CHUNK):
        rows = np.ascontiguousarray(values_NK[start : start + CHUNK], dtype="<i8")
        starts = np.arange(0, size * len(rows), size)
        hashes[start : start + CHUNK] = _hash_slices(
            rows.view(np.uint8).ravel(), starts, np.full(len(rows), size), seed
        )
    return hashes


def into_buckets(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """hashes mod buckets, as uint64; numpy divides by a constant much faster than it takes a remainder."""
    multiples = hashes // np.uint64(buckets)
    multiples *= np.uint64(buckets)
    return np.subtract(hashes, multiples, out=multiples)


def _hash_slices(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray, seed: int) -> np.ndarray:
    hashes = np.full(len(starts), _wrapped(seed + int(_P5)))
    at, left = starts.copy(), lengths.copy()
    long = np.flatnonzero(lengths >= 32)
    if long.size:
        hashes[long] = _hash_stripes(data, starts[long], lengths[long] // 32, seed)
        at[long] += lengths[long] // 32 * 32
        left[long] %= 32
    hashes += lengths.view(np.uint64)
    for size, add in ((8, _add_word), (4, _add_half), (1, _add_byte)):
        for _ in range(int(left.max()) // size):
            some = np.flatnonzero(left >= size)
            rows = some if len(some) < len(left) else slice(None)  # a slice saves copies
            chosen = hashes[rows]
            add(chosen, _unaligned(data, size)[at[rows]].astype(np.uint64, copy=False))
            hashes[rows] = chosen
            at[rows] += size
            left[rows] -= size
    _avalanche(hashes)
    return hashes


def _hash_stripes(data: np.ndarray, starts: np.ndarray, stripes: np.ndarray, seed: int) -> np.ndarray:
    """The four lanes that eat 32 bytes at a time of strings of 32 bytes or more."""
    view = _unaligned(data, 8)
    p1, p2 = int(_P1), int(_P2)
    lanes = [np.full(len(starts), _wrapped(seed + offset)) for offset in (p1 + p2, p2, 0, -p1)]
    for stripe in range(int(stripes.max())):
        active = np.flatnonzero(stripes > stripe)
        for number, lane in enumerate(lanes):
            lane[active] = _round(lane[active], view[starts[active] + (32 * stripe + 8 * number)])
    hashes = np.zeros(len(starts), np.uint64)
    for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True):
        hashes += _rotated(lane.copy(), bits)
    for lane in lanes:
        hashes ^= _round(np.zeros_like(lane), lane)
        hashes *= _P1
        hashes += _P4
    return hashes


def _wrapped(number: int) -> np.uint64:
    return np.uint64(number % (1 << 64))


def _unaligned(data: np.ndarray, size: int) -> np.ndarray:
    """The little-endian word of `size` bytes that begins at each byte."""
    return np.ndarray((len(data) - size + 1,), f"<u{size}", data, strides=(1,))


def _rotated(x: np.ndarray, bits: int) -> np.ndarray:
    """The same array, rotated in place."""
    low = x >> np.uint64(64 - bits)
    x <<= np.uint64(bits)
    x |= low
    return x


def _round(lane: np.ndarray, words: np.ndarray) -> np.ndarray:
    return _rotated(lane + words * _P2, 31) * _P1


def _add_word(hashes: np.ndarray, words: np.ndarray) -> None:
    mixed = _rotated(words * _P2, 31)
    mixed *= _P1
    hashes ^= mixed
    _rotated(hashes, 27)
    hashes *= _P1
    hashes += _P4


def _add_half(hashes: np.ndarray, words: np.ndarray) -> None:
    hashes ^= words * _P1
    _rotated(hashes, 23)
    hashes *= _P2
    hashes += _P3


def _add_byte(hashes: np.ndarray, words: np.ndarray) -> None:
    hashes ^= words * _P5
    _rotated(hashes, 11)
    hashes *= _P1


def _avalanche(hashes: np.ndarray) -> None:
    for bits, prime in ((33, _P2), (29, _P3)):
        hashes ^= hashes >> np.uint64(bits)
        hashes *= prime
    hashes ^= hashes >> np.uint64(32)
