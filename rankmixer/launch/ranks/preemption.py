"""SIGTERM and SIGUSR1, by which schedulers take machines away, and Ctrl-C: heard at once, followed after a step."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Slurm signals every process of a job, and torchrun hands on to its ranks what it got itself: that is one request.
SECONDS_OF_ONE_REQUEST = 5.0
SECONDS_OF_ONE_KEYSTROKE = 0.5  # of Ctrl-C where no torchrun hands it on, though `timeout` and others say it twice


class Preemption:
    """Has this process been told to leave?

    The signal is heard by a thread, for the main thread may be in a collective that does not end. Where nobody listens
    a signal ends the process, as it does by default: before the first step there is nothing to save.

    >>> preemption = Preemption()
    >>> with preemption.listening():
    ...     signal.raise_signal(signal.SIGUSR1)
    ...     while not preemption.is_told_to_leave():
    ...         time.sleep(0.01)
    >>> preemption.signal.name
    'SIGUSR1'
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0

    def is_told_to_leave(self) -> bool:
        """Has a signal come?"""
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """In the block a signal is a request; another one, five seconds later or more, ends the process at once.

        So does a second Ctrl-C, without waiting; with ranks torchrun hears it too, and ends them.
        """
        if threading.current_thread() is not threading.main_thread():  # which alone may say what signals do
            yield
            return
        ours, pythons = socket.socketpair()
        pythons.setblocking(False)
        thread = threading.Thread(target=self._listen, args=(ours,), name="signals", daemon=True)
        thread.start()
        before = {
            number: signal.signal(number, lambda *_: None)
            for number in SIGNALS
            if number != signal.SIGINT or not _is_in_background()
        }
        before_socket = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before_socket)
            for number, handler in before.items():
                signal.signal(number, handler)
            pythons.close()
            thread.join()
            ours.close()

    def _listen(self, ours: socket.socket) -> None:
        """The thread: Python writes the number of every signal, even while the main thread is busy elsewhere."""
        while heard := ours.recv(1):
            if heard[0] not in SIGNALS:
                continue
            if self.signal is None:
                self.signal, self._since = signal.Signals(heard[0]), time.monotonic()
            elif time.monotonic() - self._since > _seconds_of_one(heard[0]):
                name = signal.Signals(heard[0]).name
                print(f"rankmixer: stopped by a second signal, {name}: nothing is saved", file=sys.stderr, flush=True)
                os._exit(128 + heard[0])  # what is written appears whole or not at all


def _seconds_of_one(number: int) -> float:
    is_keystroke = number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ
    return SECONDS_OF_ONE_KEYSTROKE if is_keystroke else SECONDS_OF_ONE_REQUEST


def _is_in_background() -> bool:
    """Whether a shell has this process ignore Ctrl-C, which is for those in the foreground."""
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@contextmanager
def sigint_is_said_once() -> Iterator[None]:
    """On the ranks of a torchrun, in the block, the SIGINT that it hands on does not interrupt what removes files.

    A terminal sends Ctrl-C to the ranks as well: what both say is one KeyboardInterrupt.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if "TORCHELASTIC_RUN_ID" not in os.environ or not is_main or _is_in_background():
        yield
        return
    heard = [-math.inf]

    def interrupt(*_: object) -> None:
        if time.monotonic() - heard[0] > SECONDS_OF_ONE_REQUEST:
            heard[0] = time.monotonic()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """In the block SIGTERM is an exception, so that what is half written is removed.

    Not on the ranks of a job, where it ends the process, which may wait for others: what a rank leaves under another
    name than that of the output, the next attempt removes.
    """
    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
