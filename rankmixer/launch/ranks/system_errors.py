"""An error of the operating system in a sentence: which file, what happened, what to do."""

from __future__ import annotations

import errno
import os
import traceback

from rankmixer.pipeline.base.errors import SystemFailure

ELSEWHERE = "or name another place, e.g. run.directory or --out"
REMEDIES = {
    errno.ENOSPC: f"free some space there, {ELSEWHERE}",
    errno.EDQUOT: f"the quota is used up: delete something, {ELSEWHERE}",
    errno.EFBIG: f"the file system or `ulimit -f` allows no larger file: raise it, {ELSEWHERE}",
    errno.EACCES: f"let this user read and write there, {ELSEWHERE}",
    errno.EPERM: f"let this user read and write there, {ELSEWHERE}",
    errno.EROFS: f"mount it so that it can be written, {ELSEWHERE}",
    errno.EIO: "the disk or the network file system has failed: look at it (dmesg), then start the same command again",
    errno.ESTALE: "the network file system has lost it: mount it again, then start the same command again",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: close other programs, or raise fs.file-max",
    errno.ENOENT: "it was there, or its folder is missing: put it back, then start the same command again",
    errno.ENOTDIR: "something on the way is a file, not a folder: move it away, or name another place",
    errno.EISDIR: "a folder stands where a file should: move it away, or name another place",
}
# Without a name these tell nothing, and are more likely a mistake of ours.
NEED_A_NAME = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


def explain_system_error(error: BaseException) -> str | None:
    """The sentence for an OSError that a person can do something about, of this rank or another; else None.

    >>> explain_system_error(OSError(errno.ENOSPC, "No space left on device", "/scratch/run/log.jsonl"))
    '/scratch/run/log.jsonl: No space left on device; free some space there, or name another place, ...'
    >>> explain_system_error(FileNotFoundError(2, "No such file or directory")) is None
    True
    """
    if isinstance(error, SystemFailure):
        remedy = REMEDIES.get(error.errno or 0)
        return f"{error}; {remedy}" if remedy else None
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return None
    name = _name(error)
    if name is None and error.errno in NEED_A_NAME:
        return None
    return f"{f'{name}: ' if name else ''}{os.strerror(error.errno)}; {REMEDIES[error.errno]}"


def _name(error: OSError) -> str | None:
    """The file: what the error names or, since a write that fails names none, what the innermost function works on."""
    names = [str(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if names:
        return " -> ".join(names)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for key, value in frame.f_locals.items():
            if isinstance(value, os.PathLike) or (key in ("path", "where", "unfinished") and isinstance(value, str)):
                return str(value)
            if hasattr(value, "write") and isinstance(getattr(value, "name", None), str):
                return str(value.name)
    return None
