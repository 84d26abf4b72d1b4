"""The record of a run: a JSON-lines log, TensorBoard scalars and the progress line."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import psutil
import torch

from rankmixer.pipeline.journal.progress import ProgressLine

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"


class Listener(Protocol):
    """Hears what the journal records; of training, kind "train", what the log has of it. It must not raise or wait."""

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """What happened after `step` steps; values as JSON has them."""

    def close(self) -> None:
        """The run has ended."""


class Journal:
    """The record of a run, kept by rank 0.

    `directory` (local; None only shows) gets `log.jsonl` and TensorBoard's files in `tensorboard/`: numbers as scalars,
    nested lists of shares as pictures. Every line of
    `log.jsonl` is one JSON object with "kind", "step", "time" (seconds since 1970) and the values given; a number that
    is not finite is null. A line is with the operating system before the call returns: a kill loses nothing.

    The progress line (progress.py) shows of a step's values: epoch, loss, examples_per_second, data_wait_share,
    mfu, lr_sparse, lr_dense; memory and the time left are added here. Where stderr is no terminal a line comes every
    `seconds`.

    A run resumed at `resume_step` appends, after dropping what an earlier attempt said of later steps; TensorBoard
    hides those too. A disk that fails under a running job costs a warning, once, and not the job; a log that was
    removed is begun again. Threads may record.

    Raises:
        OSError: the directory cannot be made or written at the start.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     with Journal(directory, total_steps=100, quiet=True) as journal:
    ...         journal.step(50, loss=0.5, examples_per_second=1200.0)
    ...         journal.event("evaluate", 50, auc=0.75)
    ...     [(line["kind"], line["step"], line.get("auc")) for line in read_log(directory)]
    [('train', 50, None), ('evaluate', 50, 0.75)]
    """

    def __init__(
        self,
        directory: str | None,
        *,
        total_steps: int | None = None,
        resume_step: int = 0,
        seconds: float = 10.0,
        quiet: bool = False,
        listener: Listener | None = None,
    ) -> None:
        self.directory = directory
        self._listener = listener
        self.resume_step = resume_step
        self._log = None if directory is None else _open_log(Path(directory), resume_step)
        self._progress = None if quiet else ProgressLine(total_steps, seconds)
        self._torn = False
        self._lock = threading.RLock()
        self._board: SummaryWriter | None = None
        self._failures: set[str] = set()

    def step(self, step: int, **values: Any) -> None:
        """Record that `step` training steps are done: kind "train"."""
        values |= memory_here()
        with self._lock:
            self._record("train", step, values)
            if self._listener is not None:
                self._listener.event("train", step, {name: _plain(value) for name, value in values.items()})
            if self._progress is not None:
                self._progress.step(step, values)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Record what happened after `step` steps: an evaluation, a checkpoint, a note. Always shown."""
        with self._lock:
            self._record(kind, step, values)
            if self._listener is not None:
                self._listener.event(kind, step, {name: _plain(value) for name, value in values.items()})
            if self._progress is not None:
                shown = [_named(name, value) for name, value in values.items() if _is_shown(value)]
                self._progress.say("  ".join([f"{kind} at step {step:,}", *shown]))

    def note(self, kind: str, step: int, **values: Any) -> None:
        """Record what nobody need see at once."""
        with self._lock:
            self._record(kind, step, values)

    def close(self) -> None:
        """Finish the progress line and close the files. Closing twice is fine."""
        with self._lock:
            if self._progress is not None:
                self._progress.close()
            with self.survive(TENSORBOARD):
                if self._board is not None:
                    self._board.close()
            with self.survive(LOG):
                if self._log is not None:
                    self._log.close()
            if self._listener is not None:
                self._listener.close()
            self._progress = self._board = self._log = self._listener = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._log is None:
            return
        values = {name: _plain(value) for name, value in values.items()}
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with self.survive(LOG):
            self._reopen()
            # A write that fails may leave half a line. The next one then starts with a new line.
            content = b"\n" * self._torn + json.dumps(line, allow_nan=False).encode() + b"\n"
            self._torn = True
            self._torn = self._log.write(content) < len(content)
        with self.survive(TENSORBOARD):
            self._add_to_board(kind, step, values)

    def _reopen(self) -> None:
        """Begin a log again that was removed, which a file that stays open does not tell; and TensorBoard's with it."""
        assert self.directory is not None
        if self._log is not None and not os.fstat(self._log.fileno()).st_nlink:
            self._log.close()
            self._log = _open_log(Path(self.directory), None)
            self._torn, self._board = False, None
            print(f"warning: {Path(self.directory, LOG)} was removed; it begins again here", file=sys.stderr)

    def _add_to_board(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self.directory is None or TENSORBOARD in self._failures:
            return
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            _quiet_the_boards_thread()
            # What an earlier attempt wrote for this step and later ones is hidden.
            self._board = SummaryWriter(str(Path(self.directory, TENSORBOARD)), purge_step=self.resume_step + 1)
        for name, value in values.items():
            if type(value) in (int, float):
                self._board.add_scalar(f"{kind}/{name}", value, step)
            elif isinstance(value, list):  # nested lists of shares, as a picture: the last dimension to the right
                shares = torch.tensor(value)
                self._board.add_image(f"{kind}/{name}", shares.view(-1, shares.shape[-1]), step, dataformats="HW")
        self._board.flush()

    @contextmanager
    def survive(self, file: str) -> Iterator[None]:
        """Turn an error of the disk, which TensorBoard's thread may wrap in anything, into a warning, once a file."""
        try:
            yield
        except Exception as error:
            if file not in self._failures and self.directory is not None:
                self._failures.add(file)
                with suppress(OSError):
                    print(f"warning: {Path(self.directory, file)}: {error}; training goes on", file=sys.stderr)


def read_log(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's `log.jsonl`, oldest first. A torn line (a kill, a full disk) is passed over.

    Raises:
        FileNotFoundError: the directory has no log.
    """
    return [line for line, _ in _parsed(Path(directory, LOG))]


def _parsed(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each whole line of a log, as an object and as its bytes."""
    with path.open("rb") as log:
        for content in log:
            with suppress(ValueError):
                yield json.loads(content), content.rstrip(b"\n") + b"\n"


@functools.cache
def _quiet_the_boards_thread() -> None:
    """What ends TensorBoard's thread, a full disk as a rule, is raised at the next flush too, and told once there."""
    hook = threading.excepthook

    def quiet(ended: threading.ExceptHookArgs) -> None:
        if not type(ended.thread).__module__.startswith("tensorboard."):
            hook(ended)

    threading.excepthook = quiet


def _open_log(directory: Path, resume_step: int | None) -> BinaryIO:
    """Open the log to append, without the lines after `resume_step`. Unbuffered: a write is a system call."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOG
    if path.exists() and resume_step is not None:
        kept = directory / f".{LOG}.tmp"
        with kept.open("wb") as file:
            file.writelines(content for line, content in _parsed(path) if line["step"] <= resume_step)
            file.flush()
            os.fsync(file.fileno())
        kept.replace(path)
    return path.open("ab", buffering=0)


def _plain(value: Any) -> Any:
    """`value` as JSON has it: numbers of torch and numpy as Python's, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _is_shown(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list)


def _named(name: str, value: Any) -> str:
    """A value for the person who watches: sizes in MB, times in seconds."""
    if name == "seconds":
        return f"{value:.2f} s"
    if name == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if name == "bytes_per_second":
        return f"{value / 1e6:,.0f} MB/s"
    return f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}"


def memory_here() -> dict[str, int]:
    """What this process holds, and of the GPU's memory the most it held."""
    memory = {"rss_bytes": psutil.Process().memory_info().rss}
    if torch.cuda.is_initialized():
        memory["cuda_bytes"] = torch.cuda.max_memory_reserved()
    return memory
