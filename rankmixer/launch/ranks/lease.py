"""A lock on a file system that hosts share: a file that its holder renews, and another may take over when it lapses."""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from rankmixer.pipeline.base.storage import writing

BEAT_SECONDS = 10.0
# Without a sign of life for so long the holder is taken to be gone: six beats.
LAPSE_SECONDS = 60.0
# Two that take a lapsed lease at the same time write one after the other; the last keeps it.
SETTLE_SECONDS = 2.0


class Lease:
    """A file with its holder's name and a number that a thread of the holder counts up.

    No clock of another host is believed: whoever wants the lease watches, by its own clock, whether the number moves.
    Two that come within two seconds of each other both write, look again, and whoever was last has it.

    Args:
        filesystem: any of fsspec's.
        path: of the file.
        holder: what the file says of this process: host, pid, `process`, which is its identity, and more.
        named: puts that into words.
    """

    def __init__(
        self,
        filesystem: fsspec.AbstractFileSystem,
        path: str,
        holder: dict[str, Any],
        named: Callable[[dict[str, Any]], str],
    ) -> None:
        self._fs, self._path, self._named = filesystem, path, named
        self._mine = {**holder, "token": secrets.token_hex(8), "beat": 0}
        self._writing, self._has_ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> str | None:
        """Take the lease, at once or when the one that is there has lapsed; or say who renews it."""
        with writing(self._fs, self._path):  # a storage that refuses is known at once
            with suppress(NotImplementedError):
                self._fs.makedirs(self._path.rpartition("/")[0], exist_ok=True)
            self._read()
        other = self._live_holder(tell=True)
        if other:
            return self._named(other)
        with writing(self._fs, self._path):
            self._write()
        time.sleep(SETTLE_SECONDS)
        other = self._other()
        if other:
            return self._named(other)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return None

    def holder(self) -> str | None:
        """Who renews the lease, if anybody does; takes up to a minute to say."""
        other = self._live_holder()
        return self._named(other) if other else None

    def check(self) -> str | None:
        """Who has taken it over; None also where the file cannot be read, or is gone and was written again."""
        try:
            with self._writing:
                other = self._other()
                if other is None and self._read() is None:
                    self._write()
        except Exception:  # whatever a file system raises
            return None
        return self._named(other) if other else None

    def release(self) -> None:
        """Remove the file, if it is still ours."""
        self._has_ended.set()
        if self._thread:
            self._thread.join()
            self._thread = None
            with suppress(Exception):
                if self._other() is None:
                    self._fs.rm(self._path)

    def _renew(self) -> None:
        while not self._has_ended.wait(BEAT_SECONDS):
            with suppress(Exception), self._writing:  # whatever a file system raises that fails for a while
                if self._other():
                    return  # whoever saves next is told by `check`
                self._mine["beat"] += 1
                self._write()

    def _live_holder(self, tell: bool = False) -> dict[str, Any] | None:
        """The holder, if it gives a sign of life in time."""
        found = self._other()
        if found is None or _has_died_here(found):
            return None
        if tell:
            print(
                f"rankmixer: waiting up to {LAPSE_SECONDS:g} s for a sign of life of {self._named(found)}, which held "
                f"{self._path}",
                file=sys.stderr,
                flush=True,
            )
        deadline = time.monotonic() + LAPSE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(BEAT_SECONDS / 10)
            now = self._other()
            if now != found:
                return now
        if tell:
            print(f"rankmixer: {self._path}: no sign of life; taken over", file=sys.stderr, flush=True)
        return None

    def _other(self) -> dict[str, Any] | None:
        """What the file says, if it is another's."""
        found = self._read()
        return None if found is None or found["token"] == self._mine["token"] else found

    def _read(self) -> dict[str, Any] | None:
        self._fs.invalidate_cache(self._path)
        try:
            return dict(json.loads(self._fs.cat_file(self._path)))
        except FileNotFoundError:
            return None
        except ValueError:  # half written: there is somebody
            return {"token": None, "host": "unknown", "pid": 0, "since": "just now"}

    def _write(self) -> None:
        self._fs.pipe_file(self._path, json.dumps(self._mine).encode())


def identity(pid: int) -> list[str] | None:
    """What tells a process from all others: boot of the system, namespace of its number, time of its start.

    None if there is no such process here.
    """
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return None
    return [*_here(), str(pid), started]


def _here() -> list[str]:
    return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]


def _has_died_here(holder: dict[str, Any]) -> bool:
    """True if the holder was a process of this host, and is no more."""
    process = holder.get("process")
    return process is not None and process[:2] == _here() and process != identity(holder["pid"])
