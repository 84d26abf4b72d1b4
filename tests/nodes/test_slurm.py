"""The recipe of docs/launch.md on a real Slurm of two nodes: it trains, survives what Slurm does, and fails well.

`make test-nodes`, as root, where Debian's packages are: tests/nodes/slurm.py names them.
"""

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.sources.synthetic import write_synthetic
from tests.nodes.slurm import Slurm, missing, slurm
from tests.project.test_launch_page import COMMANDS

pytestmark = pytest.mark.nodes

ROOT = Path(__file__).parents[2]
(RECIPE,) = (command for command in COMMANDS if "-s slurm -cfg" in command)
# A job that is to be disturbed still has 20 s of work when its first checkpoint is there.
EPOCHS, STEPS = 6, 1500
CHECKPOINT = f"step-{STEPS:08d}"


class Submissions:
    """What the page calls /shared, and the folder that jobs are submitted from."""

    def __init__(self, cluster: Slurm, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.truth = write_synthetic(str(folder / "data"), 40_000, users=300, items=200)
        self.config = {
            "feature_schema": f"{folder}/data/schema.yaml",
            "data": {
                "train": f"{folder}/data/train",
                "evaluate": f"{folder}/data/validation",
                "test": f"{folder}/data/test",
                "batch_size": 128,
            },
            "model": {"tokens": 4, "width": 32, "layers": 2},
            "optimizer": {"schedule": {"decay": "linear"}},
            "train": {"epochs": EPOCHS, "checkpoint_every": 50},
        }
        (folder / "my.yaml").write_text(yaml.safe_dump(self.config))
        (folder / "launch").symlink_to(ROOT / "launch")

    def recipe(self, run: str, *more: str) -> list[str]:
        """The page's command, but for one process on each node, since the test's machine has no 16 cores."""
        command = RECIPE.replace("\\\n", " ").replace("/shared/run-1", f"/shared/{run}")
        command = command.replace("2x8", "2x1").replace("=eth0 ", "=eth0,OMP_NUM_THREADS=1 ")
        return [*shlex.split(command.replace("/shared", str(self.folder))), *more]

    def submit(self, words: list[str]) -> str:
        """Submit a job; its number."""
        done = self.cluster.command(*words, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        found = re.fullmatch(r"slurm://torchx/(\d+)", done.stdout.strip())
        assert found, done.stdout
        return found[1]

    def torchx(self, *words: str) -> str:
        """What a command of torchx prints; it must succeed."""
        done = self.cluster.command("torchx", *words, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self, run: str, kind: str) -> list[dict[str, Any]]:
        """The records of one kind in a run's log; none before there is a log."""
        folder = self.folder / run
        return [line for line in read_log(folder) if line["kind"] == kind] if (folder / "log.jsonl").exists() else []

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until something is so; fail with all logs if it is not after some minutes."""
        deadline = time.monotonic() + 400
        while not condition():
            if time.monotonic() > deadline:
                files = sorted(self.folder.glob("slurm-*"))
                said = "\n".join(f"--- {file.name}\n{file.read_text()[-2000:]}" for file in files)
                pytest.fail(f"{what}: not in 400 s\n{self.cluster.output('squeue')}\n{said}\n{self.cluster.logs()}")
            time.sleep(0.3)

    def wait_for_second_start(self, job: str) -> None:
        """Wait until a job is in the queue again, and start it without the two minutes that Slurm would wait."""
        begin_time = ["BeginTime", "BeginTime"]  # of both parts; a job that waits for nodes has other reasons
        self.wait("requeued", lambda: self.cluster.output("squeue", "--noheader", "--format=%r").split() == begin_time)
        self.cluster.output("scontrol", "update", f"jobid={job}", "starttime=now")

    def wait_for_end(self, job: str, state: str) -> None:
        """Wait until both parts of a job have ended as they should, and nothing of it is left."""
        self.wait(f"job {job} ends", lambda: not self.cluster.output("squeue", "--noheader"))
        self.wait(f"no process of job {job}", lambda: not self.cluster.processes())
        both = {f"{job}+0": (state, "n1"), f"{job}+1": (state, "n2")}
        self.wait(f"job {job} is {state}", lambda: self.cluster.states(job) == both)


@pytest.fixture(scope="module")
def submissions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submissions]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with slurm() as cluster:
            yield Submissions(cluster, tmp_path_factory.mktemp("shared"))


def max_step(submissions: Submissions, run: str) -> int:
    """The last training step that a run's log tells of."""
    return max((int(line["step"]) for line in submissions.log(run, "train")), default=0)


def result(submissions: Submissions, run: str) -> dict[str, float]:
    """The numbers that a run's log ends with."""
    (finish,) = submissions.log(run, "finish")
    assert finish["step"] == STEPS
    return {key: value for key, value in finish.items() if key.startswith("test_")}


@pytest.fixture(scope="module")
def undisturbed(submissions: Submissions) -> dict[str, float]:
    """The result of a job that nothing happened to."""
    words = submissions.recipe("run-1")
    done = submissions.cluster.command("torchx", "run", "--wait", *words[2:], cwd=submissions.folder)
    assert done.returncode == 0, done.stderr
    assert "Job finished: SUCCEEDED" in done.stderr
    return result(submissions, "run-1")


def test_the_recipe_trains_on_two_nodes(submissions: Submissions, undisturbed: dict[str, float]) -> None:
    folder = submissions.folder
    assert submissions.cluster.states("1") == {"1+0": ("COMPLETED", "n1"), "1+1": ("COMPLETED", "n2")}
    status = submissions.torchx("status", "slurm://torchx/1")
    assert re.findall(r"train-run-1\[\d\]:\w+", status) == [f"train-run-1[{node}]:SUCCEEDED" for node in (0, 1)]
    (start,) = submissions.log("run-1", "start")
    assert (start["world_size"], start["hosts"]) == (2, "n1, n2")
    assert len(submissions.log("run-1", "evaluate")) == EPOCHS
    assert 0.66 < undisturbed["test_auc"] < submissions.truth["auc"]

    stdout = submissions.torchx("log", "--streams", "stdout", "slurm://torchx/1")
    (line,) = stdout.splitlines()
    assert line.startswith("train-run-1/0 ")
    assert json.loads(line.removeprefix("train-run-1/0 "))["test_auc"] == undisturbed["test_auc"]
    stderr = submissions.torchx("log", "slurm://torchx/1/train-run-1/0")
    assert f"checkpoint at step {STEPS:,}" in stderr
    assert "warning" not in stderr.lower()

    checkpoints = Checkpoints(folder / "run-1" / "checkpoints")
    assert checkpoints.latest() == CHECKPOINT
    files = {path.name for path in (folder / "run-1" / "checkpoints" / CHECKPOINT).iterdir()}
    assert {"rank-00000.safetensors", "rank-00001.safetensors", "manifest.json"} <= files


def test_evaluation_in_a_copy_of_the_folder_finds_the_same(
    submissions: Submissions, undisturbed: dict[str, float]
) -> None:
    (submissions.folder / ".torchxignore").write_text("launch\ndata\nrun-*\nslurm-*\n")
    words = submissions.recipe("run-1")
    words[words.index("launch/components.py:train")] = "rankmixer.evaluate"
    words[words.index("-cfg") + 1] += f",job_dir={submissions.folder / 'copy'}"
    job = submissions.submit(words)
    submissions.wait_for_end(job, "COMPLETED")
    stdout = submissions.torchx("log", "--streams", "stdout", f"slurm://torchx/{job}")
    found = json.loads(stdout.removeprefix("evaluate-run-1/0 "))
    assert found["auc"] == pytest.approx(undisturbed["test_auc"], rel=1e-5)
    assert (submissions.folder / "copy" / "my.yaml").exists()


def test_a_preempted_job_goes_on_and_ends_with_the_same_result(
    submissions: Submissions, undisturbed: dict[str, float]
) -> None:
    job = submissions.submit(submissions.recipe("run-2"))
    submissions.wait("a checkpoint", lambda: bool(submissions.log("run-2", "checkpoint")))
    # More urgent work takes one node; the whole job gives way.
    urgent = ["srun", "--partition=urgent", "--nodelist=n2", "--cpus-per-task=64", "hostname"]
    assert submissions.cluster.output(*urgent) == "n2\n"
    submissions.wait_for_second_start(job)
    # Then its time is running out, as `--signal=USR1@120` would tell it.
    submissions.wait("steps", lambda: max_step(submissions, "run-2") > submissions.log("run-2", "preempted")[0]["step"])
    submissions.cluster.output("scancel", "--signal=USR1", job)
    submissions.wait_for_second_start(job)
    submissions.wait_for_end(job, "COMPLETED")
    first, *later = submissions.log("run-2", "start")
    assert first["resumed_from"] is None
    told = submissions.log("run-2", "preempted")
    assert [line["signal"] for line in told] == ["SIGTERM", "SIGUSR1"]
    assert 0 < told[0]["step"] < told[1]["step"] < STEPS
    # Not a step was done twice.
    assert [line["step"] for line in later] == [line["step"] for line in told]
    assert result(submissions, "run-2") == undisturbed


def test_a_cancelled_job_leaves_nothing_behind_and_can_be_submitted_again(
    submissions: Submissions, undisturbed: dict[str, float]
) -> None:
    job = submissions.submit(submissions.recipe("run-3"))
    submissions.wait("a checkpoint", lambda: bool(submissions.log("run-3", "checkpoint")))
    assert len([command for command in submissions.cluster.processes() if "rankmixer train" in command]) >= 4
    submissions.torchx("cancel", f"slurm://torchx/{job}")
    submissions.wait_for_end(job, "CANCELLED")
    assert not submissions.log("run-3", "finish")
    kept = Checkpoints(submissions.folder / "run-3" / "checkpoints").latest()

    again = submissions.submit(submissions.recipe("run-3"))
    submissions.wait_for_end(again, "COMPLETED")
    _, second = submissions.log("run-3", "start")
    assert second["resumed_from"] == kept
    assert result(submissions, "run-3") == pytest.approx(undisturbed, rel=1e-5)


def test_a_mistake_is_told_before_anything_is_submitted(submissions: Submissions) -> None:
    done = submissions.cluster.command(*submissions.recipe("run-4", "trian.epochs=2"), cwd=submissions.folder)
    assert done.returncode == 2
    assert "unknown key 'trian'; did you mean 'train'" in done.stderr
    assert not submissions.cluster.output("squeue", "--noheader")


def test_a_mistake_made_while_the_job_waits_ends_it_and_is_told_in_its_log(submissions: Submissions) -> None:
    config = submissions.folder / "my.yaml"
    right = config.read_text()
    submissions.cluster.output("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    words = submissions.recipe("run-5")
    words[words.index("--max_restarts") + 1], words[words.index("--max_retries") + 1] = "0", "1"
    job = submissions.submit(words)
    try:
        config.write_text(right.replace("epochs:", "epoch:"))
        submissions.cluster.output("scontrol", "update", "nodename=n1", "state=resume")
        submissions.wait_for_second_start(job)
        submissions.wait_for_end(job, "FAILED")
    finally:
        config.write_text(right)
    assert "FAILED" in submissions.torchx("status", f"slurm://torchx/{job}")
    said = submissions.torchx("log", f"slurm://torchx/{job}")
    assert said.count(f"rankmixer: error: {config}: train: unknown key 'epoch'; did you mean 'epochs'") == 2, said
