"""Which rank this process is, as torchrun says in the environment; variables that another job has left are refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Timer

TOGETHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
HERE = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")  # that a launcher of one process a node may leave out
SECONDS_IN_SILENCE = 10.0


def world_from_environment(environment: Mapping[str, str] = os.environ) -> tuple[int, int, int, int]:
    """Rank, world size, local rank and local world size as torchrun sets them; without it, one process.

    Raises:
        ValueError: some of the variables that launchers set together are missing, or they contradict each other; says
            which, and how to unset them.

    >>> world_from_environment({})
    (0, 1, 0, 1)
    >>> world_from_environment({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"})
    (1, 2, 0, 1)
    """
    given = [name for name in (*TOGETHER, *HERE) if name in environment]
    if not given:
        return 0, 1, 0, 1
    missing = [name for name in TOGETHER if name not in environment]
    if missing:
        raise ValueError(
            f"{_found(given, environment)} in the environment, but not {', '.join(missing)}; torchrun sets them "
            f"together, so they are left over from something else. {_remedy(given)}"
        )
    numbers = {}
    for name in (*TOGETHER[:2], TOGETHER[3], *HERE):
        text = environment.get(name, "0" if name == "LOCAL_RANK" else "1")
        if not (text.isascii() and text.isdigit()):
            raise ValueError(f"{name} is {text!r} in the environment; expected a number. {_remedy(given)}")
        numbers[name] = int(text)
    for rank, world in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("LOCAL_WORLD_SIZE", "WORLD_SIZE")):
        if not numbers[rank] < numbers[world] + (rank == "LOCAL_WORLD_SIZE"):
            raise ValueError(
                f"{rank}={numbers[rank]} and {world}={numbers[world]} in the environment contradict each other. "
                f"{_remedy(given)}"
            )
    return numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"]


@contextmanager
def saying_who_is_waited_for(seconds: float, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Say on stderr, when the block takes longer than some seconds, that other ranks are waited for, and why.

    Only where torchrun did not start this process: its variables may then be another job's.

    Args:
        seconds: after which the wait ends.
    """
    _, world_size, _, _ = world_from_environment(environment)
    given = [name for name in TOGETHER if name in environment]
    message = (
        f"rankmixer: waiting up to {seconds:g} s for the other ranks, since {_found(given, environment)} in the "
        f"environment. {_remedy(given)}"
    )
    timer = Timer(SECONDS_IN_SILENCE, lambda: print(message, file=sys.stderr, flush=True))
    timer.daemon = True
    if world_size > 1 and "TORCHELASTIC_RUN_ID" not in environment:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _found(names: list[str], environment: Mapping[str, str]) -> str:
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(f'{name}={environment[name]}' for name in names)} {verb}"


def _remedy(names: list[str]) -> str:
    return f"For one process: unset {' '.join(names)}; for several: torchrun --nproc-per-node N -m rankmixer ..."
