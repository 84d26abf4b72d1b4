"""Told to leave at any moment, again and again, a run ends as one that nobody disturbed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from rankmixer.launch.cli import _quiet_libraries
from rankmixer.launch.config.config import load_config
from rankmixer.launch.job.train import train
from rankmixer.launch.model.optimizers import RankerOptimizer
from rankmixer.launch.ranks.leave import call_and_leave
from rankmixer.launch.ranks.preemption import Preemption, sigterm_unwinds
from rankmixer.pipeline.base.errors import Preempted
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.metrics.metrics import Metrics
from tests.helpers.job import Job

# What is interrupted in each attempt: a step, or one of its evaluations; by which signal. Evaluations are due after
# steps 4, 6, 8 and 12, checkpoints after 3, 6, 9 and 12; the last is followed by the pass over the test rows.
Attempt = tuple[str, int, signal.Signals]
ATTEMPTS: list[Attempt] = [
    ("step", 1, signal.SIGTERM),
    ("step", 4, signal.SIGUSR1),
    ("evaluation", 1, signal.SIGTERM),
    ("step", 8, signal.SIGTERM),
    ("evaluation", 2, signal.SIGUSR1),
    ("evaluation", 2, signal.SIGTERM),
    ("evaluation", 1, signal.SIGTERM),
]
LEFT_AT = [0, 3, 4, 8, 12, 12, 12]


def interrupt(kind: str, number: int, what: signal.Signals) -> None:
    """Send this process a signal before a step, or in the second batch of an evaluation, counted in this process."""
    before_step, update, evaluations = RankerOptimizer.follow_schedule, Metrics.update, [0, 0]
    begin, listeners = Preemption.__init__, list[Preemption]()

    def remember(self: Preemption) -> None:
        begin(self)
        listeners[:] = [self]

    setattr(Preemption, "__init__", remember)  # noqa: B010

    def tell() -> None:
        os.kill(os.getpid(), what)
        while not listeners[0].is_told_to_leave():  # a thread hears it
            time.sleep(0.01)

    def follow_schedule(self: Any, done: int) -> None:
        if kind == "step" and done + 1 == number:
            tell()
        before_step(self, done)

    def add(self: Any, *arguments: Any) -> None:
        evaluations[:] = [id(self), evaluations[1] + (id(self) != evaluations[0])]
        update(self, *arguments)
        if kind == "evaluation" and evaluations[1] == number:
            tell()

    patch(follow_schedule, add)


def patch(follow_schedule: Callable[..., Any], update: Callable[..., Any]) -> None:
    setattr(RankerOptimizer, "follow_schedule", follow_schedule)  # noqa: B010
    setattr(Metrics, "update", update)  # noqa: B010


def be_rank(
    rank: int, world_size: int, ports: list[int], config: str, overrides: list[str], attempts: list[Attempt]
) -> None:
    """On one rank of a job: train undisturbed, then in one attempt after another; the last rank hears the signals."""
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "localhost"})
    os.environ.update({"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)})
    torch.set_num_threads(1)
    _quiet_libraries()
    undisturbed = [*overrides, f"run.directory={Path(config).with_name('undisturbed')}"]
    untouched = RankerOptimizer.follow_schedule, Metrics.update
    for number, attempt in enumerate([None, *attempts, None]):
        os.environ["MASTER_PORT"] = str(ports[number])
        patch(*untouched)
        if attempt and rank == world_size - 1:
            interrupt(*attempt)
        try:
            train(load_config(config, overrides if number else undisturbed))
        except Preempted:
            assert attempt
        else:
            assert attempt is None


def be_rank_and_leave(*arguments: Any) -> None:
    call_and_leave(partial(be_rank, *arguments))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def records(log: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in log if line["kind"] == kind]


@pytest.mark.parametrize(
    ("ranks", "some"),
    [
        (2, slice(1, 3)),
        pytest.param(1, slice(None), marks=pytest.mark.long),
        pytest.param(2, slice(None), marks=pytest.mark.long),
    ],
)
def test_a_run_told_to_leave_again_and_again_ends_bit_for_bit_as_an_undisturbed_one(
    ranks: int, some: slice, tmp_path: Path
) -> None:
    job = Job(tmp_path)
    overrides = [f"data.test={tmp_path / 'test'}", "train.checkpoint_every=3"]
    ports = free_ports(len(ATTEMPTS) + 2)
    arguments = (ranks, ports, str(job.config), overrides, ATTEMPTS[some])
    mp.start_processes(be_rank_and_leave, arguments, nprocs=ranks, start_method="spawn")

    lines, expected = (read_log(tmp_path / run) for run in ("run", "undisturbed"))
    told = records(lines, "preempted")
    assert [(line["step"], line["signal"]) for line in told] == [
        (step, attempt[2].name) for step, attempt in zip(LEFT_AT, ATTEMPTS, strict=True)
    ][some]
    for kind in ("finish", "evaluate"):
        assert records(lines, kind) == records(expected, kind)
    assert job.losses() == job.losses("undisturbed")
    final, weights = job.weights("run", 12), job.weights("undisturbed", 12)
    assert final.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(final[name], tensor), name


def test_early_stopping_is_not_forgotten_by_a_job_told_to_leave_in_the_test_pass(tmp_path: Path) -> None:
    job = Job(tmp_path)
    still = ["optimizer.dense.lr=1e-12", "optimizer.sparse.lr=1e-12", "train.early_stopping.patience=1"]
    config = load_config(str(job.config), [*still, f"data.test={tmp_path / 'test'}"])
    untouched = RankerOptimizer.follow_schedule, Metrics.update
    interrupt("evaluation", 3, signal.SIGTERM)
    try:
        with pytest.raises(Preempted, match="at step 6; step-00000006 is saved; the same command goes on"):
            train(config)
    finally:
        patch(*untouched)
    train(config)
    (finish,) = records(read_log(tmp_path / "run"), "finish")
    assert finish["steps"] == 6


SECOND = """
import os, signal, time
from rankmixer.launch.ranks import preemption
asked = []

class Clock:
    now = 100.0

    def monotonic(self):
        asked.append(self.now)
        return self.now

preemption.time = clock = Clock()
told = preemption.Preemption()
with told.listening():
    for number, later in enumerate((0.0, 5.0)):
        clock.now = 100.0 + later
        os.kill(os.getpid(), signal.SIGTERM)
        while told.signal is None or len(asked) <= number:
            time.sleep(0.01)
        print(told.signal.name, flush=True)
    clock.now = 105.1
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)
"""


def test_a_second_signal_ends_the_process_but_not_the_same_one_said_twice() -> None:
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout.split() == ["SIGTERM"] * 2
    assert done.stderr == "rankmixer: stopped by a second signal, SIGTERM: nothing is saved\n"


def test_a_command_of_one_process_removes_what_is_half_written() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, sigterm_unwinds():
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
