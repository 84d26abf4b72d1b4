"""How an error reaches the person: one sentence for their mistake, a traceback for ours, once for the whole job."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import Preempted

USER_ERROR = 2
FAILURE = 1
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again

# Time in which the agent ends the other ranks after one has said what is wrong.
SECONDS_TO_BE_STOPPED = 5.0

OUR_FOLDERS = {
    Path(__file__).resolve().parents[1] / name for name in ("pipeline", "embeddings", "rankmixer_head", "launch")
}


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


def is_user_error(error: BaseException) -> bool:
    """True for a ValueError raised by this project's own code: its message is written for the user.

    A ValueError from inside a library says nothing to the user without its traceback.
    """
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).resolve().parent in OUR_FOLDERS


def run_reporting_errors(command: Callable[[], None]) -> int:
    """Run a command and return its exit status: 0, 2 for the user's mistakes, 75 if preempted, 1 for anything else.

    Under torchrun the message goes to torchelastic's error file, which the agent prints once, when it ends, or to
    stderr if the agent will start the processes again. Every rank may see the same mistake: rank 0 speaks first, the
    others wait to be stopped, and speak only if they were not. A rank that ends because another has failed waits
    longest, and speaks only where that one does not.
    """
    try:
        command()
    except KeyboardInterrupt:
        return 130
    except Preempted as told:
        # On stderr: an agent that got the signal too does not read the error file. Once a host.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"rankmixer: {told}", file=sys.stderr, flush=True)
        return PREEMPTED
    except Exception as error:
        is_told = isinstance(error, JobFailed)
        message = f"rankmixer: error: {error}" if is_told or is_user_error(error) else traceback.format_exc()
        if isinstance(error, PeerFailed):
            time.sleep(SECONDS_TO_BE_STOPPED)
            if error.is_said_here:
                return FAILURE
        elif os.environ.get("RANK", "0") != "0":
            time.sleep(SECONDS_TO_BE_STOPPED / 2)
        report(message)
        return USER_ERROR if is_user_error(error) else FAILURE
    return 0


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
    if path is None:
        print(message, file=sys.stderr, flush=True)
        return
    # torchelastic's own format; without a `py_callstack` its agent prints the message alone.
    record = {"message": {"message": message, "extraInfo": {"timestamp": int(time.time())}}}
    Path(path).write_text(json.dumps(record))
