"""`python -m rankmixer.launch.ranks.torchrun ...`: torchrun, with the same arguments, whose failure is one message.

torchrun itself ends with a traceback of its own around the message of the rank that failed first, and hands it to
TorchX, which prints it again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rankmixer.launch.ranks.errors import FAILURE, INTERRUPTED, PREEMPTED
from rankmixer.launch.ranks.preemption import SECONDS_OF_ONE_KEYSTROKE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job; return 0, the exit status of the rank that failed first, or 1 if a signal ended that.

    SIGUSR1, which would end the agent and leave its ranks alone, is handed on to them like SIGTERM. So is Ctrl-C, once:
    ranks that train save, and all leave with status 130. A second one ends the agent, and the ranks with it.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # before there are ranks
        _say("rankmixer: stopped by SIGINT")
        return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousTimeoutError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGHUP,SIGQUIT,SIGUSR1")
    options = parse_args(arguments)
    try:
        with _ctrl_c_stops_once():
            run(options)
    except ChildFailedError as error:
        # Whom the agent had to stop did not fail first, though its clock, in whole seconds, may say so.
        failed = {
            rank: one for rank, one in error.failures.items() if one.exitcode != -signal.SIGTERM
        } or error.failures
        rank, failure = min(failed.items(), key=lambda item: item[1].timestamp)
        if failure.exitcode in (PREEMPTED, INTERRUPTED):  # and has said so
            return failure.exitcode
        said = failure.error_file_data.get("message", failure.message)
        text = said["message"] if isinstance(said, dict) else said
        _say(message(rank, failure.pid, failure.exitcode, text))
        return failure.exitcode if failure.exitcode > 0 else FAILURE
    except RendezvousConnectionError:
        _say(
            f"rankmixer: error: the rendezvous at {options.rdzv_endpoint} does not answer: its host is lost, or not up "
            "yet. Submit the job again; it goes on from the last checkpoint"
        )
        return FAILURE
    except RendezvousTimeoutError:
        _say(
            f"rankmixer: error: not all of {options.nnodes} hosts have joined in time (600 s, unless --rdzv-conf "
            "join_timeout=SECONDS says otherwise). Start this command on all of them"
        )
        return FAILURE
    except SignalException as stopped:
        _say(f"rankmixer: stopped by {stopped.sigval.name}")
        return 128 + stopped.sigval
    return 0


@contextmanager
def _ctrl_c_stops_once() -> Iterator[None]:
    """In the block Ctrl-C stops the ranks, and a second one this process.

    torchrun's own handler would begin to stop the ranks anew, and wait for them again.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    since: list[float] = []

    def stop(*_: object) -> None:
        since.append(time.monotonic())
        if len(since) == 1:
            raise SignalException("Ctrl-C", sigval=signal.SIGINT)
        if since[-1] - since[0] > SECONDS_OF_ONE_KEYSTROKE:
            _say("rankmixer: stopped by a second signal, SIGINT: nothing is saved")
            os._exit(INTERRUPTED)  # the ranks end with it, see end_with_launcher

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def message(rank: int, pid: int, status: int, said: str) -> str:
    """What to print of the rank that failed first.

    Args:
        rank: of W.
        pid: of its process.
        status: its exit status; minus the signal if one ended it.
        said: what it wrote into its error file, if it came to that.

    >>> print(message(1, 77, 2, "rankmixer: error: clicks.parquet: no column user"))
    rankmixer: error: clicks.parquet: no column user
    """
    if status >= 0:
        return said
    name = signal.Signals(-status).name
    hint = "; the system does that when memory runs out (dmesg says so)" if name == "SIGKILL" else ""
    return (
        f"rankmixer: error: rank {rank} ({socket.gethostname()}, pid {pid}) was ended by {name}{hint}. "
        "The same command goes on from the last checkpoint"
    )


def end_with_launcher() -> None:
    """Have the system kill this rank when torchrun, whose child it is, ends without a word.

    Otherwise the ranks of a torchrun that was killed would train on, holding the run's directory against their own
    restart. They could not save: the store that they would agree at is the launcher's.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
