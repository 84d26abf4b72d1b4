"""One run directory, one job: a second launch is refused, and says who is there."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import psutil
from fsspec.implementations.local import LocalFileSystem

from rankmixer.launch.config.config import Config
from rankmixer.launch.ranks.lease import Lease, identity
from rankmixer.pipeline.base.collective import on_rank_0
from rankmixer.pipeline.base.errors import PassingError
from rankmixer.pipeline.base.storage import open_storage
from rankmixer.pipeline.journal.journal import read_log

LOCK = "lock"
# Processes of an attempt that was killed may still be ending.
SECONDS_TO_END = 10.0
# On these one kernel sees every process that could open the file; others may be shared between hosts.
LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}


class RunInUse(PassingError):
    """Another job holds the run's directory, or has taken it over."""


class Lock(Protocol):
    """What keeps others out of a directory."""

    def take(self) -> str | None:
        """Take it; or say who holds it."""

    def holder(self) -> str | None:
        """Who holds it, without taking it."""

    def check(self) -> str | None:
        """Who has taken it over from us."""

    def release(self) -> None:
        """Give it back."""


class FileLock:
    """A lock on an open file: the kernel gives it back when the process ends, however that happens.

    Args:
        directory: on a local disk.
    """

    def __init__(self, directory: str) -> None:
        self._path = Path(directory, LOCK)
        self._file: int | None = None

    def take(self) -> str | None:
        """Take the lock; or say who holds it after some seconds, in which that one may end."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + SECONDS_TO_END
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                if time.monotonic() > deadline:
                    return self._named()
                time.sleep(0.1)
            else:
                break
        self._file = file
        with suppress(OSError):  # of a full disk: then the holder has no name
            os.ftruncate(file, 0)
            os.write(file, json.dumps(this_process()).encode())
        return None

    def holder(self) -> str | None:
        """Who holds the lock now, if anybody does."""
        try:
            file = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._named()
        finally:
            os.close(file)
        return None

    def check(self) -> str | None:
        """Who has taken it over. A directory that was deleted is made again; a disk that fails is not another job."""
        try:
            file = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            self.release()
            with suppress(OSError):
                return self.take()
            return None
        except OSError:
            return None
        is_ours = self._file is not None and os.path.sameopenfile(self._file, file)
        os.close(file)
        return None if is_ours else self._named()

    def release(self) -> None:
        """Give the lock back; its file stays, for another may have it open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _named(self) -> str:
        try:
            return named(json.loads(self._path.read_text()))
        except (OSError, ValueError):  # it has only just opened the file
            return "another process"


class RunLock:
    """What keeps other jobs out of the directories that a run writes to: run.directory, and run.checkpoints if given.

    Rank 0 holds it for all. Used as a block that ends with the run.

    Raises:
        ValueError: another job holds one of them.
    """

    def __init__(self, config: Config) -> None:
        self._run = config.run.directory
        self._locks = {directory: lock_of(directory) for directory in (self._run, config.run.checkpoints) if directory}

    def __enter__(self) -> RunLock:
        try:
            on_rank_0("cannot train", self._take)
        except BaseException:
            self.__exit__()
            raise
        return self

    def check(self) -> None:
        """Look whether it is still ours. Collective.

        Raises:
            ValueError: another job has taken it over while this one was stopped or cut off.
        """
        on_rank_0("cannot save", self._check)

    def __exit__(self, *_: object) -> None:
        for lock in self._locks.values():
            lock.release()

    def _take(self) -> None:
        for directory, lock in self._locks.items():
            other = lock.take()
            if other:
                raise RunInUse(
                    f"{directory} is in use by {other}{_at_step(self._run)}; wait for that job's end, end it, or give "
                    "another run.directory"
                )

    def _check(self) -> None:
        for directory, lock in self._locks.items():
            other = lock.check()
            if other:
                raise RunInUse(
                    f"{directory} was taken over by {other}, for this job had given no sign of life; nothing more is "
                    "saved there. End that job before you start this one again"
                )


def is_held(run_directory: str) -> str | None:
    """Who trains into a run's directory, `host a, pid 7, since 2026-01-31 12:00:00`; None if nobody does.

    At once on a local disk; elsewhere it watches for a minute whether a lease that is there is renewed.

    >>> is_held("nowhere")
    """
    other = lock_of(run_directory).holder()
    return other and f"{other}{_at_step(run_directory)}"


def lock_of(directory: str) -> Lock:
    """The lock of a directory: on an open file where that is enough."""
    filesystem, path = open_storage(directory)
    if isinstance(filesystem, LocalFileSystem) and file_system_of(path) in LOCAL:
        return FileLock(path)
    return Lease(filesystem, f"{path.rstrip('/')}/{LOCK}", this_process(), named)


def file_system_of(path: str) -> str:
    """The kind of file system that a path lies on, or would.

    >>> file_system_of("/proc/self")
    'proc'
    """
    real = Path(path).resolve()
    kinds = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    return next((kinds[parent] for parent in (real, *real.parents) if parent in kinds), "unknown")


def this_process() -> dict[str, Any]:
    """What a lock says of its holder."""
    now = datetime.now().isoformat(sep=" ", timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "process": identity(os.getpid())}


def named(holder: dict[str, Any]) -> str:
    """The holder, for the user.

    >>> named({"host": "a", "pid": 7, "since": "2026-01-31 12:00:00"})
    'host a, pid 7, since 2026-01-31 12:00:00'
    """
    return f"host {holder['host']}, pid {holder['pid']}, since {holder['since']}"


def _at_step(run_directory: str) -> str:
    with suppress(OSError, IndexError):
        return f", at step {read_log(run_directory)[-1]['step']:,}"
    return ""
