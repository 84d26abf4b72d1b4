"""A scheduler tries again what failed. What failed by the user's mistake fails again: the next try says so at once.

The mark is RUN/failed.json. It stops the tries of one job, by scheduler or torchrun, and never a person: whoever starts
the command gets a try of their own, which removes the mark. Nor does it stop a try to which something has changed:
configuration, command, packages, source, number of ranks, or a file of the data.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import fsspec

from rankmixer.launch.config.config import Config
from rankmixer.launch.ranks.agreement import settings
from rankmixer.launch.ranks.errors import is_user_error
from rankmixer.pipeline.base.collective import ElsewhereError
from rankmixer.pipeline.base.errors import PassingError
from rankmixer.pipeline.files.locate import urls
from rankmixer.pipeline.files.watch import Watch

MARK = "failed.json"


@contextmanager
def marking_mistakes(config: Config) -> Iterator[None]:
    """Leave a mark if the block ends with an error that the same job would meet again."""
    try:
        yield
    except ValueError as error:
        if is_user_error(error) and not _may_pass(error):
            with suppress(OSError):  # of a disk that fails too: then the job is tried again
                _write(config, str(error))
        raise


def check_try(config: Config) -> None:
    """Refuse to try again what the same job has failed with, unless something has changed since.

    Raises:
        ValueError: what it failed with, and what lets it go on.
    """
    path = Path(config.run.directory, MARK)
    try:
        mark = json.loads(path.read_text())
    except (OSError, ValueError):
        return
    if _is_retry(mark["job"]) and mark["digest"] == digest(config):
        raise ValueError(
            f"not tried again, for nothing has changed since {mark['host']} failed at {mark['time']} with: "
            f"{mark['message']}\nA change of the configuration or the data lets this job go on; so does removing "
            f"{path}, or starting the command anew"
        )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"rankmixer: removed {path}: something has changed, or this is a new start", file=sys.stderr)
    with suppress(FileNotFoundError):
        path.unlink()


def digest(config: Config) -> str:
    """Of all that the outcome depends on: what ranks must agree on, how many they are, and the files of the data."""
    found = [settings(config, "", {}), os.environ.get("WORLD_SIZE", "1")]
    for paths in (config.data.train, config.data.evaluate, config.data.test):
        found.append(_state_of(paths))
    return hashlib.blake2b(json.dumps(found, sort_keys=True).encode(), digest_size=16).hexdigest()


def _state_of(paths: str | list[str] | None) -> list[str]:
    """Name, size and time of files, as far as their file system tells."""
    if paths is None:
        return []
    try:
        return [f"{file} {_stamp(file)}" for file in urls(paths, Watch())]
    except Exception as error:  # whatever a file system raises
        return [str(error)]


def _stamp(file: str) -> str:
    filesystem, path = fsspec.url_to_fs(file)
    info = filesystem.info(path)
    return " ".join(str(info.get(key)) for key in ("size", "mtime", "ETag", "LastModified", "updated"))


def _may_pass(error: BaseException) -> bool:
    """True for what another try may not meet: a file system that fails, another job; and what another rank marks."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError | PassingError | ElsewhereError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_retry(job: str | None) -> bool:
    """Is this start a scheduler's or torchrun's, of a job that has been tried before?"""
    counts = (os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(count != "0" for count in counts) or (job is not None and job == _job())


def _job() -> str | None:
    """TorchX's name of the job, which is the same in all tries where the scheduler does not count them (Kubernetes).

    Slurm counts its tries, and its allocations may see many starts by a person.
    """
    return None if "SLURM_JOB_ID" in os.environ else os.environ.get("TORCHX_JOB_ID")


def _write(config: Config, message: str) -> None:
    path = Path(config.run.directory, MARK)
    mark = {
        "message": message,
        "time": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "host": socket.gethostname(),
        "job": _job(),
        "digest": digest(config),
    }
    temporary = path.with_name(f".{MARK}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(mark, indent=1))
    temporary.replace(path)
