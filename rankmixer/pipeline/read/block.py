"""Raw rows of some row groups -> a block: ids encoded, rows gathered in training order, bad values found or mended."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import numpy as np
import pyarrow as pa

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.encode.bags import Bags, join, keep, scatter, take, within
from rankmixer.pipeline.encode.cross import crossed
from rankmixer.pipeline.encode.ids import BAD, NULL, plain, split_lists
from rankmixer.pipeline.encode.numeric import bucketed, dense, to_numpy, wanted
from rankmixer.pipeline.encode.rows import RawRows, shown
from rankmixer.pipeline.encode.time_parts import time_ids
from rankmixer.pipeline.read.batch import Block
from rankmixer.pipeline.read.buffers import Memory
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.label_check import LABEL, WEIGHT, Limits
from rankmixer.pipeline.schema.features import Cross, Id, IdList, Number, Time


class BlockBuilder:
    """Builds one block. `mended` counts what the schema's policies replaced, removed or dropped.

    Raises:
        DataError: a value that no policy mends.
    """

    def __init__(self, dataset: ParquetDataset, raw: RawRows, memory: Memory) -> None:
        self._dataset = dataset
        self._raw = raw
        self._empty = memory.blocks.arena().empty
        self._scratch = memory.scratch.empty
        self._left = Counter(dataset.uses)
        self._dropped = np.zeros(len(raw), np.bool_)
        self.mended: Counter[str] = Counter()

    def build(self) -> Block:
        schema, raw = self._dataset.schema, self._raw
        columns = self._sparse()
        dense_FN = self._empty((len(schema.dense_features), len(raw)), np.float32)
        for dense_N, name in zip(dense_FN, schema.dense_features, strict=True):
            values = self._number(name, dense_N)
            if values is not dense_N:
                dense_N[:] = values
            self._used(schema.features[name].reads[0])
        labels_KN = self._empty((len(schema.tasks), len(raw)), np.float32)
        labels_KN.fill(0)
        weights_N = self._empty((len(raw),), np.float32)
        weights_N.fill(1)
        if self._dataset.labels:
            for number, label in enumerate(schema.labels.values()):
                labels_KN[number] = self._within(label.column, LABEL)
            if schema.weight is not None:
                weights_N[:] = self._within(schema.weight, WEIGHT)
        if self._dropped.any():
            weights_N[self._dropped] = 0
            columns = [self._without_dropped(*column) for column in columns]
        keys = None
        if self._dataset.keys_schema.names:
            schema_ = self._dataset.keys_schema
            copied = (
                raw.located() if self._dataset.located else [raw.array(field.name, field.type) for field in schema_]
            )
            keys = pa.Table.from_arrays(copied, schema=schema_)
        return Block([b for b, _ in columns], [w for _, w in columns], dense_FN, labels_KN, weights_N, keys)

    def _sparse(self) -> list[tuple[Bags, np.ndarray | None]]:
        """The bags of every feature with a table, and the weights of their values; crosses after what they are of."""
        features = self._dataset.schema.features
        names = self._dataset.schema.sparse_features
        made = {name: self._bags(name) for name in names if not isinstance(features[name], Cross)}
        for name in names:
            if isinstance(cross := features[name], Cross):
                made[name] = crossed([made[part][0] for part in cross.of], cross), None
        return [made[name] for name in names]

    def _bags(self, name: str) -> tuple[Bags, np.ndarray | None]:
        feature = self._dataset.schema.features[name]
        if isinstance(feature, Number):
            assert feature.boundaries is not None, "learnt before"
            bags = Bags(bucketed(self._number(name), feature.boundaries))
            self._used(feature.column)
            return bags, None
        if isinstance(feature, Time):
            bags, _ = self._mend_null(name, Bags(time_ids(self._raw, feature)), None, None)
            for column in feature.reads:
                self._used(column)
            return bags, None
        assert isinstance(feature, Id | IdList)
        encoder = self._dataset.encoders[name]
        bags = self._gather([encoder(chunk) for chunk in self._raw.chunks(feature.column)], encoder.dtype)
        weights = None
        if isinstance(feature, IdList) and feature.weights is not None:
            weights = self._list_weights(feature, bags)
            self._used(feature.weights)
        to_mend = len(bags.values) > 0 and bags.values.min() < 0
        if to_mend:
            bags, weights = self._mend_null(name, bags, weights, encoder.default)
        if isinstance(feature, IdList) and feature.truncate is not None:
            assert bags.offsets is not None
            kept = within(bags.offsets, feature.truncate, feature.end)
            if kept is not None:
                bags, weights = keep(bags, kept), None if weights is None else weights[kept]
        if to_mend:
            bags = self._mend_bad(name, feature, bags)
        self._used(feature.column)
        return bags, weights

    def _gather(self, parts: list[Bags], dtype: np.dtype) -> Bags:
        """The bags of the wanted rows. One id a row becomes `dtype`, so that Arrow's wider memory is free for the next.

        That memory is still in the cache, and blocks stay small.
        """
        lists = all(part.offsets is not None and part.index is None for part in parts)
        if lists and self._raw.places is not None:
            return scatter(parts, self._raw.places, dtype, self._empty)
        if self._raw.rows is None:
            return take(join(parts, self._empty, dtype), None, self._empty)
        return take(join(parts, self._scratch, dtype), self._raw.rows, self._empty)

    def _used(self, column: str) -> None:
        """Free a column that nothing else needs; blocks grow while their raw columns go."""
        self._left[column] -= 1
        if not self._left[column]:
            self._raw.release(column)

    def _mend_null(
        self, name: str, bags: Bags, weights: np.ndarray | None, default: int | None
    ) -> tuple[Bags, np.ndarray | None]:
        null = bags.values == NULL
        if not null.any():
            return bags, weights
        if default is not None:
            self.mended[f"{name}: null -> default"] += int(null.sum())
            return Bags(np.where(null, default, bags.values), bags.offsets), weights
        self.mended[f"{name}: null -> empty"] += int(null.sum())
        return keep(bags, ~null), None if weights is None else weights[~null]

    def _mend_bad(self, name: str, feature: Id | IdList, bags: Bags) -> Bags:
        bad = bags.values == BAD
        if not bad.any():
            return bags
        places = np.flatnonzero(bad)
        rows = places if bags.offsets is None else np.searchsorted(bags.offsets, places, side="right") - 1
        what = "unknown" if feature.vocabulary is not None else "out of range"
        if feature.bad_policy == "fail":
            raise self._bad_id(
                feature, int(rows[0]), int(places[0] - (0 if bags.offsets is None else bags.offsets[rows[0]]))
            )
        if feature.bad_policy == "reserve":
            self.mended[f"{name}: {what} -> reserved"] += len(places)
            return Bags(np.where(bad, feature.rows - 1, bags.values), bags.offsets)
        self.mended[f"{name}: {what} -> row dropped"] += len(np.unique(rows))
        self._dropped[rows] = True
        return bags

    def _bad_id(self, feature: Id | IdList, row: int, place: int) -> DataError:
        found = self._raw.value(feature.column, row)
        if isinstance(feature, IdList):
            parts = [part for part in found.split(feature.separator) if part] if feature.separator else found or [None]
            parts = [part for part in parts if part is not None or feature.default is not None]
            if feature.truncate is not None and feature.end == "last":
                parts = parts[-feature.truncate :]
            found = parts[place]
        is_whole = not isinstance(found, float | Decimal) or plain(pa.array([found]))[1] is None
        if feature.hashes is not None or not is_whole:
            do = "For numbers use `kind: number`; write ids as 64-bit integers or text."
            return self._raw.error(
                row, feature.column, shown(found), "a whole number with all its digits, as an id", do
            )
        if feature.vocabulary is not None:
            return self._raw.error(
                row,
                feature.column,
                shown(found),
                f"a value of the vocabulary {feature.vocabulary}",
                "Add it there, or set `on_bad: reserve` or `on_bad: drop`.",
            )
        do = "Raise `range`, use `buckets`, or set `on_bad: reserve` or `on_bad: drop`."
        assert feature.range is not None
        return self._raw.error(row, feature.column, shown(found), f"an id from 0 to {feature.range - 1}", do)

    def _list_weights(self, feature: IdList, bags: Bags) -> np.ndarray:
        """(V,) float32, one for each id."""
        assert feature.weights is not None
        parts = []
        for chunk in self._raw.chunks(feature.weights):
            offsets, values, _ = split_lists(chunk)
            with np.errstate(over="ignore"):
                parts.append(Bags(to_numpy(values).astype(np.float32), offsets))
        found = self._gather(parts, np.dtype(np.float32))
        assert bags.offsets is not None
        ids_N, found_N = bags.lengths, found.lengths
        null = bags.values == NULL
        # A null list is a list of one NULL here, but has no weights.
        null_N = self._raw.nulls(feature.column) if null.any() else np.zeros(len(ids_N), np.bool_)
        unequal = np.flatnonzero(np.where(null_N, 0, ids_N) != found_N)
        if unequal.size:
            row = int(unequal[0])
            count = f"{found_N[row]} weights for {0 if null_N[row] else ids_N[row]} ids"
            raise self._raw.error(row, feature.weights, count, "one weight for each id", "Mend the row.")
        weights = np.ones(len(bags.values), np.float32)
        weights[~np.repeat(null_N, ids_N)] = found.values
        weights[null] = 1
        wrong = np.flatnonzero(~np.isfinite(weights))
        if wrong.size:
            row = int(np.searchsorted(bags.offsets, wrong[0], side="right")) - 1
            value = float(weights[wrong[0]])
            raise self._raw.error(row, feature.weights, shown(value), "a finite weight for each id", "Mend the row.")
        return weights

    def _number(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """(N,) float32 for the dense input, or what boundaries are compared with; always finite."""
        feature = self._dataset.schema.features[name]
        assert isinstance(feature, Number)
        raw = self._raw.numbers(feature.column, out, self._scratch)
        values = dense(raw, feature) if feature.is_dense else raw
        if np.isfinite(values).all():
            return values
        missing = np.isnan(raw)
        if feature.default is not None and missing.any():
            null = self._raw.nulls(feature.column)
            for what, count in (("null", int(null.sum())), ("NaN", int((missing & ~null).sum()))):
                if count:
                    self.mended[f"{name}: {what} -> default"] += count
            raw = np.where(missing, raw.dtype.type(feature.default), raw)
            values = dense(raw, feature) if feature.is_dense else raw
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            row = int(wrong[0])
            expected, do = wanted(feature, bool(missing[row]))
            raise self._raw.error(row, feature.column, shown(self._raw.value(feature.column, row)), expected, do)
        return values

    def _within(self, column: str, limits: Limits) -> np.ndarray:
        """(N,) float32, finite and from 0 to the highest."""
        with np.errstate(over="ignore"):
            values = self._raw.numbers(column).astype(np.float32, copy=False)
        row = limits.first_outside(values)
        if row is None:
            return values
        found = shown(self._raw.value(column, row))
        raise self._raw.error(row, column, found, limits.expected, limits.do)

    def _without_dropped(self, bags: Bags, weights: np.ndarray | None) -> tuple[Bags, np.ndarray | None]:
        kept = np.repeat(~self._dropped, bags.lengths)
        return keep(bags, kept), None if weights is None else weights[kept]


def empty_block(dataset: ParquetDataset) -> Block:
    """A block without rows, for a rank whose batch is all padding."""
    schema = dataset.schema
    return Block(
        [Bags(np.empty(0, np.int64))] * len(schema.sparse_features),
        [None] * len(schema.sparse_features),
        np.empty((len(schema.dense_features), 0), np.float32),
        np.empty((len(schema.tasks), 0), np.float32),
        np.empty(0, np.float32),
        dataset.keys_schema.empty_table() if dataset.keys_schema.names else None,
    )
