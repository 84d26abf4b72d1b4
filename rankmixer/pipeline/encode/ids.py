"""Raw columns -> bags of ids, as the schema says: a plain range, hash buckets, a vocabulary, or the hash itself."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.encode.bags import Bags, join, within
from rankmixer.pipeline.encode.hashing import CHUNK, hash_integers, hash_strings, into_buckets
from rankmixer.pipeline.schema.features import Id, IdList

BAD = -1  # stands for a value that has no id
NULL = -2  # stands for null; a null list is a list of one null


class IdEncoder:
    """Turns the columns of one feature into bags of ids, BAD and NULL among them.

    Args:
        feature: an `id` or `id_list`.
        strings: whether the column holds strings (or lists of them, or is split into them) rather than integers, in
            whichever of the types that `plain` knows.

    Raises:
        ValueError: integers with a vocabulary, or a default, of something else.

    >>> encoder = IdEncoder(Id(kind="id", range=3, dim=4), strings=False)
    >>> encoder(pa.array([2, None, 3], pa.int16())).values
    array([ 2, -2, -1], dtype=int8)
    >>> encoder = IdEncoder(IdList(kind="id_list", buckets=100, separator="|", dim=4), strings=True)
    >>> encoder(pa.array(["a|c", "", None]))
    Bags(values=array([55, 49, -2], dtype=int8), offsets=array([0, 2, 2, 3]), index=None)
    """

    def __init__(self, feature: Id | IdList, strings: bool) -> None:
        self._feature = feature
        self.strings = strings
        """Whether values are hashed, looked up or parsed as text."""
        self._dtype = np.min_scalar_type(-(feature.hashes or feature.rows))
        self._separator = feature.separator if isinstance(feature, IdList) else None
        self._vocabulary = _Vocabulary(feature.words, strings) if feature.vocabulary is not None else None
        self.default: int | None = None
        """The id that replaces NULL."""
        if feature.default is not None:
            try:
                raw = str(feature.default) if strings else int(feature.default)
            except ValueError:
                raise ValueError(f"default {feature.default!r} is not an integer as the column is") from None
            self.default = int(self._ids(pa.array([raw]))[0])

    def __call__(self, array: pa.Array) -> Bags:
        """Encode a column; a dictionary array only once for each distinct value."""
        if not pa.types.is_dictionary(array.type):
            return self._bags(array)
        bags = self._bags(array.dictionary)
        if array.indices.null_count:
            null = Bags(np.array([NULL], self._dtype), None if bags.offsets is None else np.array([0, 1]))
            bags = join([bags, null])
        index = pc.fill_null(array.indices, len(array.dictionary)).to_numpy()
        return Bags(bags.values, bags.offsets, index.astype(np.int64))

    @property
    def dtype(self) -> np.dtype:
        """The narrowest signed integer that holds every id, BAD and NULL."""
        return self._dtype

    def _bags(self, array: pa.Array) -> Bags:
        if isinstance(self._feature, Id):
            return Bags(self._ids(array))
        if self._separator is not None:
            offsets, parts, null = split_lists(pc.split_pattern(plain(array, True)[0], self._separator))
            # The empty string is the empty list, and so is what stands between two separators in a row.
            empty = pc.equal(parts, "").fill_null(False).to_numpy(zero_copy_only=False)
            if empty.any():
                offsets = offsets - np.concatenate([[0], np.cumsum(empty)]).take(offsets)
                parts = parts.filter(pa.array(~empty))
        else:
            offsets, parts, null = split_lists(array)
        if isinstance(self._feature, IdList):
            offsets, parts = _cut(self._feature, offsets, parts)
        ids = self._ids(parts)
        if null is not None:
            ids = np.insert(ids, offsets[:-1][null], NULL)
            offsets = offsets + np.concatenate([[0], np.cumsum(null)])
        return Bags(ids, offsets)

    def _ids(self, array: pa.Array) -> np.ndarray:
        """(N,) of `dtype`; signed integers that are right may stay as they are."""
        if pa.types.is_dictionary(array.type):  # the values of a list
            ids = np.append(self._ids(array.dictionary), self._dtype.type(NULL))
            return ids.take(pc.fill_null(array.indices, len(array.dictionary)).to_numpy().astype(np.int64))
        array, bad = plain(array, self.strings)
        if self._feature.hashes is not None:
            ids = self._hashed(array, self._feature.hashes)
        elif self._vocabulary is not None:
            ids = self._vocabulary.ids(array).astype(self._dtype)
        else:
            assert self._feature.range is not None
            ids = _in_range(_parsed(array) if self.strings else _numpy(array), self._feature.range, self._dtype)
        if array.null_count:
            ids = np.where(array.is_null().to_numpy(zero_copy_only=False), NULL, ids)
        return ids if bad is None else np.where(bad, self._dtype.type(BAD), ids)

    def _hashed(self, array: pa.Array, hashes: int) -> np.ndarray:
        ids = np.empty(len(array), self._dtype)
        for start in range(0, len(array), CHUNK):
            chunk, seed = array.slice(start, CHUNK), self._feature.seed
            words = hash_strings(chunk, seed) if self.strings else hash_integers(_numpy(chunk), seed)
            ids[start : start + CHUNK] = into_buckets(words, hashes)
        return ids


class _Vocabulary:
    """Value -> its line, by binary search; strings are searched by their hash and then compared."""

    def __init__(self, words: tuple[str, ...], strings: bool) -> None:
        self._words = pa.array(words, pa.large_string())
        self._strings = strings
        if strings:
            keys = hash_strings(self._words)
        else:
            try:
                keys = np.array([int(word) for word in words], np.int64)
            except ValueError as error:
                raise ValueError(f"the column holds integers but its vocabulary does not: {error}") from None
        self._lines = np.argsort(keys, kind="stable")
        self._keys = keys[self._lines]

    def ids(self, array: pa.Array) -> np.ndarray:
        keys = hash_strings(array) if self._strings else _numpy(array).astype(np.int64, copy=False)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        lines = self._lines.take(places)
        found = self._keys.take(places) == keys
        if self._strings:
            same = pc.equal(self._words.take(pa.array(lines)), array.cast(pa.large_string()))
            found &= same.fill_null(False).to_numpy(zero_copy_only=False)
        return np.where(found, lines, BAD)


def _cut(feature: IdList, offsets: np.ndarray, parts: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Lists cut as `truncate` says before they are encoded, where that is known to be right; else later, by the block.

    Null elements may have to go first, and weights are checked against whole lists.
    """
    if feature.truncate is None or feature.weights is not None or parts.null_count:
        return offsets, parts
    kept = within(offsets, feature.truncate, feature.end)
    if kept is None:
        return offsets, parts
    lengths = np.minimum(np.diff(offsets), feature.truncate)
    return np.concatenate([[0], np.cumsum(lengths)]), parts.filter(pa.array(kept))


def split_lists(array: pa.Array) -> tuple[np.ndarray, pa.Array, np.ndarray | None]:
    """Offsets and values of any list array, sliced or not, and which lists are null (None: none); these are empty."""
    values = array.flatten()
    null = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if null is None and not pa.types.is_fixed_size_list(array.type):
        offsets = array.offsets.to_numpy().astype(np.int64, copy=False)
        return (offsets - offsets[0] if offsets[0] else offsets), values, None
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), values, null


def plain(array: pa.Array, strings: bool = False) -> tuple[pa.Array, np.ndarray | None]:
    """Ids in any type that files hold them in, as integers or `strings`; and (N,) bool where a value is no id, or None.

    Booleans are 0 and 1. Decimals and floats, in which warehouses and pandas write integers, have to be whole, and
    small enough that they have kept all digits; NaN is null. Nulls without a type have that of the other files.

    >>> plain(pa.array([7.0, None, 0.5]))
    (<pyarrow.lib.Int64Array object at ...>
    [
      7,
      null,
      0
    ], array([False, False,  True]))
    """
    kind = array.type
    if pa.types.is_boolean(kind):
        return array.cast(pa.uint8()), None
    if pa.types.is_string_view(kind):
        return array.cast(pa.large_string()), None
    if pa.types.is_null(kind):
        return array.cast(pa.large_string() if strings else pa.int64()), None
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), None, array)
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        bad = (np.trunc(values) != values) | (np.abs(values) >= 2.0 ** (np.finfo(values.dtype).nmant + 1))
        return _whole(array, np.where(bad, 0, values).astype(np.int64), bad)
    if pa.types.is_decimal(kind):
        try:
            return array.cast(pa.int64()), None
        except pa.ArrowInvalid:  # not all are whole, and of 64 bits
            pass
        parts = [int(value) if value is not None and value == int(value) else None for value in array.to_pylist()]
        fits = np.array([part is not None and -(2**63) <= part < 2**63 for part in parts], np.bool_)
        whole = np.array([part if fit else 0 for part, fit in zip(parts, fits, strict=True)], np.int64)
        return _whole(array, whole, ~fits & array.is_valid().to_numpy(zero_copy_only=False))
    return array, None


def _whole(array: pa.Array, values: np.ndarray, bad: np.ndarray) -> tuple[pa.Array, np.ndarray | None]:
    integers = pa.array(values, mask=array.is_null().to_numpy(zero_copy_only=False))
    return integers, bad if bad.any() else None


def _numpy(array: pa.Array) -> np.ndarray:
    """Integers without a copy, unless there are nulls, which become 0."""
    return (array.fill_null(0) if array.null_count else array).to_numpy()


def _parsed(array: pa.Array) -> np.ndarray:
    """Strings that are non-negative integers of up to 18 digits; others become BAD."""
    number = pc.match_substring_regex(array, r"^[0-9]{1,18}$")
    return pc.if_else(pc.fill_null(number, False), array, str(BAD)).cast(pa.int64()).to_numpy()


def _in_range(values: np.ndarray, size: int, dtype: np.dtype) -> np.ndarray:
    if values.dtype.kind == "i":
        # Negative numbers are huge as unsigned ones, so one pass finds both. What is right is used where it is.
        if not len(values) or values.view(f"u{values.itemsize}").max() < size:
            return values
    elif not len(values) or values.max() < size:
        return values.astype(dtype)
    ids = values.astype(dtype)
    ids[(values < 0) | (values >= size)] = BAD
    return ids
