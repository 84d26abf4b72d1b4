"""CSV files as Parquet, with a proposal for their feature schema and configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from rankmixer.pipeline.csv.column_doubt import doubt
from rankmixer.pipeline.csv.dialect import CsvOptions
from rankmixer.pipeline.csv.source import CsvSource
from rankmixer.pipeline.sources.import_table import import_table


class _Rows:
    """The rows of CSV files as import_table wants them."""

    command = "data csv"
    files: Sequence[str] = ()

    def __init__(self, source: CsvSource) -> None:
        if len(source.profiles) == 1:
            raise ValueError(
                f"{source.name}: found one column, {next(iter(source.profiles))[:60]!r}; which character separates the "
                "values? Say --delimiter"
            )
        self._source = source
        self.name = source.name
        self.schema = source.schema
        self.left_out: Mapping[str, str] = {}
        self.hints = source.report()
        self.asked = [name for name, profile in source.profiles.items() if doubt(profile) is not None]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in self._source.batches(columns):
            rows += len(batch)
            yield batch
        if rows != self._source.rows:
            raise ValueError(f"{self.name}: {self._source.rows:,} rows were read and {rows:,} written; a fault of ours")


def import_csv(
    files: str | Sequence[str],
    out: str,
    *,
    labels: Sequence[str] = (),
    positive: Sequence[str] = (),
    time: str | None = None,
    options: CsvOptions | None = None,
) -> None:
    """Write all columns of CSV files as Parquet, and proposals: import_table.py says what.

    The files are read once, into a temporary file inside `out`, in blocks: memory does not grow with them. csv_file.py
    says what a CSV may look like.

    Args:
        files: paths, globs, directories or URLs; several are one table, and have the same header.
        options: how the files are to be read, where it cannot be found out.

    Raises:
        ValueError: the files cannot be read (csv_file.py); and as import_table.
    """
    import_table(
        lambda scratch: _Rows(CsvSource(files, scratch, options)), out, labels=labels, positive=positive, time=time
    )
