"""The rows that benchmarks.fuzz_data damages, as files of several shapes, and what a plain reading of them gives."""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from rankmixer.pipeline.schema.features import Id, IdList, Number
from rankmixer.pipeline.schema.schema import Schema

ROWS = 60
CITIES = ("Rome", "Oslo", "Ulm", "São Paulo")
FEATURES: dict[str, dict[str, Any]] = {
    "user": {"kind": "id", "range": 500, "dim": 4},
    "shop": {"kind": "id", "range": 40, "dim": 4, "on_bad": "drop"},
    "item": {"kind": "id", "buckets": 97, "dim": 4},
    "city": {"kind": "id", "vocabulary": "city.txt", "dim": 4},
    "seen": {"kind": "id_list", "range": 300, "dim": 4, "on_bad": "reserve", "weights": "seen_weights"},
    "tags": {"kind": "id_list", "buckets": 64, "dim": 4},
    "genres": {"kind": "id_list", "buckets": 64, "separator": "|", "dim": 4},
    "age": {"kind": "number", "boundaries": [18, 35], "dim": 4, "default": 20},
    "price": {"kind": "number", "transform": "log1p", "default": 0},
    "score": {"kind": "number"},
}
TREE = {"features": FEATURES, "labels": {"click": {}, "rate": {}}, "weight": "importance"}


class Row(NamedTuple):
    """What the schema makes of a row: (id, its weight) by feature, numbers, labels, the example's weight."""

    ids: dict[str, list[tuple[int, float]]]
    dense: list[float]
    labels: list[float]
    weight: float


def schema(folder: Path) -> Schema:
    """The schema of all shapes; writes its vocabulary into `folder`."""
    (folder / "city.txt").write_text("\n".join(CITIES) + "\n", encoding="utf-8")
    return Schema.model_validate(TREE, context={"folder": str(folder)})


def table(seed: int = 0, rows: int = ROWS) -> pa.Table:
    """Rows with every kind of feature, nulls where a policy mends them, ids out of range where one allows them."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 4, rows)
    seen = [random.integers(0, 310, length).tolist() for length in lengths]

    def sometimes_null(values: list[Any]) -> list[Any]:
        return [None if random.random() < 0.1 else value for value in values]

    return pa.table(
        {
            "user": pa.array(random.integers(0, 500, rows), pa.int64()),
            "shop": pa.array(sometimes_null(random.integers(0, 42, rows).tolist()), pa.int32()),
            "item": pa.array(sometimes_null([f"item-{number}" for number in random.integers(0, 30, rows)])),
            "city": pa.array([(*CITIES, "Bonn")[number] for number in random.integers(0, 5, rows)]),
            "seen": pa.array(seen, pa.list_(pa.int32())),
            "seen_weights": pa.array([[value / 300 for value in row] for row in seen], pa.list_(pa.float32())),
            "tags": pa.array(sometimes_null([[f"tag-{value % 9}" for value in row] for row in seen])),
            "genres": pa.array(sometimes_null(["|".join(f"g{value % 7}" for value in row) for row in seen])),
            "age": pa.array(sometimes_null(random.integers(10, 80, rows).tolist()), pa.int16()),
            "price": pa.array(sometimes_null(random.lognormal(2, 1, rows).tolist()), pa.float64()),
            "score": pa.array(random.normal(size=rows), pa.float32()),
            "click": pa.array(random.integers(0, 2, rows), pa.int8()),
            "rate": pa.array(random.random(rows), pa.float64()),
            "importance": pa.array(random.integers(0, 3, rows), pa.float32()),
            "unused": pa.array([f"unused {number}" for number in range(rows)]),
        }
    )


def _wide(rows: pa.Table) -> pa.Table:
    """The same values in other types."""
    types = {
        "user": pa.uint64(),
        "item": pa.large_string(),
        "seen": pa.large_list(pa.int64()),
        "city": pa.dictionary(pa.int32(), pa.string()),
        "price": pa.decimal128(30, 12),
        "click": pa.bool_(),
    }
    prices = [None if price is None else decimal.Decimal(f"{price:.6f}") for price in rows["price"].to_pylist()]
    rows = rows.set_column(rows.column_names.index("price"), "price", pa.array(prices, types["price"]))
    for name, type_ in types.items():
        rows = rows.set_column(rows.column_names.index(name), name, rows[name].cast(type_))
    return rows


class Shape(NamedTuple):
    """A way to write the rows. Only with `checksums` do pages carry a CRC32 that a reader can compare."""

    name: str
    checksums: bool
    options: dict[str, Any]
    convert: Callable[[pa.Table], pa.Table] = lambda rows: rows

    def write(self, rows: pa.Table, path: Path) -> None:
        options = {"row_group_size": 25, **self.options}
        pq.write_table(rows, path, write_page_checksum=self.checksums, **options)


_DELTA = {"user": "DELTA_BINARY_PACKED", "item": "DELTA_BYTE_ARRAY", "score": "BYTE_STREAM_SPLIT"}
SHAPES = (
    Shape("plain", True, {"compression": "none", "use_dictionary": False}),
    Shape("dictionaries, snappy", True, {"compression": "snappy"}),
    Shape("v2 pages, zstd", True, {"compression": "zstd", "data_page_version": "2.0", "data_page_size": 64}),
    Shape("other types, gzip", True, {"compression": "gzip"}, _wide),
    Shape("plain, no checksums", False, {"compression": "none", "use_dictionary": False}),
    Shape("dictionaries, no checksums", False, {"compression": "lz4", "row_group_size": 60}),
    Shape("deltas, no checksums", False, {"compression": "none", "use_dictionary": False, "column_encoding": _DELTA}),
    Shape("other types, no checksums", False, {"compression": "none", "row_group_size": 7}, _wide),
)


def page_chunks(path: Path, data: bytes) -> list[tuple[int, int]]:
    """Where column chunks lie in a file, as (start, stop): pages with their headers."""
    path.write_bytes(data)
    spans = []
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            offsets = (chunk.dictionary_page_offset, chunk.data_page_offset)
            start = min(offset for offset in offsets if offset is not None)
            spans.append((start, start + chunk.total_compressed_size))
    return spans


def plainly_read(path: Path, schema: Schema) -> list[Row]:
    """The rows as the schema's documentation reads, in Python, from what Arrow reads: slow, and sharing no code.

    Raises:
        ValueError: a value that no policy mends.
    """
    columns = schema.columns(labels=True)
    read = pq.ParquetFile(path, page_checksum_verification=True).read(columns, use_threads=False)
    return [_row(schema, values) for values in _values(read)]


def _values(read: pa.Table) -> Iterator[dict[str, Any]]:
    columns = {name: read[name].to_pylist() for name in read.column_names}
    for number in range(len(read)):
        yield {name: values[number] for name, values in columns.items()}


def _row(schema: Schema, values: dict[str, Any]) -> Row:
    ids: dict[str, list[tuple[int, float]]] = {}
    dropped = False
    for name in schema.sparse_features:
        feature = schema.features[name]
        assert isinstance(feature, Id | IdList | Number)
        value = values[feature.column]
        if isinstance(feature, Number):
            assert feature.boundaries is not None
            number = _number(feature, value)
            ids[name] = [(sum(number >= boundary for boundary in feature.boundaries), 1.0)]
            continue
        parts = [value] if isinstance(feature, Id) else value
        if isinstance(feature, IdList) and feature.separator is not None and value is not None:
            text = value.decode() if isinstance(value, bytes) else value
            parts = [part for part in text.split(feature.separator) if part]
        parts = [None if part != part else part for part in parts or ()]  # NaN is null
        own = [1.0] * len(parts)
        if isinstance(feature, IdList) and feature.weights is not None:
            own = values[feature.weights] or []
            if len(own) != len(parts):
                raise ValueError("another number of weights")
        found = [(_id(feature, part), weight) for part, weight in zip(parts, own, strict=True) if part is not None]
        if any(weight is None or not math.isfinite(weight) for _, weight in found):
            raise ValueError("an impossible weight")
        dropped |= any(number is None for number, _ in found)
        ids[name] = [(number, float(weight)) for number, weight in found if number is not None]
    dense = [
        _dense(feature, values)
        for name in schema.dense_features
        if isinstance(feature := schema.features[name], Number)
    ]
    labels = [float(np.float32(values[label.column])) for label in schema.labels.values()]
    weight = float(values[schema.weight or ""])
    if not all(0 <= label <= 1 for label in labels) or not 0 <= weight < math.inf:
        raise ValueError("an impossible label or weight")
    return Row({name: [] for name in ids}, dense, labels, 0.0) if dropped else Row(ids, dense, labels, weight)


def _id(feature: Id | IdList, value: Any) -> int | None:
    """The id of a value; None drops the row."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, float | decimal.Decimal):
        largest = 2**53 - 1 if isinstance(value, float) else 2**63 - 1
        is_whole = math.isfinite(value) and value == int(value)
        value = int(value) if is_whole and abs(int(value)) <= largest else None
    if value is None and feature.buckets is not None:
        raise ValueError("no whole number")
    if feature.buckets is not None:
        data = value.encode() if isinstance(value, str) else int(value).to_bytes(8, "little", signed=value < 1 << 63)
        return xxhash.xxh64_intdigest(data, feature.seed) % feature.buckets
    if feature.vocabulary is not None:
        if value in feature.words:
            return feature.words.index(value)
    elif feature.range is not None and value is not None and 0 <= int(value) < feature.range:
        return int(value)
    if feature.bad_policy == "fail":
        raise ValueError("an impossible id")
    return feature.rows - 1 if feature.bad_policy == "reserve" else None


def _number(feature: Number, value: Any) -> float:
    number = math.nan if value is None else float(value)
    if math.isnan(number) and feature.default is not None:
        number = float(feature.default)
    if not math.isfinite(number):
        raise ValueError("an impossible number")
    return number


def _dense(feature: Number, values: dict[str, Any]) -> float:
    number = _number(feature, values[feature.column])
    return math.log1p(number) if feature.transform == "log1p" else number
