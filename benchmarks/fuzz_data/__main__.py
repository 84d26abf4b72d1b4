"""Damages real Parquet files and reads them: never a hang, a crash, a traceback or a silent wrong number.

    python -m benchmarks.fuzz_data [--cases 5000] [--seed 0] [--only 17,4711]

A case damages one of two files (its bytes, pages, footer or columns; mutations.py) and reads both as
training does, in a child process with a limit on time and memory. What was accepted is compared with a second, slow
reading that shares no code (shapes.py). A case is

    refused       one error that names the file; with `on_bad_file: skip` the other file is then read whole
    mended        read, with higher counts of what the schema's policies mended
    harmless      read, with the values that the file states
    undetectable  read; bytes were changed that no checksum of the format covers, and with them values
    failure       anything else: a hang, a crash, a traceback, an error that does not name the file, values that differ
                  from the second reading's, or from the original's although checksums cover every byte that was changed
"""

from __future__ import annotations

import faulthandler
import multiprocessing as mp
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.fuzz_data.mutations import BYTES, COLUMNS, WHOLE, Random, page_bodies
from benchmarks.fuzz_data.shapes import SHAPES, Row, Shape, page_chunks, plainly_read, schema, table
from benchmarks.harness import arguments, report
from rankmixer.launch.ranks.errors import is_user_error
from rankmixer.pipeline.files.files import OnBadFile
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.order import permutation, windows
from rankmixer.pipeline.read.reader import BatchReader

SECONDS = 20.0  # a case takes a few hundredths
BYTES_MORE = 2 << 30  # address space that reading may add
WINDOW_ROWS, BATCH_SIZE = 20, 16
VERDICTS = ("mended", "refused", "harmless", "undetectable", "failure")


class Outcome(NamedTuple):
    """What became of a case."""

    case: int
    shape: str
    damage: str
    verdict: str
    detail: str


class Fuzzer:
    """Runs cases in a folder of its own; case `n` of a seed is always the same."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._schema = schema(folder)
        self._good, self._bad = folder / "a-good.parquet", folder / "b-bad.parquet"
        SHAPES[1].write(table(1), self._good)
        self._good_rows = plainly_read(self._good, self._schema)
        self._shape = cache(self._written)

    def _written(self, number: int) -> tuple[bytes, list[Row], Counter[str]]:
        """A shape's file, its rows, and what is mended in it and the good file."""
        shape = SHAPES[number]
        shape.write(shape.convert(table()), self._bad)
        rows = plainly_read(self._bad, self._schema)
        read, mended = self._read(shuffle=False)
        assert same(read, self._good_rows + rows), f"{shape.name}: read otherwise than plainly"
        return self._bad.read_bytes(), rows, mended

    def run(self, case: int) -> Outcome:
        """Damage a file and read it; raises nothing."""
        random = np.random.default_rng([self._seed, case])
        shape = SHAPES[case % len(SHAPES)]
        before, rows, mended = self._shape(case % len(SHAPES))
        damage, covered = self._damage(shape, before, random)

        def outcome(verdict: str, detail: str = "") -> Outcome:
            return Outcome(case, shape.name, damage, verdict, detail)

        shuffle = bool(random.random() < 0.5)
        try:
            read, news = self._read(shuffle)
        except Exception as error:
            complaint = self._complaint(error, damage) or self._skip_complaint(error, damage, shuffle)
            return outcome("failure", complaint) if complaint else outcome("refused", str(error))
        try:
            stated = plainly_read(self._bad, self._schema)
        except Exception as error:
            return outcome("failure", f"silent: accepted, but plainly read: {type(error).__name__}: {error}")
        if not same(read, self._good_rows + stated):
            return outcome("failure", "silent: other values than the file states")
        is_changed = not damage.startswith("column") and not same(stated, rows)
        if is_changed and covered:
            return outcome("failure", "silent: checksums cover what was changed")
        if news - mended:
            return outcome("mended", str(dict(news - mended)))
        return outcome("undetectable" if is_changed else "harmless")

    def _damage(self, shape: Shape, before: bytes, random: Random) -> tuple[str, bool]:
        """Write the damaged file; what was done, and whether checksums cover every byte of it."""
        if random.random() < 0.4:
            name = list(COLUMNS)[random.integers(len(COLUMNS))]
            columns = [*self._schema.columns(labels=True), "unused"]
            column = columns[random.integers(len(columns))]
            try:
                shape.write(COLUMNS[name](shape.convert(table()), column, random), self._bad)
            except (pa.ArrowException, OSError, KeyError):  # this shape cannot be written so: without its options
                pq.write_table(COLUMNS[name](table(), column, random), self._bad, row_group_size=25)
            return f"column {name}: {column}", False
        data = bytearray(before)
        chunks = page_chunks(self._bad, before)
        footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        bodies = page_bodies(before, chunks)
        places = {
            "pages": bodies,
            "page headers": between(chunks, bodies),
            "footer": [(footer, len(data) - 8)],
            "anywhere": [(0, len(data))],
        }
        if random.random() < 0.2:
            name, place = list(WHOLE)[random.integers(len(WHOLE))], "anywhere"
            WHOLE[name](data, places[place], random)
        else:
            name, place = list(BYTES)[random.integers(len(BYTES))], list(places)[random.integers(len(places))]
            BYTES[name](data, places[place], random)
        self._bad.write_bytes(data)
        changed = [at for at, (old, new) in enumerate(zip(before, data, strict=False)) if old != new]
        inside = all(any(start <= at < stop for start, stop in bodies) for at in changed)
        return f"{place} {name}", shape.checksums and len(data) == len(before) and inside

    def _complaint(self, error: Exception, damage: str) -> str:
        """What is wrong with an error, if anything is."""
        message = str(error)
        if not isinstance(error, ValueError) or not is_user_error(error):
            return f"traceback: {type(error).__name__}: {message}"
        if damage.startswith("column") and "found nothing readable" in message:
            return f"refused what Arrow wrote: {message}"
        if self._bad.name not in message or ": found " not in message or "; expected " not in message:
            return f"unclear: {message}"
        return ""

    def _skip_complaint(self, error: Exception, damage: str, shuffle: bool) -> str:
        """What is wrong with `skip`: the good file must be read whole, unless a value is the mistake."""
        try:
            read, _ = self._read(shuffle, "skip")
        except Exception as still:
            is_value, is_memory = ", row " in str(still), "no answer (ArrowMemoryError" in str(still)
            if is_value or is_memory:  # neither is skipped
                return self._complaint(still, damage)
            return f"not skipped: {type(still).__name__}: {still}; before: {error}"
        good = len(self._good_rows)
        return "" if same(read[:good], self._good_rows) else "silent: the good file is read otherwise"

    def _read(self, shuffle: bool, on_bad_file: OnBadFile = "fail") -> tuple[list[Row], Counter[str]]:
        """Both files as training reads them, in file order, and what was mended."""
        dataset = ParquetDataset([str(self._good), str(self._bad)], self._schema, on_bad_file=on_bad_file)
        reader = BatchReader(dataset, BATCH_SIZE, shuffle=shuffle, window_rows=WINDOW_ROWS, threads=2)
        read = [row for batch in reader.epoch() for row in self._rows(batch)]
        sizes = [group.num_rows for group in dataset.files.row_groups]
        order = file_order(sizes, shuffle)
        assert len(read) >= len(order)
        rows = [row for _, row in sorted(zip(order, read, strict=False), key=lambda pair: pair[0])]
        return rows, reader.mended

    def _rows(self, batch: Any) -> Iterator[Row]:
        keys = {key: batch.sparse[key] for key in batch.sparse.keys()}  # noqa: SIM118
        ids = {key: [row.tolist() for row in jagged.to_dense()] for key, jagged in keys.items()}
        weights = {key: [row.tolist() for row in jagged.to_dense_weights()] for key, jagged in keys.items()}
        for number in range(len(batch.weights_B)):
            pairs = {key: list(zip(ids[key][number], weights[key][number], strict=True)) for key in keys}
            dense, labels = batch.dense_BF[number].tolist(), batch.labels_BK[number].tolist()
            yield Row(pairs, dense, labels, float(batch.weights_B[number]))


def file_order(sizes: list[int], shuffle: bool) -> list[int]:
    """The rows of an epoch by their number in the files."""
    starts = np.cumsum([0, *sizes])
    order: list[int] = []
    for window in windows(sizes, WINDOW_ROWS, 0, 0, shuffle):
        held = [row for group in window.row_groups for row in range(starts[group], starts[group + 1])]
        order += [int(held[row]) for row in permutation(window, 0, 0, shuffle)]
    return order


def between(chunks: Sequence[tuple[int, int]], bodies: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of the chunks is not in the bodies: the page headers."""
    found = []
    for start, stop in chunks:
        for body, end in [*(body for body in bodies if start <= body[0] < stop), (stop, stop)]:
            if start < body:
                found.append((start, body))
            start = end
    return found


def same(some: list[Row], others: list[Row]) -> bool:
    """Whether rows agree: ids exactly, numbers to float32."""
    if len(some) != len(others):
        return False
    for one, other in zip(some, others, strict=True):
        if [[i for i, _ in bag] for bag in one.ids.values()] != [[i for i, _ in bag] for bag in other.ids.values()]:
            return False
        numbers = [
            [w for bag in row.ids.values() for _, w in bag] + [*row.dense, *row.labels, row.weight]
            for row in (one, other)
        ]
        if not np.allclose(numbers[0], numbers[1], rtol=1e-6, atol=1e-30):
            return False
    return True


def work(connection: Connection, seed: int) -> None:
    """Run the cases that come through the connection, until None does."""
    torch.set_num_threads(1)
    faulthandler.disable()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES_MORE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder, suppress(EOFError):
        fuzzer = Fuzzer(Path(folder), seed)
        while (case := connection.recv()) is not None:
            try:
                connection.send(fuzzer.run(case))
            except Exception as error:
                connection.send(Outcome(case, "", "", "failure", f"the fuzzer itself: {type(error).__name__}: {error}"))


class Worker:
    """A process that runs one case at a time."""

    def __init__(self, seed: int) -> None:
        self.connection, theirs = mp.Pipe()
        self.process = mp.get_context("fork").Process(target=work, args=(theirs, seed), daemon=True)
        self.process.start()
        theirs.close()
        self.case = -1
        self.since = 0.0

    def begin(self, case: int) -> None:
        self.case, self.since = case, time.monotonic()
        self.connection.send(case)

    def end(self) -> Outcome | None:
        """The outcome, a crash among them; None while the case runs."""
        if self.connection.poll():
            with suppress(EOFError, ConnectionResetError):
                return self.connection.recv()
        elif time.monotonic() - self.since < SECONDS:
            return None
        hung = self.process.is_alive() and time.monotonic() - self.since >= SECONDS
        self.process.kill()
        self.process.join()
        what = f"hang: no end after {SECONDS:g} s" if hung else f"crash: status {self.process.exitcode}"
        return Outcome(self.case, SHAPES[self.case % len(SHAPES)].name, "", "failure", what)


def fuzz(cases: Sequence[int], seed: int, processes: int) -> list[Outcome]:
    """The outcomes of the cases, in their order."""
    left, outcomes = list(reversed(cases)), []
    workers = [Worker(seed) for _ in range(min(processes, len(cases)))]
    for worker in workers:
        worker.begin(left.pop())
    while workers:
        wait([worker.connection for worker in workers], timeout=1)
        for worker in list(workers):
            outcome = worker.end()
            if outcome is None:
                continue
            outcomes.append(outcome)
            if not worker.process.is_alive():
                workers[workers.index(worker)] = worker = Worker(seed)
            if left:
                worker.begin(left.pop())
            else:
                with suppress(OSError):
                    worker.connection.send(None)
                worker.process.join()
                workers.remove(worker)
    return sorted(outcomes)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", help="numbers of cases to run and show, separated by commas")
    args = parser.parse_args()
    if args.only:
        for outcome in fuzz([int(case) for case in args.only.split(",")], args.seed, 1):
            print(outcome)
        return
    started = time.perf_counter()
    outcomes = fuzz(range(args.cases), args.seed, args.processes)
    counts = Counter(outcome.verdict for outcome in outcomes)
    rows = _table("damage", outcomes, [outcome.damage.split(":")[0] for outcome in outcomes])
    further = {"By shape": _table("shape", outcomes, [outcome.shape for outcome in outcomes])}
    failures = [outcome._asdict() for outcome in outcomes if outcome.verdict == "failure"]
    result = {"tried": len(outcomes), **{name: counts[name] for name in VERDICTS[:-1]}, "failures": len(failures)}
    title = f"{len(outcomes):,} damaged files, seed {args.seed}, {time.perf_counter() - started:.0f} s"
    report(title, rows, result, record=args.record, further=further | ({"Failures": failures} if failures else {}))


def _table(what: str, outcomes: Sequence[Outcome], names: Sequence[str]) -> list[dict[str, Any]]:
    """How many cases of each name came to each verdict."""
    counts = {name: Counter[str]() for name in sorted(set(names))}
    for name, outcome in zip(names, outcomes, strict=True):
        counts[name][outcome.verdict] += 1
    return [
        {what: name, "tried": some.total(), **{verdict: some[verdict] for verdict in VERDICTS}}
        for name, some in counts.items()
    ]


if __name__ == "__main__":
    main()
