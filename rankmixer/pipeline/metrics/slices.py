"""Metrics of parts of the rows: those that share a value of a column, over all ranks, in bounded memory."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rankmixer.pipeline.base.collective import together
from rankmixer.pipeline.metrics.metrics import Metrics

SHOWN = 20  # values of a column that have metrics of their own
TRACKED = 100  # values that each rank follows, to find those
CHUNK_ROWS = 131_072  # rows that wait to be told apart
SLICE_BINS = 4096  # of a histogram AUC, at most
KEPT = ("auc", "ne", "calibration")

Value = int | str | None


class Slices:
    """AUC, NE, calibration and rows for each of the most frequent values of some columns, and for all others together.

    Make a new object for each evaluation. The AUC is exact or by histogram, as that of `Metrics`, with 4,096 bins at
    most. A rank follows the 100 values of a column that it has met most often; rows of a value that comes into that
    circle late, in a column of more values, were added to the others before. With 100 values or fewer all is exact.

    Memory per rank: the rows of a chunk; with the exact AUC 8 bytes per row, task and column, with a histogram
    6.6 MB per task and column.

    Args:
        tasks: names of the K tasks.
        columns: whose values part the rows.
        auc_bins: None for the exact AUC, or the number of bins.

    >>> slices = Slices(["click"], ["city"])
    >>> logits_BK, labels_BK = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    >>> slices.update(logits_BK, labels_BK, torch.ones(3), pa.table({"city": ["Rome", "Rome", "Oslo"]}))
    >>> [(entry["value"], entry["rows"], entry["auc"]) for entry in slices.compute()["city"]["values"]]
    [('Rome', 2, 0.0), ('Oslo', 1, None)]
    """

    def __init__(self, tasks: Sequence[str], columns: Sequence[str], *, auc_bins: int | None = None) -> None:
        self.columns = list(columns)
        self._tasks = list(tasks)
        self._bins = None if auc_bins is None else min(auc_bins, SLICE_BINS)
        self._tracked: dict[str, dict[Value, Metrics]] = {column: {} for column in columns}
        self._others = {column: self._metrics() for column in columns}
        self._rows: dict[str, dict[Value, int]] = {column: {} for column in columns}
        self._waiting: list[tuple[Tensor, Tensor, Tensor, pa.Table]] = []
        self._waiting_rows = 0

    def _metrics(self) -> Metrics:
        return Metrics(self._tasks, auc_bins=self._bins)

    def update(self, logits_BK: Tensor, labels_BK: Tensor, weights_B: Tensor, keys: pa.Table) -> None:
        """Add a batch; `keys` has a row for each of the first rows, what follows is padding. Local.

        Raises:
            ValueError: a column holds what is no single value.
        """
        counted_B = weights_B[: keys.num_rows].cpu() != 0
        rows = [tensor[: keys.num_rows].cpu()[counted_B] for tensor in (logits_BK.float(), labels_BK, weights_B)]
        self._waiting.append((rows[0], rows[1], rows[2], keys.select(self.columns).filter(pa.array(counted_B.numpy()))))
        self._waiting_rows += len(rows[2])
        if self._waiting_rows >= CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting_rows:
            return
        *parts, tables = zip(*self._waiting, strict=True)
        rows = [torch.cat(part) for part in parts]
        self._waiting, self._waiting_rows = [], 0
        table = pa.concat_tables(tables)
        for column in self.columns:
            encoded = values_of(table[column].combine_chunks(), column).dictionary_encode(null_encoding="encode")
            self._part(column, encoded.indices.to_numpy(), encoded.dictionary.to_pylist(), rows)

    def _part(self, column: str, codes_N: np.ndarray, values: list[Value], rows: list[Tensor]) -> None:
        """Give the rows of a chunk, whose value is `values[code]`, to those that follow the value."""
        tracked, others, known = self._tracked[column], self._others[column], self._rows[column]
        counts = np.bincount(codes_N, minlength=len(values)).tolist()
        codes = {value: code for code, value in enumerate(values)}
        for value, code in codes.items():
            known[value] = known.get(value, 0) + counts[code]
        self._rows[column] = known = most_frequent(known, TRACKED)
        for value in [value for value in tracked if value not in known]:
            others.add(tracked.pop(value))
        order_N = np.argsort(codes_N, kind="stable")
        ends = np.cumsum(counts)
        for value, code in codes.items():
            if value not in known:
                continue
            at_N = torch.from_numpy(order_N[ends[code] - counts[code] : ends[code]])
            tracked.setdefault(value, self._metrics()).update(*(tensor[at_N] for tensor in rows))
        is_other = np.array([value not in known for value in values])[codes_N]
        if is_other.any():
            others.update(*(tensor[torch.from_numpy(is_other)] for tensor in rows))

    def compute(self, group: ProcessGroup | None = None) -> dict[str, Any]:
        """By column: `values`, the most frequent first, and `other`, or None. Collective; call it once.

        An entry holds "value", "rows", "auc", "ne" and "calibration" ("task/auc" with several tasks); None where a
        metric is not defined. `other` has no value.
        """
        self._flush()
        found = {}
        for column in self.columns:
            tracked, others, rows = self._tracked[column], self._others[column], list(self._rows[column].items())
            total: dict[Value, int] = {}
            for part in together(f"cannot count the values of {column}", partial(list, rows)):
                for value, count in part:
                    total[value] = total.get(value, 0) + count
            shown = most_frequent(total, SHOWN)
            entries = [{"value": value, **_entry(tracked.pop(value, self._metrics()), group)} for value in shown]
            for metrics in tracked.values():
                others.add(metrics)
            other = _entry(others, group)
            found[column] = {"values": entries, "other": other if other["rows"] else None}
        return found


def most_frequent(rows: dict[Value, int], limit: int) -> dict[Value, int]:
    """The `limit` values of most rows, in falling order; of equals the first by name."""
    # Names as JSON: one order for numbers, strings and null, the same on all ranks.
    return dict(heapq.nsmallest(limit, rows.items(), key=lambda item: (-item[1], json.dumps(item[0]))))


def _entry(metrics: Metrics, group: ProcessGroup | None) -> dict[str, Any]:
    computed = metrics.compute(group)
    kept = {name: value for name, value in computed.items() if name.split("/")[-1] in KEPT}
    return {"rows": int(computed["rows"])} | {
        name: value if math.isfinite(value) else None for name, value in kept.items()
    }


def check_sliceable(type_: pa.DataType, column: str) -> pa.DataType:
    """The type of a column's values, if they can be told apart.

    Raises:
        ValueError: it holds lists, structures or bytes.
    """
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    is_bytes = "binary" in str(type_)
    if pa.types.is_nested(type_) or is_bytes or not _has_text(type_):
        raise ValueError(
            f"metrics.slices: column {column} is {type_}; expected one value a row: integers, strings, numbers, "
            "booleans, dates or times"
        )
    return type_


def _has_text(type_: pa.DataType) -> bool:
    """Whether Arrow can write values of the type as text."""
    try:
        pa.array([], type_).cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return True


def values_of(array: pa.Array, column: str) -> pa.Array:
    """A column as integers or strings.

    Raises:
        ValueError: as `check_sliceable`.

    >>> values_of(pa.array([True, None]), "is_new").to_pylist()
    ['true', None]
    """
    type_ = check_sliceable(array.type, column)
    array = array.cast(type_)
    is_plain = pa.types.is_integer(type_) or pa.types.is_string(type_) or pa.types.is_large_string(type_)
    return array if is_plain else array.cast(pa.string())
