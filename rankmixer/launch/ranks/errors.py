"""How an error reaches the person: one sentence for their mistake, a traceback for ours, once for the whole job."""

from __future__ import annotations

import json
import linecache
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rankmixer.launch.ranks.system_errors import explain_system_error
from rankmixer.pipeline.base.errors import Interrupted, Preempted

USER_ERROR = 2
FAILURE = 1
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
INTERRUPTED = 128 + signal.SIGINT  # as a shell says it of Ctrl-C; no scheduler may take it for a wish to go on

# Time in which the agent ends the other ranks after one has said what is wrong.
SECONDS_TO_BE_STOPPED = 5.0

_PACKAGE = Path(__file__).resolve().parents[2]
_PACKAGES = (_PACKAGE, _PACKAGE.parent / "rankmixer_head")


class JobFailed(RuntimeError):
    """What ended the job, in a sentence for the user; no mistake of theirs."""


class PeerFailed(JobFailed):
    """The same, heard from another rank, which says it too.

    Args:
        message: what that rank says.
        is_said_here: it has the same torchrun agent, which will print it.
    """

    def __init__(self, message: str, is_said_here: bool = False) -> None:
        super().__init__(message)
        self.is_said_here = is_said_here


def is_ours(file: Path) -> bool:
    """Whether a source file is one of this project's."""
    return any(file.resolve().is_relative_to(package) for package in _PACKAGES)


def is_user_error(error: BaseException) -> bool:
    """True for a ValueError raised by this project's own code: its message is written for the user.

    A ValueError from inside a library says nothing to the user without its traceback.
    """
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return is_ours(Path(frame.f_code.co_filename))


def run_reporting_errors(command: Callable[[], None]) -> int:
    """Run a command and return its exit status: 0, 2 for the user's mistakes, 1 for anything else.

    75 if it was told to leave by SIGTERM or SIGUSR1, 130 by Ctrl-C, in training after a checkpoint.

    Under torchrun the message goes to torchelastic's error file, which the agent prints once, when it ends, or to
    stderr if the agent will start the processes again. Every rank may see the same mistake: rank 0 speaks first, the
    others wait to be stopped, and speak only if they were not. A rank that ends because another has failed waits
    longest, and speaks only where that one does not.
    """
    try:
        command()
        sys.stdout.flush()  # the error of a full disk comes now, and not while Python shuts down
    except KeyboardInterrupt:
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # which says so itself
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends at once, and without a traceback
            print("rankmixer: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Preempted as farewell:
        # On stderr: an agent that got the signal too does not read the error file. Once a host.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"rankmixer: {farewell}", file=sys.stderr, flush=True)
        return INTERRUPTED if isinstance(farewell, Interrupted) else PREEMPTED
    except Exception as error:
        if isinstance(error, OSError) and _is_about_stdout(error):
            _forget_stdout()
            if isinstance(error, BrokenPipeError):
                return FAILURE  # whoever read it has seen enough, as `head` does
            error.filename = "stdout"
        is_told = isinstance(error, JobFailed)
        told = str(error) if is_told or is_user_error(error) else explain_system_error(error)
        message = traceback.format_exc() if told is None else f"rankmixer: error: {told}"
        if isinstance(error, PeerFailed):
            time.sleep(SECONDS_TO_BE_STOPPED)
            if error.is_said_here:
                return FAILURE
        elif os.environ.get("RANK", "0") != "0":
            time.sleep(SECONDS_TO_BE_STOPPED / 2)
        report(message)
        return USER_ERROR if is_user_error(error) else FAILURE
    return 0


def _is_about_stdout(error: OSError) -> bool:
    """The error names no file, and was raised by a line that prints."""
    if error.filename is not None or error.__traceback__ is None:
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    words = linecache.getline(file, line)
    return "print(" in words or "stdout" in words or Path(file).parent.name == "rich"


def _forget_stdout() -> None:
    """What could not be printed is not tried again, with a message of Python's own, when the process ends."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _print(message: str) -> None:
    if not sys.stderr.isatty():
        print(message, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    text = Text(message)
    text.highlight_words(["rankmixer: error:"], "bold red")
    Console(stderr=True).print(text, soft_wrap=True)


def report(message: str) -> None:
    """Say what ended this rank: on stderr, or in torchelastic's error file, of which the agent prints the first."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    restarts, allowed = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if restarts < allowed:
        # This host's agent will start the processes again, and then passes over the file in silence.
        path = None
        message += (
            f"\nrankmixer: torchrun starts again, restart {restarts + 1} of {allowed}, once all hosts have joined"
        )
    if path is None or not Path(path).parent.is_dir():  # an agent's that has gone: the variable is left over
        _print(message)
        return
    # torchelastic's own format; without a `py_callstack` its agent prints the message alone.
    record = {"message": {"message": message, "extraInfo": {"timestamp": int(time.time())}}}
    Path(path).write_text(json.dumps(record))
