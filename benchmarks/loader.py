"""Rows a second from Parquet to batches in training order, against pyarrow's iter_batches; and memory as rows grow.

    python -m benchmarks.loader [--rows 1048576] [--batch-size 4096] [--threads 1] [--codec snappy]

Two data sets: integer ids, numbers and lists; and strings to hashed ids. Arrow decodes the same columns of the same
files into record batches of the same size, with as many threads on as many cores, and nothing is done to them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.harness import arguments, interleave, paired_ratio, report
from pipeline.dataset import ParquetDataset
from pipeline.reader import BatchReader
from pipeline.schema import Schema

IDS, NUMBERS, LISTS = 26, 13, 2
FILES = 4
CARDINALITIES = np.geomspace(4, 1_000_000, IDS).astype(int)
LABEL: dict[str, Any] = {"label": {}}
INT_SCHEMA = Schema.model_validate(
    {
        "features": {
            **{f"id{i}": {"kind": "id", "range": int(size), "dim": 16} for i, size in enumerate(CARDINALITIES)},
            **{f"list{i}": {"kind": "id_list", "buckets": 100_000, "dim": 16} for i in range(LISTS)},
            **{f"number{i}": {"kind": "number", "transform": "log1p"} for i in range(NUMBERS)},
        },
        "labels": LABEL,
    }
)
STR_SCHEMA = Schema.model_validate(
    {
        "features": {f"id{i}": {"kind": "id", "buckets": 100_000, "dim": 16} for i in range(IDS)},
        "labels": LABEL,
    }
)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1 << 20)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1, help="of both arms, on as many cores (default %(default)s)")
    parser.add_argument("--codec", default="snappy")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    pa.set_cpu_count(args.threads)
    torch.set_num_threads(args.threads)

    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, schema, write in (("int", INT_SCHEMA, int_columns), ("str", STR_SCHEMA, str_columns)):
            paths = write_files(Path(folder, name), write, args.rows, args.codec)
            read = partial(our_rows, paths, schema, args.batch_size, args.threads)
            arms: dict[str, Callable[[], float]] = {
                "iter_batches": partial(arrow_rows, paths, schema, args.batch_size, args.threads),
                "training order": partial(read, shuffle=True),
                "file order": partial(read, shuffle=False),
            }
            speeds = interleave(arms, args.runs)
            for arm in arms:
                ratio = paired_ratio(speeds[arm], speeds["iter_batches"])
                median = float(np.median(speeds[arm])) / 1e6
                rows.append({"data": name, "arm": arm, "million rows/s": median, "of iter_batches": str(ratio)})
            result[f"ratio_{name}"] = paired_ratio(speeds["training order"], speeds["iter_batches"])
            result[f"ratio_{name}_file_order"] = paired_ratio(speeds["file order"], speeds["iter_batches"])
        result |= memory([str(path) for path in sorted(Path(folder, "int").iterdir())], args, rows)
    title = f"Parquet -> Batch: {args.rows:,} rows, {args.codec}, batches of {args.batch_size}, {args.threads} threads"
    report(title, rows, result, record=args.record)


def arrow_rows(paths: list[str], schema: Schema, batch_size: int, threads: int) -> float:
    """Rows a second of pyarrow alone."""
    rows, start = 0, time.perf_counter()
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size, columns=schema.columns(labels=True), use_threads=threads > 1):
                rows += len(batch)
    return rows / (time.perf_counter() - start)


def our_rows(paths: list[str], schema: Schema, batch_size: int, threads: int, shuffle: bool) -> float:
    """Rows a second of the reader, the opening of the files included."""
    start = time.perf_counter()
    reader = BatchReader(ParquetDataset(paths, schema), batch_size, shuffle=shuffle, threads=threads)
    for _ in reader.epoch():
        pass
    return reader.num_rows / (time.perf_counter() - start)


def memory(paths: list[str], args: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Peak resident memory of a process that reads the files once, and one that reads ten times the rows."""
    links = [f"{path.removesuffix('.parquet')}-{copy}.parquet" for path in paths for copy in range(1, 10)]
    for link in links:
        os.link(f"{link.rpartition('-')[0]}.parquet", link)
    measured = {}
    for times, files in ((1, paths), (10, paths + links)):
        # A process of its own each time: a peak never falls.
        with get_context("spawn").Pool(1) as pool:
            before, peak, first = pool.apply(peak_memory, (files, args.batch_size, args.threads))
        measured[times] = peak
        what = f"{peak:.0f} MB, {peak - before:.0f} above imports, first batch after {first:.2f} s"
        rows.append({"data": "int", "arm": f"memory, {times} x the rows", "of iter_batches": what})
    return {"rss_growth": round(measured[10] / measured[1], 3), "rss_mb": round(measured[10])}


def peak_memory(paths: list[str], batch_size: int, threads: int) -> tuple[float, float, float]:
    """MB before reading, peak MB, and seconds to the first batch."""
    torch.set_num_threads(threads)
    before, start = _status("VmRSS"), time.perf_counter()
    batches = BatchReader(ParquetDataset(paths, INT_SCHEMA), batch_size, threads=threads).epoch()
    next(batches)
    first = time.perf_counter() - start
    for _ in batches:
        pass
    return before, _status("VmHWM"), first


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def write_files(
    folder: Path, columns: Callable[[np.random.Generator, int], dict[str, Any]], rows: int, codec: str
) -> list[str]:
    folder.mkdir()
    paths = []
    for number in range(FILES):
        table = pa.table(columns(np.random.default_rng(number), rows // FILES))
        paths.append(str(folder / f"part-{number}.parquet"))
        pq.write_table(table, paths[-1], row_group_size=1 << 17, compression=codec)
    return paths


def int_columns(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    columns: dict[str, Any] = {f"id{i}": skewed(rng, size, rows) for i, size in enumerate(CARDINALITIES)}
    for i in range(LISTS):
        offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 11, rows))]).astype(np.int32)
        columns[f"list{i}"] = pa.ListArray.from_arrays(offsets, skewed(rng, 1_000_000, int(offsets[-1])))
    columns |= {f"number{i}": rng.exponential(10, rows).astype(np.float32) for i in range(NUMBERS)}
    return columns | labels(rng, rows)


def str_columns(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    def tokens(ids: np.ndarray) -> pa.Array:
        distinct, index = np.unique(ids, return_inverse=True)
        return pa.array([f"{number * 2654435761 % 2**32:08x}" for number in distinct.tolist()]).take(pa.array(index))

    return {f"id{i}": tokens(skewed(rng, size, rows)) for i, size in enumerate(CARDINALITIES)} | labels(rng, rows)


def labels(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    return {"label": (rng.random(rows) < 0.2).astype(np.int8)}


def skewed(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Ids below `size`, small ones more often, as in logs."""
    return (size * rng.random(count) ** 3).astype(np.int64)


if __name__ == "__main__":
    main()
