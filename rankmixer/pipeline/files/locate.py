"""Which files a path, glob, directory or URL stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fsspec
import pyarrow.fs as pafs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from rankmixer.pipeline.base.errors import data_error
from rankmixer.pipeline.base.storage import open_storage, told_by
from rankmixer.pipeline.files.watch import Watch


def find(path: str, filesystem: Any, watch: Watch) -> dict[str, pafs.FileSystem | None]:
    """The files that `path` stands for -> their filesystem, None for local ones (pyarrow opens those fastest)."""
    fs, inner = resolve(path, filesystem)
    with watch.reading(path):
        try:
            names = _names(path, fs, inner)
        except ValueError:
            raise
        except Exception as error:  # whatever a file system raises
            reason = f"{type(error).__name__}: {told_by(error)}"
            raise data_error(
                path, found=f"no answer ({reason})", expected="files", do="Check path and access."
            ) from None
    if isinstance(fs, LocalFileSystem):
        return dict.fromkeys(names)
    arrow = fs.fs if isinstance(fs, ArrowFSWrapper) else pafs.PyFileSystem(pafs.FSSpecHandler(fs))
    return dict.fromkeys(names, arrow)


def urls(paths: str | Sequence[str], watch: Watch) -> list[str]:
    """The files that paths stand for, sorted, each as a path or URL that can be opened by itself."""
    found: set[str] = set()
    for path in [paths] if isinstance(paths, str) else paths:
        fs, inner = resolve(path, None)
        with watch.reading(path):
            names = _names(path, fs, inner)
        found.update(names if isinstance(fs, LocalFileSystem) else map(fs.unstrip_protocol, names))
    return sorted(found)


def _names(path: str, fs: fsspec.AbstractFileSystem, inner: str) -> list[str]:
    if fs.isfile(inner):
        names = [inner]
    elif fs.isdir(inner):
        names = [name for name in fs.find(inner) if name.endswith(".parquet") and not _hidden(name[len(inner) :])]
        if not names:
            raise ValueError(
                f"{path}: found no .parquet file in this directory; expected at least one. Check the path."
            )
    else:
        names = [name for name in fs.glob(inner) if fs.isfile(name)] if fsspec.core.has_magic(inner) else []
        if not names:
            raise ValueError(f"{path}: found no file; expected a Parquet file, directory or glob. Check the path.")
    return names


def _hidden(path: str) -> bool:
    """Whether other tools keep their own things there, such as _temporary/."""
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def resolve(path: str, filesystem: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path there.

    Arrow's own drivers are not asked: they would be a second way, and that for gs:// tries for minutes without keys.

    Raises:
        ValueError: a URL of a kind that is not known, or that no driver is installed for.
    """
    if isinstance(filesystem, pafs.FileSystem):
        return ArrowFSWrapper(filesystem), path
    if filesystem is not None:
        return filesystem, filesystem._strip_protocol(path)
    return open_storage(path)
