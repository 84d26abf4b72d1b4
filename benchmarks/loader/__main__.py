"""Rows a second from Parquet to batches, against pyarrow's iter_batches; memory as rows grow; a start with many files.

    python -m benchmarks.loader [--rows 10000000] [--batch-size 4096] [--codec snappy] [--data FILE.parquet] [--record]

Two data sets: integer ids, numbers and lists; and strings to hashed ids; with `--data` also MovieLens rows in one file.
Arrow decodes the same columns of the same files into record batches of the same size, with as many threads on as many
cores, and nothing is done to them. A ratio is of file order; what training order costs stands beside it. One and two
cores are child processes bound to them. Files are in the cache of the operating system. At full size 2.7 GB of
temporary files (TMPDIR says where), and about ten minutes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from benchmarks.harness import arguments, interleave, paired_ratio, report
from benchmarks.loader.data import FILES, INT_SCHEMA, STR_SCHEMA, int_columns, str_columns, write_files, write_many
from benchmarks.loader.start import read_in_a_process, use_cores
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema

CORES = (1, 2)
FEW_STEPS = 4


class Speeds(NamedTuple):
    """By arm: rows a second of each run, and CPU seconds for a million rows."""

    rate: dict[str, list[float]]
    cpu: dict[str, list[float]]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--codec", default="snappy")
    parser.add_argument("--data", help="a Parquet file of MovieLens rows, for configs/movielens.schema.yaml")
    args = parser.parse_args()
    cores = [count for count in CORES if count <= len(os.sched_getaffinity(0))]

    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"rows": args.rows}
    with tempfile.TemporaryDirectory() as folder:
        sets: dict[str, tuple[Sequence[str], Schema]] = {}
        for name, schema, columns in (("int", INT_SCHEMA, int_columns), ("str", STR_SCHEMA, str_columns)):
            sets[name] = write_files(Path(folder, name), columns, args.rows, args.codec, cores[-1]), schema
        if args.data:
            sets["data"] = [args.data], Schema.load("configs/movielens.schema.yaml")
        for name, (paths, schema) in sets.items():
            for count in cores:
                # A process of its own: threads and affinity are decided once in a process.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    speeds = pool.submit(measure, paths, schema, args.batch_size, count, args.runs).result()
                key = f"ratio_{name}" + (f"_{count}" if count > 1 else "")
                result |= ratios(key, speeds)
                rows += table(name, count, speeds)
        further = starts(sets["int"][0], Path(folder), args.batch_size, args.codec, cores[-1], result)
    title = f"Parquet -> Batch: {args.rows:,} rows, {args.codec}, batches of {args.batch_size}"
    report(title, rows, result, record=args.record, further={"Memory and start, in training order": further})


def measure(paths: Sequence[str], schema: Schema, batch_size: int, cores: int, runs: int) -> Speeds:
    """All arms in turn, on so many cores."""
    use_cores(cores)
    cpu: dict[str, list[float]] = {}

    def timed(arm: str, read: Callable[[], int]) -> float:
        start, cpu_start = time.perf_counter(), time.process_time()
        count = read()
        cpu.setdefault(arm, []).append((time.process_time() - cpu_start) / count * 1e6)
        return count / (time.perf_counter() - start)

    ours = partial(our_rows, paths, schema, batch_size, cores)
    arms: dict[str, Callable[[], int]] = {
        "iter_batches": partial(arrow_rows, paths, schema, batch_size, cores),
        "file order": partial(ours, shuffle=False),
        "training order": partial(ours, shuffle=True),
    }
    rate = interleave({arm: partial(timed, arm, read) for arm, read in arms.items()}, runs)
    return Speeds(rate, {arm: seconds[1:] for arm, seconds in cpu.items()})  # without the round that warms up


def arrow_rows(paths: Sequence[str], schema: Schema, batch_size: int, threads: int) -> int:
    """Read all with pyarrow alone."""
    rows = 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size, columns=schema.columns(labels=True), use_threads=threads > 1):
                rows += len(batch)
    return rows


def our_rows(paths: Sequence[str], schema: Schema, batch_size: int, threads: int, shuffle: bool) -> int:
    """Read all with the reader, the opening of the files included."""
    reader = BatchReader(ParquetDataset(paths, schema), batch_size, shuffle=shuffle, threads=threads)
    for _ in reader.epoch():
        pass
    return reader.num_rows


def ratios(key: str, speeds: Speeds) -> dict[str, Any]:
    base = speeds.rate["iter_batches"]
    return {
        key: paired_ratio(speeds.rate["file order"], base),
        f"{key}_shuffled": paired_ratio(speeds.rate["training order"], base),
    }


def table(name: str, cores: int, speeds: Speeds) -> list[dict[str, Any]]:
    return [
        {
            "data": name,
            "cores": cores,
            "arm": arm,
            "million rows/s": float(np.median(rate)) / 1e6,
            "of iter_batches": str(paired_ratio(rate, speeds.rate["iter_batches"])),
            "CPU s a million": float(np.median(speeds.cpu[arm])),
            "by CPU time": str(paired_ratio(speeds.cpu["iter_batches"], speeds.cpu[arm])),
        }
        for arm, rate in speeds.rate.items()
    ]


def starts(
    paths: Sequence[str], folder: Path, batch_size: int, codec: str, cores: int, result: dict[str, Any]
) -> list[dict[str, Any]]:
    """Memory for a tenth of the rows and for all; the first batch of 10,000 files without a manifest and with one."""
    write_many(folder / "many", codec)
    manifests = str(folder / "manifests")
    read = partial(read_in_a_process, schema=INT_SCHEMA, batch_size=batch_size, cores=cores)
    arms = {
        "a tenth of the rows": read(paths[: FILES // 10], steps=None, manifests=None),
        "all rows": read(paths, steps=None, manifests=None),
        "10,000 files, no manifest": read(str(folder / "many"), steps=FEW_STEPS, manifests=manifests),
        "10,000 files, manifest": read(str(folder / "many"), steps=FEW_STEPS, manifests=manifests),
    }
    tenth, all_rows, cold, cached = arms.values()
    result["rss_mb"] = round(all_rows.peak_mb)
    result["rss_growth"] = round(all_rows.peak_mb / tenth.peak_mb, 3)
    result["first_batch_s"] = round(cached.first_batch_s, 3)
    result["first_batch_cold_s"] = round(cold.first_batch_s, 3)
    return [
        {"what": what, "cores": cores, "first batch, s": start.first_batch_s, "peak MB above imports": start.peak_mb}
        for what, start in arms.items()
    ]


if __name__ == "__main__":
    main()
