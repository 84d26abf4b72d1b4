"""Memory of a process that reads, and its time to the first batch; each in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import psutil
import pyarrow as pa
import torch

from rankmixer.launch.ranks.distributed import keep_freed_memory
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema

SAMPLE_SECONDS = 0.02


class Start(NamedTuple):
    """Seconds to the first batch after the imports, and peak MB (PSS of the process tree) above them."""

    first_batch_s: float
    peak_mb: float


def use_cores(cores: int) -> None:
    """Bind this process to so many cores, with as many threads, and memory kept as in a job."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    pa.set_cpu_count(cores)
    torch.set_num_threads(cores)
    keep_freed_memory()


def read_in_a_process(
    paths: str | Sequence[str], schema: Schema, batch_size: int, cores: int, *, steps: int | None, manifests: str | None
) -> Start:
    """Read an epoch in training order (or its first steps) in a new process that is watched from here."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_read, args=(there, paths, schema, batch_size, cores, steps, manifests))
    process.start()
    there.close()
    assert process.pid is not None
    try:
        here.recv()  # imports are done
        imports = peak = _pss_mb(process.pid)
        here.send("go")
        while not here.poll(SAMPLE_SECONDS):
            peak = max(peak, _pss_mb(process.pid))
        first = here.recv()
    finally:
        process.join()
    return Start(first, peak - imports)


def _read(
    pipe: Connection,
    paths: str | Sequence[str],
    schema: Schema,
    batch_size: int,
    cores: int,
    steps: int | None,
    manifests: str | None,
) -> None:
    use_cores(cores)
    pipe.send("imported")
    pipe.recv()
    start = time.perf_counter()
    reader = BatchReader(ParquetDataset(paths, schema, manifests=manifests), batch_size, threads=cores)
    batches = reader.epoch(steps=steps)
    next(batches)
    first = time.perf_counter() - start
    for _ in batches:
        pass
    pipe.send(first)


def _pss_mb(pid: int) -> float:
    """Memory of a process and all it has started, what they share counted once."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(OSError):
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6
