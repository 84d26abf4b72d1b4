"""How rank 0 and the others hear of each other during a save: by collectives, or from a thread, over the job's store.

A thread beside the training must not use collectives: the training uses them too, and their order would differ between
ranks. A collective of its own group would still tie its ranks' threads together while a process ends. Keys in the
store tie nobody: a rank that has gone is a key that does not come, and who waits for it may give up at any time.
"""

from __future__ import annotations

import itertools
import json
import threading
from typing import Any, Protocol

import torch.distributed as dist

from rankmixer.pipeline.base.collective import all_gather, rank

LONGEST_NAP = 0.2  # seconds between two looks at the store
_NUMBERS = itertools.count()  # of this process's meetings: none must find what another has said


class Meeting(Protocol):
    """What the ranks tell each other during one save, in the same order on all of them. Values are JSON."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""

    def gather(self, value: Any) -> list[Any] | None:
        """On rank 0 the values of all ranks, its own first; None elsewhere."""


class GroupMeeting:
    """By collectives of the default process group: for the main thread."""

    def broadcast(self, value: Any) -> Any:
        return all_gather(value)[0]

    def gather(self, value: Any) -> list[Any] | None:
        values = all_gather(value)
        return values if rank() == 0 else None


class GivenUp(RuntimeError):
    """This process ends, and waits for no other rank any more."""


class StoreMeeting:
    """Over a store: for any thread. What was said is removed from the store when all have heard it.

    Args:
        store: the job's, under a prefix that no earlier attempt has used; None with one rank. All ranks of an attempt
            make their meetings in the same order.
        rank: of this process.
        world_size: W.

    Raises:
        GivenUp: `give_up` was called while this rank waits.

    >>> meeting = StoreMeeting(dist.HashStore(), rank=0, world_size=1)
    >>> meeting.broadcast("go"), meeting.gather(3)
    ('go', [3])
    """

    def __init__(self, store: dist.Store | None, rank: int, world_size: int) -> None:
        assert store is not None or world_size == 1, "ranks that write in threads need a store"
        self._store: dist.Store | None = None
        if store is not None and world_size > 1:
            # A connection of its own: process groups use the store too, and one that waits is taken.
            own: dist.Store = store.clone()  # type: ignore[attr-defined]
            self._store = dist.PrefixStore(f"meeting {next(_NUMBERS)}", own)
        self._rank, self._world_size = rank, world_size
        self._messages = 0
        self._said: list[str] = []
        self._given_up = threading.Event()

    def broadcast(self, value: Any) -> Any:
        key = self._next_key()
        if self._store is None:
            return value
        if self._rank == 0:
            self._store.set(key, json.dumps(value))
            self._said.append(key)
            return value
        return self._hear([key])[0]

    def gather(self, value: Any) -> list[Any] | None:
        key = self._next_key()
        if self._store is None:
            return [value]
        if self._rank:
            self._store.set(f"{key}/{self._rank}", json.dumps(value))
            return None
        keys = [f"{key}/{rank}" for rank in range(1, self._world_size)]
        others = self._hear(keys)
        for heard in (*keys, *self._said):  # who has answered has heard what was said before
            self._store.delete_key(heard)
        self._said.clear()
        return [value, *others]

    def give_up(self) -> None:
        """End all waiting, now and later."""
        self._given_up.set()

    def _next_key(self) -> str:
        self._messages += 1
        return str(self._messages)

    def _hear(self, keys: list[str]) -> list[Any]:
        assert self._store is not None
        nap = 0.005
        while not self._store.check(keys):
            if self._given_up.wait(nap):
                raise GivenUp("another rank had not answered when this process ended")
            nap = min(2 * nap, LONGEST_NAP)
        return [json.loads(self._store.get(key)) for key in keys]
