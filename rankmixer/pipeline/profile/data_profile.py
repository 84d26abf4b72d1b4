"""What Parquet files hold, as a schema reads them: one pass, in memory that does not grow with rows or ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from rankmixer.pipeline.encode.rows import Place
from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.profile.id_counts import CAPACITY, IdCounts
from rankmixer.pipeline.profile.id_profile import IdProfile, Watch, wide
from rankmixer.pipeline.profile.number_profile import LabelProfile, NumberProfile, sampled_rows
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.schema.features import Ids, Number
from rankmixer.pipeline.schema.schema import Schema
from rankmixer.pipeline.schema.table_size import suggest_buckets, suggest_dim

PIECE_ROWS = 131_072


class DataProfile:
    """Profiles of all columns that a schema names, filled by `read`.

    Args:
        files: what to read.
        schema: how to read it.

    Raises:
        ValueError: no rows.
        DataError: a column is missing or has the wrong type; only footers are read to find out.
    """

    def __init__(self, files: ParquetFiles, schema: Schema) -> None:
        features = {name: wide(f) if isinstance(f, Ids) else f for name, f in schema.features.items()}
        self._dataset = ParquetDataset(files, schema.model_copy(update={"features": features}))
        self.schema, self.files = schema, files
        self.rows = files.num_rows
        self.ids = {
            name: IdProfile(feature, self._dataset.encoders[name])
            for name, feature in schema.features.items()
            if isinstance(feature, Ids)
        }
        self.numbers = {
            name: NumberProfile(feature.column, feature, self.rows, name in schema.to_learn)
            for name, feature in schema.features.items()
            if isinstance(feature, Number)
        }
        paths = [file.path for file in files.files]
        self.labels = {name: LabelProfile(label.column, paths) for name, label in schema.labels.items()}
        self.weight = NumberProfile(schema.weight, None, self.rows) if schema.weight is not None else None

    def read(self, other: DataProfile | None = None, progress: Callable[[int], object] | None = None) -> DataProfile:
        """Read all files once.

        Args:
            other: a profile of other files that has been read; its ids are looked out for, which `drift` needs.
            progress: is told how many rows are done.

        Raises:
            DataError: a row group that cannot be decoded. Values that training would refuse are counted.
        """
        if other is not None:
            for name, ids in self.ids.items():
                heavy, light, _ = other.ids[name].counts.strata()
                ids.watch = Watch([heavy.keys, light.keys])
        done = 0
        for group in self.files.row_groups:
            file, first_row = self.files.files[group.file], group.first_row
            for piece in self._dataset.decoder.stream(file, group.index, PIECE_ROWS):
                place = Place(file.path, group.index, first_row, len(piece))
                self._update(piece, place, group.file, done)
                first_row += len(piece)
                done += len(piece)
                if progress is not None:
                    progress(done)
        return self

    def _update(self, piece: pa.RecordBatch, place: Place, file: int, done: int) -> None:
        sampled_N = sampled_rows(done, len(piece), self.rows)
        for ids in self.ids.values():
            ids.update(piece[ids.column], place)
        for number in [*self.numbers.values(), *([self.weight] if self.weight is not None else [])]:
            number.update(piece[number.column], place, sampled_N)
        for label in self.labels.values():
            label.update(piece[label.column], place, file)

    def table_counts(self, table: str) -> IdCounts:
        """Counts of the ids of all features of a table."""
        features = [self.ids[name] for name in self.schema.tables[table].features]
        counts = IdCounts(features[0].counts.space)
        for feature in features:
            counts.add(feature.counts)
        return counts

    def to_json(self) -> dict[str, Any]:
        """The profile; docs/data.md explains the keys."""
        tables = {name: table for name, table in self.schema.tables.items() if table.features[0] in self.ids}
        return {
            "rows": self.rows,
            "files": len(self.files.files),
            "row_groups": len(self.files.row_groups),
            "exact_up_to": CAPACITY,
            "ids": {name: ids.to_json() for name, ids in self.ids.items()},
            "tables": {name: self._table(name) for name in tables},
            "numbers": {name: number.to_json() for name, number in self.numbers.items()},
            "labels": {name: label.to_json() for name, label in self.labels.items()},
            "weight": self.weight and self.weight.to_json(),
        }

    def _table(self, name: str) -> dict[str, Any]:
        table, counts = self.schema.tables[name], self.table_counts(name)
        distinct = round(counts.distinct)
        collisions = None
        if counts.space.buckets is not None:
            ids, lookups, error = counts.colliding() or (None, None, None)
            collisions = {
                "expected": sharing(distinct, counts.space.buckets),
                "ids": ids,
                "lookups": lookups,
                "lookups_error": error,
            }
        buckets = suggest_buckets(distinct)
        return {
            "features": table.features,
            "rows": table.rows,
            "dim": table.dim,
            "distinct": distinct,
            "distinct_error": counts.distinct_error,
            "collisions": collisions,
            "suggested": {"buckets": buckets, "expected": sharing(distinct, buckets), "dim": suggest_dim(distinct)},
        }


def sharing(distinct: int, buckets: int) -> float:
    """The expected share of ids that share their bucket with another, and so of lookups.

    >>> [round(sharing(1000, buckets), 3) for buckets in (1000, 4000, 100_000)]
    [0.632, 0.221, 0.01]
    """
    return (
        -math.expm1((distinct - 1) * math.log1p(-1 / buckets)) if distinct > 1 and buckets > 1 else float(distinct > 1)
    )
