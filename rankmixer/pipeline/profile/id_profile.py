"""What a column of ids holds, as its encoder reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rankmixer.pipeline.encode.bags import Bags
from rankmixer.pipeline.encode.ids import BAD, NULL, IdEncoder
from rankmixer.pipeline.encode.rows import Place
from rankmixer.pipeline.profile.id_counts import IdCounts
from rankmixer.pipeline.profile.key_counts import KeySpace
from rankmixer.pipeline.profile.number_profile import FirstPlace
from rankmixer.pipeline.schema.features import Id, IdList

TOPS = (1, 10, 100, 1000)
COVERED = (0.8, 0.9, 0.99)
NAMED = 5  # heaviest ids that are shown with their value
LONGEST = 4096  # lists from this length on count as equally long in the quantiles


def key_space(feature: Id | IdList) -> KeySpace:
    """Where the keys of a feature's ids lie; features of one table have one."""
    return KeySpace(feature.buckets)


def wide(feature: Id | IdList) -> Id | IdList:
    """The feature with so many buckets that every value has its own; modulo its own buckets they are its own."""
    return feature if feature.buckets is None else feature.model_copy(update={"buckets": key_space(feature).size})


class Watch:
    """Some ids by their keys, and which of them have been seen."""

    def __init__(self, keys: Sequence[np.ndarray]) -> None:
        self.keys = np.unique(np.concatenate(keys))
        self.seen = np.zeros(len(self.keys), np.bool_)

    def mark(self, keys: np.ndarray) -> None:
        """Take note of (N,) keys that occur."""
        if len(self.keys):
            places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            self.seen[places[self.keys[places] == keys]] = True

    def unseen(self, keys: np.ndarray) -> np.ndarray:
        """(N,) bool for keys that are watched: True if they did not occur."""
        return ~self.seen[np.searchsorted(self.keys, keys)]


class IdProfile:
    """Lookups of one feature: how many, of which ids, in lists of which lengths.

    Args:
        feature: a line of the schema.
        encoder: of `wide(feature)`.
    """

    def __init__(self, feature: Id | IdList, encoder: IdEncoder) -> None:
        self.column = feature.column
        self.space = key_space(feature)
        self.counts = IdCounts(self.space)
        self.watch: Watch | None = None
        self.bad = FirstPlace()
        self.rows = self.filled = self.nulls = 0
        self.longest = 0
        self.lengths = np.zeros(LONGEST + 1, np.int64)
        self._feature = feature
        self._encoder = encoder
        self._values: dict[int, Any] = {}

    def update(self, chunk: pa.Array, place: Place) -> None:
        """Add consecutive rows."""
        bags = self._encoder(chunk)
        # A dictionary has each of its bags once; `times` is how many rows have it.
        times = np.ones(len(bags), np.int64) if bags.index is None else np.bincount(bags.index, minlength=len(bags))
        value_times = times if bags.offsets is None else np.repeat(times, bags.lengths)
        null, default = bags.values == NULL, self._encoder.default
        self.rows += len(chunk)
        self.nulls += int(value_times[null].sum())
        self._update_bad(bags, place)
        ids = bags.values if default is None else np.where(null, default, bags.values)
        self._update_lengths(bags, ids != NULL, times)
        with_id = np.flatnonzero(ids >= 0)
        keys = self.space.keys(ids[with_id].astype(np.int64, copy=False))
        if self.watch is not None:
            self.watch.mark(keys if bags.index is None else keys[value_times[with_id] > 0])
        self.counts.add_keys(keys, None if bags.index is None else value_times[with_id])
        self._name_heaviest(chunk, bags, keys, with_id)

    def _update_bad(self, bags: Bags, place: Place) -> None:
        bad = np.flatnonzero(bags.values == BAD)
        if bad.size:
            per_bag = np.bincount(_bags_of(bags, bad), minlength=len(bags))
            per_row = per_bag if bags.index is None else per_bag[bags.index]
            self.bad.add(np.repeat(np.arange(len(per_row)), per_row), place)

    def _update_lengths(self, bags: Bags, present: np.ndarray, times: np.ndarray) -> None:
        lengths = present.astype(np.int64)
        if bags.offsets is not None:
            lengths = np.diff(np.append(0, np.cumsum(lengths))[bags.offsets])
        self.filled += int(times[lengths > 0].sum())
        if len(lengths):
            self.longest = max(self.longest, int(lengths[times > 0].max(initial=0)))
        self.lengths += np.bincount(np.minimum(lengths, LONGEST), times, LONGEST + 1).astype(np.int64)

    def _name_heaviest(self, chunk: pa.Array, bags: Bags, keys: np.ndarray, with_id: np.ndarray) -> None:
        """Keep the raw values of the ids that are the heaviest now; what rises later is in that chunk itself."""
        heaviest = self.counts.known.heaviest(NAMED).keys.tolist()
        self._values = {key: self._values[key] for key in heaviest if key in self._values}
        for key in heaviest:
            if key not in self._values and len(places := np.flatnonzero(keys == key)):
                self._values[key] = self._raw(chunk, bags, int(with_id[places[0]]))

    def _raw(self, chunk: pa.Array, bags: Bags, place: int) -> Any:
        """The raw value behind one of the bags' values."""
        if bags.values[place] == NULL:
            return self._feature.default
        bag = int(_bags_of(bags, np.array([place]))[0])
        raw = (chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk)[bag].as_py()
        if bags.offsets is None:
            return raw
        assert isinstance(self._feature, IdList)
        separator = self._feature.separator
        elements = raw if separator is None else [part for part in raw.split(separator) if part]
        return elements[place - int(bags.offsets[bag])]

    def to_json(self) -> dict[str, Any]:
        counts, lookups = self.counts, max(self.counts.lookups, 1)
        heaviest = counts.known.heaviest(NAMED)
        order = np.argsort(-heaviest.counts, kind="stable")
        return {
            "column": self.column,
            "kind": self._feature.kind,
            "nulls": self.nulls,
            "bad": {
                "policy": self._feature.bad_policy if self._feature.buckets is None else None,
                **self.bad.to_json(),
            },
            "rows_with_ids": self.filled,
            "lookups": counts.lookups,
            "distinct": round(counts.distinct),
            "distinct_error": counts.distinct_error,
            "top": {str(ids): counts.share_of_top(ids) for ids in TOPS},
            "top_error": counts.top_error,
            "heaviest": [
                {"value": self._values.get(key), "share": count / lookups}
                for key, count in zip(heaviest.keys[order].tolist(), heaviest.counts[order].tolist(), strict=True)
            ],
            "coverage": {f"{share * 100:g}": counts.ids_to_cover(share) for share in COVERED},
            "lengths": self._lengths() if isinstance(self._feature, IdList) else None,
        }

    def _lengths(self) -> dict[str, float]:
        cumulated, rows = np.cumsum(self.lengths), max(self.rows, 1)
        quantiles = {f"{share * 100:g}": int(np.searchsorted(cumulated, share * rows)) for share in (0.5, 0.9, 0.99)}
        return {"mean": (self.counts.lookups + self.bad.count) / rows, **quantiles, "max": self.longest}


def _bags_of(bags: Bags, places: np.ndarray) -> np.ndarray:
    """In which bag each of these values is."""
    return places if bags.offsets is None else np.searchsorted(bags.offsets, places, side="right") - 1
