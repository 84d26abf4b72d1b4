"""Columns that tell the label in every row: its codes, or a revenue that is there only with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.propose.column_facts import Batches, Column
from rankmixer.pipeline.propose.labels import as_labels

FEW = 50  # values of a column that is looked at
ROWS = 100  # with fewer, chance may do it


def tell_the_label(batches: Batches, columns: Mapping[str, Column], labels: Sequence[str]) -> dict[str, str]:
    """Column -> the label that is always the same where its value is; in one more pass over the rows.

    Of a column with many values it is looked at whether a row has one, and of numbers which sign.

    Args:
        labels: columns of 0 and 1.
    """
    few = [
        name
        for name, column in columns.items()
        if column.is_counted and not column.is_list and 1 < column.distinct <= FEW and column.known >= ROWS
    ]
    coarse = [name for name, column in columns.items() if name not in few and _differs_coarsely(column)]
    pairs = [(name, label) for name in [*few, *coarse] for label in labels]
    means: dict[tuple[str, str], dict[object, int]] = {pair: {} for pair in pairs}
    for batch in batches([*few, *coarse, *labels]) if pairs else ():
        ones = {label: as_labels(batch[label]) for label in labels}
        for name, label in list(means):
            value_N = _coarse(batch[name]) if name in coarse else batch[name]
            seen = pa.table({"value": value_N, "label": ones[label]}).group_by(["value", "label"]).aggregate([])
            known = means[name, label]
            for value, one in zip(seen["value"].to_pylist(), seen["label"].to_pylist(), strict=True):
                if known.setdefault(value, one) != one:
                    del means[name, label]
                    break
    return {name: label for name, label in means if len(set(means[name, label].values())) > 1}


def _differs_coarsely(column: Column) -> bool:
    is_number = column.is_float or column.is_integer
    has_signs = is_number and not column.is_time and column.moments.least <= 0 < column.moments.most
    return column.known >= ROWS and (column.nulls > 0 or has_signs)


def _coarse(value_N: pa.Array) -> pa.Array:
    """Signs of numbers, empty where these are; of anything else whether it is empty."""
    kind = value_N.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pc.sign(value_N)
    return pc.is_null(value_N)
