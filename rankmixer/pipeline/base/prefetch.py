"""Do work ahead in threads, and give the results in order."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, wait
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Overdue = Callable[[], Exception | None]
SECONDS_BETWEEN_LOOKS = 0.5
_LEFT: list[threading.Thread] = []


def left_behind() -> bool:
    """Whether threads still wait for what did not come."""
    return any(thread.is_alive() for thread in _LEFT)


def leave_behind(*threads: threading.Thread) -> None:
    """Say that these threads wait for what may never come, so that the process ends without them."""
    _LEFT.extend(thread for thread in threads if thread.is_alive())


def prefetch(
    calls: Iterable[Callable[[], T]], threads: int, ahead: int, overdue: Overdue = lambda: None
) -> Generator[T, None, None]:
    """Yield the results of `calls` in their order while up to `ahead` of them are done, or being done, in threads.

    An exception of a call is raised in its turn. Closing the iterator cancels what has not begun and waits for what
    has, so that no thread outlives it; unless `overdue` says that a call will not end: its exception is raised while a
    result is waited for, and the thread is left behind. It does not keep the process from ending.

    >>> list(prefetch((lambda n=n: n * n for n in range(4)), threads=2, ahead=3))
    [0, 1, 4, 9]
    """
    calls = iter(calls)
    pending: deque[Future[T]] = deque()
    pool = _Pool(threads, overdue)
    try:
        pending.extend(pool.submit(call) for call in islice(calls, ahead))
        while pending:
            result = pool.result(pending.popleft())
            pending.extend(pool.submit(call) for call in islice(calls, 1))
            yield result
            del result
    finally:
        pool.close()


class _Pool:
    """Daemon threads; Python's own pool joins its threads when the process ends, whatever they wait for."""

    def __init__(self, threads: int, overdue: Overdue) -> None:
        self._overdue = overdue
        self._is_open = True
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch_{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # a daemon thread inside Arrow must not see Python go

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put((future, call))
        return future

    def result(self, future: Future[T]) -> T:
        while not wait([future], SECONDS_BETWEEN_LOOKS).done:
            if error := self._overdue():
                raise error
            if not self._is_open:  # the process ends
                raise CancelledError
        return future.result()

    def close(self) -> None:
        self._is_open = False
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            while thread.is_alive() and not self._overdue():
                thread.join(SECONDS_BETWEEN_LOOKS)
        leave_behind(*self._threads)
        atexit.unregister(self.close)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None and self._is_open:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del item, future, call  # nothing is kept alive while the next call is waited for
