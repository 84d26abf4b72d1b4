"""A rank that is killed, raises, stops or is late: one message, no process left, the last checkpoint whole.

All faults strike one run in step 6, between the checkpoints of steps 4 and 8, and the last resumes what the others
left; its end must be that of a run which nothing disturbed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.job import Job

TORCHRUN, OURS = "torch.distributed.run", "rankmixer.launch.ranks.torchrun"
TOKENS = "parallel.token_group=2"
WORKER = Path(__file__).parents[1] / "helpers" / "faulty_worker.py"


class FaultyJob(Job):
    """A job of two ranks under torchrun, of which one goes wrong."""

    status = 1
    left: tuple[str, ...] = ("step-00000004",)

    def fail(self, launcher: str, fault: str, rank: int, *overrides: str, **environment: str) -> str:
        """What it prints; checks its status, and that it leaves no process and no other checkpoint than `left`."""
        launch = [sys.executable, "-m", launcher, "--nproc-per-node", "2", "--shutdown-timeout", "3"]
        train = ["train", "--config", str(self.config), "run.timeout_seconds=10", *overrides]
        done = subprocess.run(
            [*launch, str(WORKER), str(self.folder), fault, str(rank), "6", *train],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2]), **environment},
        )
        assert done.returncode == self.status, done.stdout + done.stderr
        for each in range(2):
            with pytest.raises(ProcessLookupError):
                os.kill(self.pid(each), 0)
        assert tuple(path.name for path in (self.folder / "run" / "checkpoints").glob("step-*")) == self.left
        return done.stderr

    def pid(self, rank: int) -> int:
        return int((self.folder / f"{rank}.pid").read_text())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> FaultyJob:
    return FaultyJob(tmp_path_factory.mktemp("faults"))


def one_message(said: str) -> str:
    """The message, which must be there once, and nothing of what libraries say of it."""
    assert said.count("rankmixer: error:") == 1, said
    assert "gloo" not in said
    message = said.partition("rankmixer: error:")[2]
    return message.partition("\n====")[0].strip()


@pytest.mark.slow
@pytest.mark.nodes
@pytest.mark.parametrize(("launcher", "fault"), [(TORCHRUN, "stopped"), (OURS, "tokens-stopped")])
def test_a_rank_that_stops_is_named_with_the_step(job: FaultyJob, launcher: str, fault: str) -> None:
    message = one_message(job.fail(launcher, fault, 1, TOKENS))
    assert message.startswith("rank 0 (")
    assert "waited 10 s (run.timeout_seconds) for other ranks after step 5; rank 1 (" in message
    assert f", pid {job.pid(1)}) did not answer: ended, stopped or out of reach" in message


@pytest.mark.nodes
@pytest.mark.slow
def test_a_rank_that_is_late_is_named_with_its_line(job: FaultyJob) -> None:
    message = one_message(job.fail(OURS, "tokens-sleeps", 1, TOKENS))
    assert "rank 0 (" in message
    assert "; rank 1 (" in message
    assert f", pid {job.pid(1)}) is at rankmixer_head/token_group.py, line " in message
    assert message.endswith(" after step 5")


@pytest.mark.nodes
@pytest.mark.slow
def test_rank_0_that_stops_and_holds_the_store_is_named(job: FaultyJob) -> None:
    said = job.fail(OURS, "stopped", 0, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    message = one_message(said)
    assert message.startswith("rank 1 (")
    assert "nor does the job's store answer, which is where rank 0 (" in message
    assert f", pid {job.pid(0)}) is: ended, stopped or out of reach" in message


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_with_the_signal(job: FaultyJob) -> None:
    message = one_message(job.fail(OURS, "tokens-killed", 1, TOKENS))
    assert message.startswith("rank 1 (")
    assert f", pid {job.pid(1)}) was ended by SIGKILL; the system does that when memory runs out" in message


@pytest.mark.long
@pytest.mark.slow
def test_a_rank_that_raises_says_so_once_and_the_run_goes_on_as_if_nothing_had_been(job: FaultyJob) -> None:
    said = job.fail(OURS, "tokens-raises", 1, TOKENS)
    assert said.count("LookupError: something is odd") == said.count("Traceback") == 1, said
    assert "gloo" not in said
    resumed = job.result(1, "train")
    undisturbed = job.result(1, "train", f"run.directory={job.folder / 'undisturbed'}")
    assert resumed == pytest.approx(undisturbed, rel=1e-4)
    assert job.losses() == pytest.approx(job.losses("undisturbed"), rel=1e-4)


@pytest.mark.slow
def test_a_rank_with_another_configuration_ends_the_job_before_it_starts(tmp_path: Path) -> None:
    job = FaultyJob(tmp_path)
    job.status, job.left = 2, ()
    message = one_message(job.fail(OURS, "optimizer.dense.lr=0.5", 1))
    assert message.startswith("the ranks of this job do not run the same thing:\n  configuration optimizer.dense.lr: ")
    assert ": 0.001 on rank 0 (" in message
    assert "; 0.5 on rank 1 (" in message
    assert message.endswith(
        "Give all ranks one configuration and one command line, and all hosts one environment and one state of the code"
    )
