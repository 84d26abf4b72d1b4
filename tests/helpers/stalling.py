"""A file system in memory that stops answering, for tests."""

from __future__ import annotations

import io
import threading
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Stalling(MemoryFileSystem):
    """While `Stalling.answers` is not set, reads of files whose name holds `Stalling.slow` wait for it."""

    protocol = "stalling"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    answers = threading.Event()
    slow = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("stalling://", "/", 1)))

    def _open(self, path: str, mode: str = "rb", **keys: Any) -> Any:
        return _SlowFile(path, self.cat_file(path)) if mode == "rb" else super()._open(path, mode, **keys)

    def find(self, path: str, *arguments: Any, **keys: Any) -> Any:
        _wait(path)
        return super().find(path, *arguments, **keys)

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        return bytes(self.store[path].getvalue())


class _SlowFile(io.BytesIO):
    def __init__(self, path: str, data: bytes) -> None:
        super().__init__(data)
        self._path = path

    def read(self, *size: Any) -> bytes:
        _wait(self._path)
        return super().read(*size)


def _wait(path: str) -> None:
    if Stalling.slow and Stalling.slow in path:
        Stalling.answers.wait()


fsspec.register_implementation("stalling", Stalling, clobber=True)
