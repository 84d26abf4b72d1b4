"""An evaluation that fails must not cost what was trained before it: whether all ranks know, so that all can save."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.ranks.roll_call import is_lost_collective

SECONDS_TO_FAIL_TOGETHER = 5.0
T = TypeVar("T")


def raising(items: Iterable[T], failures: list[Exception]) -> Iterator[T]:
    """The items, until there is a failure, which is raised in the place of the next.

    What one rank alone has met becomes an error in reading its batches, of which the ranks tell each other.
    """
    for item in items:
        raise_first(failures)
        yield item


def raise_first(failures: list[Exception]) -> None:
    """Raise the failure, if there is one."""
    if failures:
        raise failures[0]


def all_ranks_know(error: Exception, step: int, ranks: Ranks) -> bool:
    """Whether the evaluation after `step` has raised on every rank; `error` is what it raised here.

    If not, some rank waits in a collective or has gone, and no step of all ranks would end.
    """
    if is_lost_collective(error):
        return False
    if ranks.store is None:
        return True
    keys = [f"evaluation failed at {step}/{rank}" for rank in range(ranks.world_size)]
    ranks.store.set(keys[ranks.rank], "")
    until = time.monotonic() + SECONDS_TO_FAIL_TOGETHER
    while not ranks.store.check(keys):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
