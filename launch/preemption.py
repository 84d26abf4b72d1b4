"""SIGTERM and SIGUSR1, by which schedulers take a job's machines away: heard at once, acted upon after a step."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Slurm signals every process of a job, and torchrun hands on to its ranks what it got itself: that is one request.
SECONDS_OF_ONE_REQUEST = 5.0


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
        """In the block a signal is a request; another one, five seconds later or more, ends the process at once."""
        if threading.current_thread() is not threading.main_thread():  # which alone may say what signals do
            yield
            return
        ours, pythons = socket.socketpair()
        pythons.setblocking(False)
        thread = threading.Thread(target=self._listen, args=(ours,), name="signals", daemon=True)
        thread.start()
        before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
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
            elif time.monotonic() - self._since > SECONDS_OF_ONE_REQUEST:
                name = signal.Signals(heard[0]).name
                print(f"rankmixer: stopped by a second signal, {name}: nothing is saved", file=sys.stderr, flush=True)
                os._exit(128 + heard[0])  # what is written appears whole or not at all


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
