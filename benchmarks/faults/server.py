"""A process that has imported everything once, and forks the ranks of jobs: a start costs a second, not six.

It has one thread, no process group and has called no operator when it forks: what a rank is born with is what an import
leaves behind, and nothing else. It is the ranks' parent, as torchrun's agent would be, and tells the client when one
has ended; the client decides what then becomes of the others.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.faults.points import Fault, die_with_parent, install_on
from rankmixer.launch import cli

SECONDS_TO_START = 180.0  # on a busy machine
SECONDS_AFTER_SIGTERM = 2.0
SECONDS_TO_SHOW_STACKS = 2.0


class Hung(Exception):
    """A job did not end in time; the message holds what its ranks said last, with the stacks of their threads."""


class ForkServer:
    """The client's end.

    Args:
        folder: of the ranks' output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()

    def __enter__(self) -> ForkServer:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def run(
        self,
        ranks: int,
        arguments: Sequence[str],
        *,
        seconds: float,
        faults: Sequence[Fault] = (),
        memory: int | None = None,
    ) -> dict[int, int]:
        """`rankmixer ARGUMENTS` on forked ranks, until all have ended; their statuses, minus the signal if one did it.

        As torchrun does, the first rank that fails ends the others: SIGTERM, and SIGKILL where that does not help.

        Args:
            ranks: how many.
            arguments: of the command line.
            seconds: after which it hangs.
            faults: that strike.
            memory: limit on the address space of a rank, in bytes.

        Raises:
            Hung: after `seconds`.
        """
        request = {"ranks": ranks, "arguments": list(arguments), "faults": [fault.as_json() for fault in faults]}
        request["memory"] = memory
        pids: list[int] = self._ask(request)["pids"]
        statuses: dict[int, int] = {}
        deadline, stopping = time.monotonic() + seconds, False
        while len(statuses) < ranks:
            try:
                ended = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                if not stopping:
                    self._hung(pids, statuses, seconds)
                _signal(pids, statuses, signal.SIGKILL)
                deadline = time.monotonic() + SECONDS_TO_START
                continue
            statuses[pids.index(ended["pid"])] = ended["status"]
            if ended["status"] and not stopping:
                stopping, deadline = True, time.monotonic() + SECONDS_AFTER_SIGTERM
                _signal(pids, statuses, signal.SIGTERM)
        return statuses

    def said(self, rank: int) -> str:
        """What a rank of the last job printed, on stdout and stderr."""
        return (self.folder / f"{rank}.out").read_text(errors="replace")

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request | {"folder": str(self.folder)}) + "\n")
        self._process.stdin.flush()
        return self._lines.get(timeout=SECONDS_TO_START)

    def _start(self) -> None:
        self._stop()
        self._lines = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        )
        self._thread = threading.Thread(target=_listen, args=(self._process.stdout, self._lines), daemon=True)
        self._thread.start()
        self._lines.get(timeout=SECONDS_TO_START)  # it is ready

    def _stop(self) -> None:
        if self._process is not None and self._thread is not None:
            self._process.kill()
            self._process.wait()
            self._thread.join()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()

    def _hung(self, pids: Sequence[int], statuses: Mapping[int, int], seconds: float) -> None:
        _signal(pids, statuses, signal.SIGUSR2)
        time.sleep(SECONDS_TO_SHOW_STACKS)
        _signal(pids, statuses, signal.SIGKILL)
        for _ in range(len(pids) - len(statuses)):
            self._lines.get(timeout=SECONDS_TO_START)
        said = "\n".join(f"rank {rank}:\n{self.said(rank)[-4000:]}" for rank in range(len(pids)))
        raise Hung(f"not ended after {seconds:g} s\n{said}")


def _listen(pipe: Any, lines: queue.Queue[dict[str, Any]]) -> None:
    for line in pipe:
        lines.put(json.loads(line))


def _signal(pids: Sequence[int], statuses: Mapping[int, int], number: signal.Signals) -> None:
    """To those that have not ended: the server has not reaped them, so their ids are still theirs."""
    for rank, pid in enumerate(pids):
        if rank not in statuses:
            try:
                os.kill(pid, number)
            except ProcessLookupError:  # it has ended, and we have not heard yet
                continue


def serve() -> None:
    """The server's end: a request a line on stdin, on stdout the ids of the forked ranks and how each ended."""
    die_with_parent()
    cli._quiet_libraries()
    for module in (
        "rankmixer.launch.job.stream",
        "torch.utils.tensorboard",
    ):  # with rankmixer.launch.job.train and all it needs
        importlib.import_module(module)
    _say({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        ranks, port = request["ranks"], _free_port()
        pids = [_fork(rank, ranks, port, request) for rank in range(ranks)]
        _say({"pids": pids})
        for _ in pids:
            pid, status = os.wait()
            _say({"pid": pid, "status": os.waitstatus_to_exitcode(status)})


def _fork(rank: int, ranks: int, port: int, request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent()
        output = os.open(f"{request['folder']}/{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
        if ranks > 1:
            world = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
            os.environ |= {name: str(value) for name, value in world.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if request["memory"]:
            resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
        install_on(rank, request["faults"])
        status = cli.main(request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
