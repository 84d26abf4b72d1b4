"""TorchX's trackers: what a run is, how good it gets and what it leaves, told to those of the job's environment.

Trackers run in a process of their own, which runs this file. They are anybody's code: one that hangs, crashes or
waits for the other ranks (torchx's for MLflow has a barrier that only rank 0 would reach) must not do so in a rank.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankmixer.launch.config.config import Config

KINDS = ("start", "evaluate", "arrival", "diverged", "preempted", "finish")  # of the journal's events, those told
CURVE = "train"  # steps are told to trackers that know steps
PICTURED = ("plan", "config", "reliability", "slices")  # for report.html; the configuration is told by itself
STATUS = {"finish": "FINISHED", "preempted": "KILLED"}  # of a run that ended with this event; of any other FAILED
SECONDS = float(
    os.environ.get("RANKMIXER_TRACKER_SECONDS", "10")
)  # the end of a job waits so long for trackers that have not recorded everything


class RunTracker:
    """What rank 0 tells the trackers that TORCHX_TRACKERS names; a listener of the journal. Never raises, never waits.

    Args:
        config: the run. Of the feature schema, which a run keeps beside its checkpoints, the digest is told.
    """

    def __init__(self, config: Config) -> None:
        from rankmixer.launch.config.config import dump_config, leaves
        from rankmixer.launch.rows.paths import checkpoints_of

        self.directory, self.checkpoints = os.path.abspath(config.run.directory), checkpoints_of(config).directory
        self._latest: str | None = None
        self._status = "FAILED"
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # trackers are found where this rank would
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rankmixer.launch.report.tracking", str(SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # signals to the whole job are not meant for it: it ends when the pipe does
                env={**os.environ, "PYTHONPATH": path},
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
        except OSError as error:
            self._give_up(error)
        tree = {**dump_config(config), "feature_schema": config.feature_schema.digest()}
        parameters = {key: _scalar(value) for key, value in leaves(tree).items() if value is not None}
        self._tell("begin", directory=self.directory, parameters=parameters, tags={"checkpoints": self.checkpoints})

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Tell what the journal records, if it is of interest."""
        from rankmixer.launch.config.config import leaves

        if kind == "checkpoint":
            self._latest = values["name"]
        if kind not in (*KINDS, CURVE):
            return
        self._status = STATUS.get(kind, "FAILED")
        flat = leaves({name: value for name, value in values.items() if name not in PICTURED})
        values = {name: _scalar(value) for name, value in flat.items() if value is not None}
        if kind == "finish" and self._latest:
            values["checkpoint"] = f"{self.checkpoints}/{values.get('checkpoint') or self._latest}"
        self._tell("event", kind=kind, step=step, time=time.time(), values=values)

    def close(self) -> None:
        """Tell of the report, and wait until all is recorded, but not for long. Closing twice is fine."""
        for name in ("report.html", "log.jsonl"):  # files of some kB; a folder would take the weights with it
            if Path(self.directory, name).exists():
                self._tell("artifact", path=str(Path(self.directory, name)))
        self._tell("close", status=self._status)
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(SECONDS + 5.0)  # it ends by itself after SECONDS, and says why
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _tell(self, call: str, **arguments: Any) -> None:
        if self._process is None or self._process.stdin is None:
            return
        message = json.dumps([call, arguments]).encode() + b"\n"
        try:
            written = os.write(self._process.stdin.fileno(), message)
        except OSError as error:  # it has gone, or has not read for so long that the pipe is full
            self._give_up(error)
            return
        if written < len(message):
            self._give_up(BlockingIOError("it does not read what it is told"))

    def _give_up(self, error: OSError) -> None:
        _warn(f"the trackers' process: {error}")
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
            self._process.kill()
            self._process.wait()
        self._process = None


def tracker_of(config: Config) -> RunTracker | None:
    """The listener that the environment asks for: None where TorchX has configured no tracker."""
    return RunTracker(config) if os.environ.get("TORCHX_TRACKERS") else None


class _Metadata:
    """A run in TorchX's interface, which has one value a key, no steps and no status."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def begin(self, directory: str, parameters: dict[str, Any], tags: dict[str, str]) -> None:
        """The run's directory is among the parameters."""
        self._run.add_metadata(**parameters, **tags)

    def event(self, kind: str, step: int, time: float, values: dict[str, Any]) -> None:
        """TorchX's own tracker reads keys in any order: every step has its own. Those of training would be too many."""
        if kind != CURVE:
            prefix = kind if kind == "finish" else f"{kind}.{step}"
            self._run.add_metadata(**{f"{prefix}.{name}": value for name, value in values.items()})

    def artifact(self, path: str) -> None:
        self._run.add_artifact(name=Path(path).name, path=path)

    def flush(self) -> None:
        pass

    def close(self, status: str) -> None:
        self._run.add_metadata(status=status)
        for tracker in self._run.backends:
            if hasattr(tracker, "close"):
                tracker.close()


class _Backend(threading.Thread):
    """One tracker: builds it, and makes the calls in the order given."""

    def __init__(self, name: str) -> None:
        super().__init__(daemon=True)
        self.name = name
        self.calls: SimpleQueue[tuple[str, dict[str, Any]] | None] = SimpleQueue()
        self.has_failed = False

    def run(self) -> None:
        try:
            run = self._build()
        except BaseException as error:
            self._warn(error)
            return
        is_closed = False
        while (call := self._next(run)) is not None:
            is_closed = is_closed or call[0] == "close"
            self._try(run, *call)
        if not is_closed:  # the rank has gone without a word
            self._try(run, "close", {"status": "FAILED"})

    def _next(self, run: Any) -> tuple[str, dict[str, Any]] | None:
        """The next call; what waits is sent when there is none."""
        with suppress(Empty):
            return self.calls.get_nowait()
        self._try(run, "flush", {})
        return self.calls.get()

    def _try(self, run: Any, method: str, arguments: dict[str, Any]) -> None:
        try:
            getattr(run, method)(**arguments)
        except BaseException as error:
            self._warn(error)

    def _build(self) -> Any:
        """The tracker, alone: what fails here is no other's concern. One of TorchX's interface is spoken to in that."""
        from torchx.tracker.api import (
            ENV_TORCHX_JOB_ID,
            ENV_TORCHX_PARENT_RUN_ID,
            AppRun,
            TrackerBase,
            build_trackers,
            tracker_config_env_var_name,
        )

        trackers = build_trackers({self.name: os.environ.get(tracker_config_env_var_name(self.name))})
        if not trackers:
            importlib.import_module(self.name.partition(":")[0])  # raises what TorchX keeps to itself
            raise LookupError("no entry point of the group torchx.tracker and no module:function")
        if not isinstance(trackers[0], TrackerBase):  # rankmixer.launch.report.mlflow_tracker, which takes more
            return trackers[0]
        run = AppRun(os.environ.get(ENV_TORCHX_JOB_ID, "<UNDEFINED>"), trackers)
        if ENV_TORCHX_PARENT_RUN_ID in os.environ:
            run.add_source(os.environ[ENV_TORCHX_PARENT_RUN_ID])
        return _Metadata(run)

    def _warn(self, error: BaseException) -> None:
        if not self.has_failed:
            self.has_failed = True
            _warn(f"tracker {self.name}: {type(error).__name__}: {error}")


def _warn(what: str) -> None:
    with suppress(OSError):
        print(f"warning: {what}; training goes on", file=sys.stderr, flush=True)


def _scalar(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def main(seconds: float) -> None:
    """Pass on what a rank says on stdin, one call a line, until it ends; then wait so many seconds for the trackers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    logging.getLogger("torchx").setLevel(logging.ERROR)  # what it warns of is said here with its cause
    backends = [_Backend(name) for name in os.environ["TORCHX_TRACKERS"].split(",") if name]
    for backend in backends:
        backend.start()
    for line in sys.stdin.buffer:
        method, arguments = json.loads(line)
        for backend in backends:
            backend.calls.put((method, arguments))
    until = time.monotonic() + seconds
    for backend in backends:
        backend.calls.put(None)
    for backend in backends:
        backend.join(max(0.0, until - time.monotonic()))
        if backend.is_alive():
            _warn(f"tracker {backend.name}: has not recorded everything {seconds:.0f} s after the end")
    sys.stderr.flush()
    os._exit(0)  # without waiting for a thread that hangs


if __name__ == "__main__":
    main(float(sys.argv[1]))
