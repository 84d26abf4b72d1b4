"""Columns that tell the label in every row: codes of the label itself, most likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.column_facts import Batches, Column
from pipeline.labels import as_labels

FEW = 50  # values of a column that is looked at
ROWS = 100  # with fewer, chance may do it


def tell_the_label(batches: Batches, columns: Mapping[str, Column], labels: Sequence[str]) -> dict[str, str]:
    """Column -> the label that is always the same where its value is; in one more pass over the rows.

    Of a column of many values it is looked at whether a row is empty or 0: an order has a time only where one bought.

    Args:
        labels: columns of 0 and 1.
    """
    few = [
        name
        for name, column in columns.items()
        if column.is_counted and not column.is_list and 1 < column.distinct <= FEW and column.known >= ROWS
    ]
    others = [
        name
        for name, column in columns.items()
        if name not in few and column.rows >= ROWS and (column.nulls or column.is_integer or column.is_float)
    ]
    pairs = [(name, label) for name in [*few, *others] for label in labels]
    means: dict[tuple[str, str], dict[object, int]] = {pair: {} for pair in pairs}
    for batch in batches([*few, *others, *labels]) if pairs else ():
        ones = {label: as_labels(batch[label]) for label in labels}
        for name, label in list(means):
            values = batch[name] if name in few else _is_blank(batch[name])
            seen = pa.table({"value": values, "label": ones[label]}).group_by(["value", "label"]).aggregate([])
            known = means[name, label]
            for value, one in zip(seen["value"].to_pylist(), seen["label"].to_pylist(), strict=True):
                if known.setdefault(value, one) != one:
                    del means[name, label]
                    break
    return {name: label for name, label in means if len(set(means[name, label].values())) > 1}


def _is_blank(array: pa.Array) -> pa.Array:
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return pc.equal(array, pa.scalar(0, array.type)).fill_null(True)
    return array.is_null()
