"""End this process without a crash where gloo's threads are still alive: `os._exit` once everything is flushed.

Gloo joins the threads of a process group when the last reference to the group goes. DTensor keeps the mesh of a token
group, and so its group, in caches that nothing empties. A thread of gloo that lets a tensor go while Python shuts down
ends a finished job with SIGABRT ("terminate called without an active exception"): such a process must not shut Python
down. Only what was started as a command calls this; a function of this project never ends its caller's process.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from rankmixer.launch.ranks.errors import FAILURE


def gloo_threads() -> list[str]:
    """Names of the threads of gloo's process groups in this process; empty where there is no /proc.

    >>> all("gloo" in name for name in gloo_threads())
    True
    """
    names = []
    for comm in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # ended meanwhile
            names.append(comm.read_text().strip())
    return sorted(name for name in names if "gloo" in name)


def leave(status: int) -> NoReturn:
    """End this process as `sys.exit` does; where threads of gloo remain, do its work here, and end by `os._exit`.

    Threads that are no daemons are waited for, exit handlers run (those of multiprocessing, logging and coverage among
    them), and what was printed is flushed; only the interpreter is not taken down.

    Args:
        status: of the process.
    """
    gc.collect()  # what refers to a group is often part of a cycle
    if not gloo_threads():
        sys.exit(status)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    leave_at_once(status)


def leave_at_once(status: int) -> NoReturn:
    """End this process by `os._exit` when what was printed is flushed, without waiting for threads or exit handlers."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # none, a full disk, closed
            status = status or FAILURE
    ctypes.CDLL(None).fflush(None)  # what C has buffered
    os._exit(status)


def call_and_leave(function: Callable[[], None]) -> NoReturn:
    """Call a function in a process that was started for it alone, and end that: status 0, or 1 and a traceback."""
    status = 0
    try:
        function()
    except BaseException:
        traceback.print_exc()
        status = FAILURE
    leave(status)
