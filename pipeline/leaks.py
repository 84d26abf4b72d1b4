"""Columns that tell the label in every row: codes of the label itself, most likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.column_facts import Batches, Column
from pipeline.labels import as_labels

FEW = 50  # values of a column that is looked at
ROWS = 100  # with fewer, chance may do it


def tell_the_label(batches: Batches, columns: Mapping[str, Column], labels: Sequence[str]) -> dict[str, str]:
    """Column of few values -> the label that is always the same where its value is; in one more pass over the rows.

    Args:
        labels: columns of 0 and 1.
    """
    few = [
        name
        for name, column in columns.items()
        if column.is_counted and not column.is_list and 1 < column.distinct <= FEW and column.known >= ROWS
    ]
    pairs = [(name, label) for name in few for label in labels]
    means: dict[tuple[str, str], dict[object, int]] = {pair: {} for pair in pairs}
    for batch in batches([*few, *labels]) if pairs else ():
        ones = {label: as_labels(batch[label]) for label in labels}
        for name, label in list(means):
            seen = pa.table({"value": batch[name], "label": ones[label]}).group_by(["value", "label"]).aggregate([])
            known = means[name, label]
            for value, one in zip(seen["value"].to_pylist(), seen["label"].to_pylist(), strict=True):
                if known.setdefault(value, one) != one:
                    del means[name, label]
                    break
    return {name: label for name, label in means if len(set(means[name, label].values())) > 1}
