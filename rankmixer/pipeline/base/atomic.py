"""A directory that appears whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankmixer.pipeline.base.local_path import local_path


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`, renamed to `path` when the block ends, removed when it raises.

    Raises:
        ValueError: `path` is already there (it is never written into or over), is a URL, or cannot be made.
    """
    path = Path(local_path(os.fspath(path)))
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists already and would be overwritten; remove it or name another directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise ValueError(f"{path} cannot be made: {error}; name another directory") from error
    try:
        partial.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        yield partial
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
