import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from rankmixer.pipeline.base.prefetch import left_behind, prefetch


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


def test_a_process_ends_while_results_are_still_wanted() -> None:
    script = """
import time
from functools import partial
from itertools import count, repeat
from rankmixer.pipeline.base.prefetch import prefetch

def call(number):
    time.sleep(0.05)
    return number

inner = prefetch((partial(call, number) for number in count()), threads=2, ahead=2)
outer = prefetch(repeat(partial(next, inner)), threads=1, ahead=4)
print(next(outer), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_a_call_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankmixer.pipeline.base.prefetch.SECONDS_BETWEEN_LOOKS", 0.02)
    gate = threading.Event()
    late: list[Exception] = []
    results = prefetch([lambda: 0, gate.wait, lambda: 2], 2, 3, lambda: late[0] if late else None)
    assert next(results) == 0
    late.append(TimeoutError("the second call"))
    with pytest.raises(TimeoutError, match="the second call"):
        next(results)
    assert left_behind()
    gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("prefetch"):
            thread.join(10)
    assert not left_behind()
