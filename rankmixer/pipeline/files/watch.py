"""Reads that never end: a process that would wait for ever raises one clear error instead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rankmixer.pipeline.base.errors import DataError, StalledError, data_error
from rankmixer.pipeline.base.storage import TELL_AGAIN_SECONDS, TELL_SECONDS, tell_of_wait

READ_SECONDS = 300.0


class Watch:
    """Which files are being read in which threads, and since when.

    A thread that waits for a file system cannot be ended from outside. So nobody waits for it without asking `overdue`
    every now and then, and the threads are such that the process can end without them (base/prefetch.py).

    Args:
        seconds: a read, of one footer or of one row group, may take.

    >>> watch = Watch(seconds=0)
    >>> with watch.reading("a.parquet", row_group=2):
    ...     print(watch.overdue())
    a.parquet, row group 2: found a file system that has not answered for 0 s; expected its bytes. See to the file
    system or raise `data.timeout_seconds`, then start again.
    >>> watch.overdue()
    """

    def __init__(self, seconds: float = READ_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._tell_at = TELL_SECONDS
        self._reads: dict[int, tuple[str, int | None, float]] = {}

    @contextmanager
    def reading(self, path: str, row_group: int | None = None) -> Iterator[None]:
        """The block is one read."""
        thread = threading.get_ident()
        with self._lock:
            self._reads[thread] = (path, row_group, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                del self._reads[thread]

    def overdue(self) -> DataError | None:
        """The error of the first read that takes too long; of one that takes long there is a line on stderr."""
        now = time.monotonic()
        with self._lock:
            reads = list(self._reads.values())
        waited = max((now - since for _, _, since in reads), default=0.0)
        if waited < TELL_SECONDS:
            self._tell_at = TELL_SECONDS
        elif waited >= self._tell_at:
            path, _, _ = min(reads, key=lambda read: read[2])
            self._tell_at = waited + TELL_AGAIN_SECONDS
            tell_of_wait(path, waited)
        for path, row_group, since in reads:
            if now - since >= self._seconds:
                stalled = data_error(
                    path,
                    row_group=row_group,
                    found=f"a file system that has not answered for {self._seconds:g} s",
                    expected="its bytes",
                    do="See to the file system or raise `data.timeout_seconds`, then start again.",
                )
                return StalledError(str(stalled))
        return None
