"""One training job over two hosts, which are network namespaces: whole, and when a host or the cable is lost.

A job that went on after a loss must equal the undisturbed one bit for bit: it has the same ranks, on CPU, and a
checkpoint holds all that the next step depends on.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.sources.synthetic import write_synthetic
from tests.nodes.network import Network, cannot_make_hosts, two_hosts

REASON = cannot_make_hosts()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

ROWS = 14_000  # eight tenths of them for training
BATCH = 16
STEPS = 700
EVERY = 300  # steps between checkpoints: seconds
LOSS = 350  # the step after which something is lost
TIMEOUT = "run.timeout_seconds=20"  # more than the time between the starts of two processes on a busy machine
LIMIT = 500  # seconds after which a test gives up waiting; without TIMEOUT collectives may take 600


class TwoHostJob:
    """A job, and one torchrun agent on each host.

    Args:
        network: the hosts.
        folder: of the run, its configuration and the output of the agents.
        log: folder of a synthetic log.
        overrides: of the configuration.
    """

    def __init__(self, network: Network, folder: Path, log: Path, *overrides: str) -> None:
        self.network, self.folder, self.overrides = network, folder, overrides
        self.agents: dict[int, subprocess.Popen[bytes]] = {}
        folder.mkdir()
        tree = {
            "feature_schema": str(log / "schema.yaml"),
            "data": {
                "train": str(log / "train"),
                "evaluate": str(log / "validation"),
                "test": str(log / "test"),
                "batch_size": BATCH,
                "evaluate_batch_size": 512,
                "window_rows": 4096,
            },
            "model": {"tokens": 4, "width": 16, "layers": 1},
            "train": {"evaluate_every": EVERY, "log_steps": 1, "peak_tflops": 1.0},
            "run": {"directory": str(folder / "run"), "keep": 9},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(tree))

    def start(self, *numbers: int) -> None:
        """Start the agent of each of these hosts, as docs/launch.md has it."""
        environment = ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", "OMP_NUM_THREADS=1", "LOGLEVEL=INFO"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-id", "1", "--rdzv-endpoint", "node-0:29500"]
        torchrun += ["--max-restarts", "2"]
        train = ["-m", "rankmixer", "train", "--config", str(self.folder / "run.yaml"), *self.overrides]
        for number in numbers:
            command = ["env", *environment, *torchrun, *train]
            self.agents[number] = self.network.hosts[number].start(command, self._output(number))

    def said(self, number: int) -> str:
        """What the processes of a host have said so far."""
        return self._output(number).read_text(errors="replace")

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The lines of the run's log of one kind, without their times."""
        log = read_log(self.folder / "run") if (self.folder / "run" / "log.jsonl").exists() else []
        return [{key: value for key, value in line.items() if key != "time"} for line in log if line["kind"] == kind]

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.lines("train")}

    def until(self, what: str, happens: Callable[[], bool]) -> None:
        """Wait for something; fail with what the hosts have said if it does not come."""
        deadline = time.monotonic() + LIMIT
        while not happens():
            assert time.monotonic() < deadline, "\n\n".join([f"in vain: {what}", self.said(0), self.said(1)])
            time.sleep(0.05)

    def steps(self) -> int:
        """How many steps are done."""
        return max(self.losses(), default=0)

    def until_rejoined(self, number: int) -> None:
        """Wait until a host's agent has ended its processes and goes to meet the other again."""
        self.until(f"node-{number} joins again", lambda: self.said(number).count("Rendezvous'ing worker group") == 2)

    def end(self, number: int) -> int:
        """Wait for the agent of a host; return its exit status."""
        agent = self.agents[number]
        self.until(f"the end of node-{number}", lambda: agent.poll() is not None)
        return int(agent.returncode)

    def check_success(self) -> None:
        """Wait for both agents; fail with what they have said if one failed."""
        assert [self.end(0), self.end(1)] == [0, 0], self.said(0) + self.said(1)

    def newest_checkpoint(self) -> str:
        return max(path.parent.name for path in self._checkpoints.glob("*/manifest.json"))

    def weights(self, checkpoint: str) -> dict[str, str]:
        """Checksums of the tensors of a checkpoint, by file: tables, head, optimizers, random state."""
        manifest = json.loads((self._checkpoints / checkpoint / "manifest.json").read_text())
        return {file: entry["xxh3_128"] for file, entry in manifest["files"].items() if file.endswith(".safetensors")}

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "run" / "checkpoints"

    def _output(self, number: int) -> Path:
        return self.folder / f"{self.network.hosts[number].name}.txt"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with two_hosts(tmp_path) as network:
        yield network


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "log"
    write_synthetic(str(folder), ROWS, users=500, items=200)
    return folder


@pytest.fixture(scope="module")
def undisturbed(log: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoHostJob:
    folder = tmp_path_factory.mktemp("undisturbed")
    with two_hosts(folder) as network:
        job = TwoHostJob(network, folder / "job", log)
        job.start(0, 1)
        job.check_success()
    assert [line["step"] for line in job.lines("checkpoint")] == [300, 600, 700]
    return job


@pytest.fixture
def running(network: Network, log: Path, undisturbed: TwoHostJob, tmp_path: Path) -> Callable[..., TwoHostJob]:
    """Start a job, given overrides, and return when it is where something will be lost, between two checkpoints."""

    def run(*overrides: str) -> TwoHostJob:
        job = TwoHostJob(network, tmp_path / "job", log, *overrides)
        job.start(0, 1)
        job.until(f"step {LOSS}", lambda: job.steps() >= LOSS)
        return job

    return run


def check_end(job: TwoHostJob, undisturbed: TwoHostJob, reached: int) -> None:
    """Did the job go on from the checkpoint before the loss, at step `reached`, to the very end of the other?"""
    job.check_success()
    assert EVERY < reached < 2 * EVERY
    assert [line["resumed_from"] for line in job.lines("start")] == [None, f"step-{EVERY:08d}"]
    assert job.losses() == undisturbed.losses()
    assert list(job.losses()) == list(range(1, STEPS + 1))
    for kind in ("evaluate", "finish"):
        assert job.lines(kind) == undisturbed.lines(kind)
    assert job.weights(f"step-{STEPS:08d}") == undisturbed.weights(f"step-{STEPS:08d}")


@pytest.mark.slow
def test_a_whole_job(network: Network, log: Path, tmp_path: Path) -> None:
    job = TwoHostJob(network, tmp_path / "job", log, "train.max_steps=20", "train.evaluate_every=10")
    before = network.hosts[0].bytes_received()
    job.start(0, 1)
    job.check_success()
    assert network.hosts[0].bytes_received() - before > 100_000
    assert [line["world_size"] for line in job.lines("start")] == [2]
    assert list(job.losses()) == list(range(1, 21))
    assert [line["step"] for line in job.lines("evaluate")] == [10, 20]
    assert job.newest_checkpoint() == "step-00000020"
    (finish,) = job.lines("finish")
    assert finish["test_rows"] == ROWS // 10


@pytest.mark.nodes
def test_host_1_loses_its_processes(running: Callable[..., TwoHostJob], undisturbed: TwoHostJob) -> None:
    job = running()
    job.network.hosts[1].kill()
    job.until_rejoined(0)  # at once, for connections break
    reached = job.steps()
    assert "rankmixer: torchrun starts again, restart 1 of 2, once all hosts have joined" in job.said(0)
    job.start(1)
    check_end(job, undisturbed, reached)


@pytest.mark.nodes
def test_host_1_is_cut_off_and_replaced(running: Callable[..., TwoHostJob], undisturbed: TwoHostJob) -> None:
    job = running(TIMEOUT)
    job.network.cut()
    job.until_rejoined(0)  # after the timeout, for no connection breaks
    reached = job.steps()
    assert "rankmixer: torchrun starts again, restart 1 of 2, once all hosts have joined" in job.said(0)
    job.network.replace()
    job.start(1)
    check_end(job, undisturbed, reached)


@pytest.mark.nodes
def test_the_cable_is_cut_and_joined_again(running: Callable[..., TwoHostJob], undisturbed: TwoHostJob) -> None:
    job = running(TIMEOUT)
    job.network.cut()
    job.until_rejoined(0)
    reached = job.steps()
    job.network.mend()  # nobody starts anything: the agent of host 1 is still there
    check_end(job, undisturbed, reached)


@pytest.mark.nodes
def test_host_1_is_replaced_before_the_timeout(running: Callable[..., TwoHostJob], undisturbed: TwoHostJob) -> None:
    job = running()
    job.network.replace()
    job.start(1)
    job.until_rejoined(0)  # once the old host 1 has given no sign of life for a while
    reached = job.steps()
    assert "rankmixer: torchrun starts again" not in job.said(0)  # none of the two restarts is spent
    check_end(job, undisturbed, reached)


@pytest.mark.nodes
def test_host_0_is_lost_and_the_job_submitted_again(
    running: Callable[..., TwoHostJob], undisturbed: TwoHostJob
) -> None:
    job = running()
    job.network.hosts[0].kill()
    assert job.end(1) == 1  # the rendezvous was on host 0
    assert "RendezvousConnectionError" in job.said(1)
    reached = job.steps()
    job.start(0, 1)
    check_end(job, undisturbed, reached)
