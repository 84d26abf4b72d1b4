"""Paths of what is written to this machine's file system alone: URLs are refused, `~` is the home directory."""

import os
import re

# s3://bucket/x, file:///x, simplecache::s3://x; and s3:/x, which is what a path makes of the first.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(/|:)")


def local_path(path: str, remedy: str = "write it there, and copy it afterwards") -> str:
    """The path, `~` expanded; without this a URL would silently become a local folder called `s3:`.

    Args:
        path: as the user gave it.
        remedy: what to do instead of giving a URL.

    Raises:
        ValueError: it is a URL.

    >>> local_path("runs/1")
    'runs/1'
    >>> local_path("s3://run", "give --out a folder")
    Traceback (most recent call last):
        ...
    ValueError: 's3://run' is a URL; expected a path on this machine or a disk that it mounts: give --out a folder
    """
    if _URL.match(path):
        raise ValueError(f"{path!r} is a URL; expected a path on this machine or a disk that it mounts: {remedy}")
    return os.path.expanduser(path)
