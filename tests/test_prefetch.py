import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pipeline.prefetch import prefetch


def calls(count: int, started: list[int], gate: threading.Event | None = None) -> Iterator[Callable[[], int]]:
    def call(number: int) -> int:
        started.append(number)
        if gate is not None:
            assert gate.wait(10)
        return number

    return (partial(call, number) for number in range(count))


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (3, 2), (2, 9)])
def test_results_come_in_order(threads: int, ahead: int) -> None:
    assert list(prefetch(calls(20, []), threads, ahead)) == list(range(20))
    assert list(prefetch(calls(0, []), threads, ahead)) == []


def test_slow_calls_do_not_change_the_order() -> None:
    def call(number: int) -> int:
        time.sleep(0.01 * (3 - number % 4))
        return number

    assert list(prefetch((partial(call, number) for number in range(8)), 4, 4)) == list(range(8))


def test_no_more_is_ahead_than_allowed() -> None:
    started: list[int] = []
    results = prefetch(calls(50, started), threads=2, ahead=3)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 4
    results.close()


def test_an_exception_comes_in_its_turn() -> None:
    def fails() -> int:
        raise ValueError("the second call")

    results = prefetch(iter([lambda: 0, fails, lambda: 2]), threads=2, ahead=3)
    assert next(results) == 0
    with pytest.raises(ValueError, match="the second call"):
        next(results)
    assert list(results) == []


def test_closing_leaves_no_thread_and_begins_nothing_more() -> None:
    before = set(threading.enumerate())
    started: list[int] = []
    gate = threading.Event()
    gate.set()
    results = prefetch(calls(50, started, gate), threads=2, ahead=10)
    next(results)
    gate.clear()
    threading.Timer(0.05, gate.set).start()
    results.close()
    begun = len(started)
    time.sleep(0.05)
    assert len(started) == begun < 50
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("prefetch")}
