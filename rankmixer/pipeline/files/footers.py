"""Footers of Parquet files: what is kept of all, and the whole ones that are held for a while."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

FOOTER_BYTES = 1 << 22  # of footers as files have them; parsed they take ten times as much


class Footer(NamedTuple):
    """What is kept of a footer: the Arrow schema, and the rows of each row group."""

    schema: pa.Schema
    row_groups: tuple[int, ...]

    @classmethod
    def of(cls, file: pq.ParquetFile) -> Footer:
        # Not by metadata.schema: the two refer to each other, and 84 KB a footer would wait for the garbage collector.
        metadata = file.metadata
        rows = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        return cls(file.schema_arrow, rows)


class Schemas:
    """One object for equal schemas, so that ten thousand files share one.

    >>> schemas = Schemas()
    >>> schemas(pa.schema({"a": pa.int8()})) is schemas(pa.schema({"a": pa.int8()}))
    True
    """

    def __init__(self) -> None:
        self._known: dict[bytes, pa.Schema] = {}

    def __call__(self, schema: pa.Schema) -> pa.Schema:
        plain = schema.remove_metadata()
        return self._known.setdefault(plain.serialize().to_pybytes(), plain)


class Footers:
    """Parsed footers of the files used last, for all threads; the others are read again when they are needed."""

    def __init__(self, limit: int = FOOTER_BYTES) -> None:
        self._limit = limit
        self._held: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, path: str) -> pq.FileMetaData | None:
        with self._lock:
            if path in self._held:
                self._held.move_to_end(path)
            return self._held.get(path)

    def put(self, path: str, metadata: pq.FileMetaData) -> None:
        with self._lock:
            if path not in self._held:
                self._held[path] = metadata
                self._bytes += metadata.serialized_size
            while self._bytes > self._limit and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].serialized_size
