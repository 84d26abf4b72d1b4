"""Do work ahead in threads, and give the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def prefetch(calls: Iterable[Callable[[], T]], threads: int, ahead: int) -> Generator[T, None, None]:
    """Yield the results of `calls` in their order while up to `ahead` of them are done, or being done, in threads.

    An exception of a call is raised in its turn. Closing the iterator cancels what has not begun and waits for what
    has, so that no thread outlives it.

    >>> list(prefetch((lambda n=n: n * n for n in range(4)), threads=2, ahead=3))
    [0, 1, 4, 9]
    """
    calls = iter(calls)
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        try:
            pending.extend(pool.submit(call) for call in islice(calls, ahead))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(call) for call in islice(calls, 1))
                yield result
                del result
        finally:
            pool.shutdown(cancel_futures=True)
