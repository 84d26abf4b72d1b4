"""Storage behind a path or URL (fsspec: s3://, gs://, ...): opened, checked, written, its failures in one sentence.

Drivers raise anything: OSErrors without a number, botocore's and aiohttp's own exceptions, ImportError where one is
not installed. An object store has no rename and no folders: a file appears when it is written whole, and a folder is
moved file by file.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from rankmixer.pipeline.base.errors import PassingError

TELL_SECONDS = 10.0  # a storage that does not answer is told of after so long,
TELL_AGAIN_SECONDS = 60.0  # and again so long after
_OURS = ("rankmixer", "rankmixer_head", "torch", "safetensors")
_here = threading.local()


class StorageError(PassingError):
    """A storage that refuses, fails or does not answer."""


def open_storage(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem behind a path or URL, and the path there. Nothing is looked at.

    Raises:
        ValueError: a URL of a kind that is not known, or that no driver is installed for.

    >>> open_storage("memory://a/b")[1]
    '/a/b'
    >>> open_storage("nosuch://a/b")
    Traceback (most recent call last):
    ValueError: nosuch://a/b: found a URL that fsspec does not open (Protocol not known: nosuch); expected a path or ...
    """
    try:
        filesystem, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise ValueError(
            f"{url}: found no driver for this kind of URL ({error}); install it in the job's Python environment"
        ) from None
    except Exception as error:  # ValueErrors of fsspec, and what a driver says of the environment
        raise ValueError(
            f"{url}: found a URL that fsspec does not open ({told_by(error)}); expected a path or a URL such as "
            "s3://bucket/folder"
        ) from error
    return filesystem, str(path)


def check_storage(url: str, key: str | None = None) -> None:
    """Look at a place that need not exist yet, so that a storage that will not serve is known before work starts.

    Args:
        url: path or URL; a local one is not looked at.
        key: what names it, for the message: `run.checkpoints`, `--out`.

    Raises:
        ValueError: no driver, no bucket, no access, or no answer.
    """
    named = f"{key} {url}" if key else url
    try:
        filesystem, path = open_storage(url)
        if isinstance(filesystem, LocalFileSystem):
            return
        with reading(url):
            filesystem.invalidate_cache()
            try:
                filesystem.ls(path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                bucket = path.partition("/")[0]  # "" where paths begin with a slash: there are none
                if bucket and not _may_exist(filesystem, bucket):
                    raise ValueError(f"{url}: found no bucket {bucket}; make it, or name another place") from None
    except ValueError as error:
        raise type(error)(str(error).replace(url, named, 1) if key else str(error)) from error.__cause__


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Make one sentence of a storage that fails while it is read, and a line on stderr of one that does not answer.

    That a file is missing is left to the caller.

    Raises:
        StorageError: the path, what the storage said, what to do.
    """
    with _telling(path):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except Exception as error:
            if not is_of_storage(error):
                raise
            raise StorageError(_sentence(path, "read", error)) from error


@contextmanager
def writing(filesystem: AbstractFileSystem, path: str) -> Iterator[None]:
    """The same for one that is written. Errors of a local disk stay as they are: system_errors.py knows them."""
    if isinstance(filesystem, LocalFileSystem):
        yield
        return
    with _telling(path):
        try:
            yield
        except Exception as error:
            if not is_of_storage(error):
                raise
            raise StorageError(_sentence(path, "written", error)) from error


@contextmanager
def telling(filesystem: AbstractFileSystem, path: str) -> Iterator[None]:
    """Say on stderr that the block still waits for a storage that is not local: where errors stay what they are."""
    if isinstance(filesystem, LocalFileSystem):
        yield
        return
    with _telling(path):
        yield


@contextmanager
def _telling(path: str) -> Iterator[None]:
    """Say on stderr that the block still waits, the outermost block of a thread only."""
    if getattr(_here, "wait", None) is not None:
        yield
        return
    wait = _here.wait = _Wait(path)
    thread = threading.Thread(target=wait.tell, name="storage-wait", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _here.wait = None
        wait.has_ended.set()
        thread.join()


class _Wait:
    """A block of one thread, and since when the storage has given no sign of life in it."""

    def __init__(self, path: str) -> None:
        self.has_ended = threading.Event()
        self._path = path
        self.begin()

    def begin(self) -> None:
        self._since, self._due = time.monotonic(), TELL_SECONDS

    def tell(self) -> None:
        while not self.has_ended.wait(TELL_SECONDS / 4):
            waited = time.monotonic() - self._since
            if waited >= self._due:
                self._due = waited + TELL_AGAIN_SECONDS
                tell_of_wait(self._path, waited)


def went_on() -> None:
    """Called between the blocks of a long read or write: a storage that is at work is not one that stalls."""
    wait = getattr(_here, "wait", None)
    if wait is not None:
        wait.begin()


def tell_of_wait(path: str, seconds: float) -> None:
    """One line on stderr."""
    with suppress(OSError):
        print(f"rankmixer: still waiting for {path}, {seconds:.0f} s so far", file=sys.stderr, flush=True)


def is_of_storage(error: BaseException) -> bool:
    """Whether an exception is a storage's: an OSError, or of a driver's or client's own class; not ours or Python's.

    >>> [is_of_storage(error) for error in (PermissionError("Forbidden"), TypeError("a mistake"), StorageError())]
    [True, False, False]
    """
    if isinstance(error, ValueError):  # of what was read, such as YAML's
        return False
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package not in {*_OURS, *sys.stdlib_module_names}


def move_directory(filesystem: AbstractFileSystem, source: str, target: str) -> None:
    """Rename a directory that holds files; where there is no rename, copy them and then remove them.

    `target` must not exist. If a copy fails, what was copied is removed again and `source` stays whole.
    """
    if type(filesystem).mv is not AbstractFileSystem.mv:  # a rename of its own
        filesystem.mv(source, target, recursive=True)
        return
    # fsspec's own mv takes the key of a folder, which an object store may not have, for one more file to copy.
    files = filesystem.find(source)
    try:
        for file in files:
            parent, _, _ = f"{target}{file[len(source) :]}".rpartition("/")
            filesystem.makedirs(parent, exist_ok=True)
            filesystem.cp_file(file, f"{target}{file[len(source) :]}")
            went_on()
    except BaseException:
        with suppress(Exception):
            filesystem.rm(target, recursive=True)
        raise
    filesystem.rm(source, recursive=True)


def write_whole(filesystem: AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a file that appears whole or not at all, in a folder that exists."""
    if isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(f"{path}.unfinished", content)
        filesystem.mv(f"{path}.unfinished", path)
    else:
        filesystem.pipe_file(path, content)


def _may_exist(filesystem: AbstractFileSystem, bucket: str) -> bool:
    """False only where the storage says so: who may not ask for a bucket may still use a folder of it."""
    with suppress(Exception):
        return bool(filesystem.exists(bucket))
    return True


def _sentence(path: str, verb: str, error: Exception) -> str:
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        do = "check the keys of this job, and what they may do there"
    elif isinstance(error, FileNotFoundError):
        do = "make the bucket or folder, or name another place"
    else:
        do = "this may pass: try again when the storage answers, or name another place"
    return f"{path} cannot be {verb}: {type(error).__name__}: {told_by(error)}; {do}"


def told_by(error: BaseException) -> str:
    """What an error says, on one line; or its cause, where a driver has put its own class in place of the client's."""
    told = error.__cause__ if isinstance(error, OSError) and error.__cause__ else error
    return " ".join(str(told).split())
