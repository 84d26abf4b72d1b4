"""What the footers of many files said, kept in one file, so that the next start reads only those that changed."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.pipeline.files.footers import Footer, Schemas

Stamp = tuple[int | None, str | None]
"""Size in bytes, and the time of change or the entity tag: what tells a file from an earlier one of its name."""
_VERSION = b"1"
_COLUMNS = pa.schema(
    {
        "path": pa.string(),
        "size": pa.int64(),
        "changed": pa.string(),
        "row_groups": pa.list_(pa.int64()),
        "schema": pa.binary(),
    },
    metadata={"version": _VERSION},
)


class Manifest:
    """One Parquet file in a directory of manifests: a row for each data file. A file, so it may be deleted at any time.

    Args:
        directory: of the manifests; made when the first is written.
        paths: what was asked for (paths, globs, directories, URLs): each such list has a manifest of its own.
    """

    def __init__(self, directory: str | os.PathLike[str], paths: Sequence[str]) -> None:
        asked = sorted(path if "://" in path else os.path.abspath(path) for path in paths)
        digest = hashlib.sha256("\n".join(asked).encode()).hexdigest()
        self.path = Path(directory, f"{digest[:32]}.parquet")

    def load(self, schemas: Schemas) -> dict[str, tuple[Stamp, Footer]]:
        """By path, what was kept. One that is damaged counts as empty, and stderr is told."""
        try:
            if not self.path.exists():
                return {}
            table = pq.read_table(self.path, page_checksum_verification=True, read_dictionary=["schema"])
            expected = _COLUMNS.set(4, pa.field("schema", pa.dictionary(pa.int32(), pa.binary())))
            if table.schema != expected or (table.schema.metadata or {}).get(b"version") != _VERSION:
                raise ValueError("it is no manifest of this version")
            columns = table.combine_chunks().to_pydict()
            read = {data: schemas(pa.ipc.read_schema(pa.py_buffer(data))) for data in set(columns["schema"])}
        except (pa.ArrowException, OSError, ValueError) as error:
            _warn(f"{self.path} cannot be used ({_one_line(error)}); all footers are read again")
            return {}
        return {
            path: ((size, changed), Footer(read[schema], tuple(row_groups)))
            for path, size, changed, row_groups, schema in zip(*columns.values(), strict=True)
        }

    def save(self, files: Mapping[str, tuple[Stamp, Footer]]) -> None:
        """Keep these and no others. The file appears whole or not at all; a disk that fails costs a warning."""
        schemas = {id(footer.schema): footer.schema for _, footer in files.values()}
        data = {key: schema.serialize().to_pybytes() for key, schema in schemas.items()}
        columns: dict[str, Iterable[object]] = {
            "path": list(files),
            "size": [size for (size, _), _ in files.values()],
            "changed": [changed for (_, changed), _ in files.values()],
            "row_groups": [footer.row_groups for _, footer in files.values()],
            "schema": [data[id(footer.schema)] for _, footer in files.values()],
        }
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=self.path.parent)
            with open(handle, "wb") as file:
                table = pa.table(columns, schema=_COLUMNS)
                pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            os.replace(temporary, self.path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            _warn(f"{self.path} cannot be written ({_one_line(error)}); footers will be read again at the next start")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
