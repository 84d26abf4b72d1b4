"""Ctrl-C, as a terminal sends it to a group of processes: training saves, other commands leave nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rankmixer.launch.ranks import preemption
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.journal.journal import read_log
from tests.helpers.job import Job

TORCHRUN = ["-m", "rankmixer.launch.ranks.torchrun", "--nproc-per-node", "2"]
SAID = r"rankmixer: interrupted at step (\d+); step-(\d+) is saved; the same command goes on"
# A command, one function of which says that it is there and then takes ten minutes; `it` still does its work first.
SLOW = """
import importlib, sys, time
from rankmixer.launch.cli import main
path, *arguments = sys.argv[1:]
module, *names, last = path.split(" ")
owner = importlib.import_module(module)
for name in names:
    owner = getattr(owner, name)
it = getattr(owner, last)
def slow(*args, **kwargs):
    it(*args, **kwargs)
    print("there", flush=True)
    time.sleep(600)
setattr(owner, last, slow)
sys.exit(main(arguments))
"""
# A rank that does not mind Ctrl-C.
DEAF = """
import signal, time
from rankmixer.launch.ranks.torchrun import end_with_launcher
end_with_launcher()
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("there", flush=True)
time.sleep(600)
"""


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command in the foreground of a terminal of its own, as far as signals go."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
        start_new_session=True,
        # Whoever runs the tests in the background has told them to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_line(process: subprocess.Popen[str], is_it: Callable[[str], bool]) -> str:
    assert process.stdout is not None
    line = next((line for line in process.stdout if is_it(line)), None)
    assert line is not None, process.communicate()
    return line


def press(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Ctrl-C: the status, and what the processes have said of it."""
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    return process.returncode, [line for line in said.splitlines() if line.startswith("rankmixer")]


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_saves_and_goes_on(ranks: int, tmp_path: Path) -> None:
    job = Job(tmp_path)
    command = [*(TORCHRUN if ranks > 1 else []), "-m", "rankmixer", "train", "--config", str(job.config)]
    with started(*command, "train.epochs=100000", "train.evaluate_every=1000000") as process:
        log = tmp_path / "run" / "log.jsonl"
        while not (log.exists() and any(line["step"] >= 7 for line in read_log(log.parent))):
            assert process.poll() is None
            time.sleep(0.1)
        status, said = press(process)
    assert status == 130
    told = [re.fullmatch(SAID, line) for line in said]
    assert [match is not None for match in told] == [True] + [False] * (ranks - 1), said
    assert said[1:] == ["rankmixer: stopped by SIGINT"] * (ranks - 1)
    assert told[0] is not None
    step = int(told[0][1])
    assert Checkpoints(tmp_path / "run" / "checkpoints").names()[-1] == f"step-{told[0][2]}" == f"step-{step:08d}"
    with started(*command, f"train.max_steps={step + 2}", "train.epochs=100000") as process:
        process.communicate(timeout=120)
    lines = read_log(tmp_path / "run")
    assert [line.get("resumed_from") for line in lines if line["kind"] == "start"] == [None, f"step-{step:08d}"]
    assert [line["signal"] for line in lines if line["kind"] == "preempted"] == ["SIGINT"]
    assert lines[-1]["steps"] == step + 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_predict_leaves_nothing(ranks: int, tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.result(1, "train", "train.epochs=1")
    out = str(tmp_path / "scores")
    (tmp_path / "slow.py").write_text(SLOW)
    command = [
        *(TORCHRUN if ranks > 1 else []),
        str(tmp_path / "slow.py"),
        "rankmixer.launch.rows.parts ParquetParts write",
    ]
    predict = ["predict", "--config", str(job.config), "--data", str(tmp_path / "test"), "--out", out, "--keys", "row"]
    with started(*command, *predict, PYTHONPATH=os.getcwd()) as process:
        for _ in range(ranks):
            wait_for_line(process, lambda line: line == "there\n")
        assert list(tmp_path.glob("scores*"))
        status, said = press(process)
    assert (status, said) == (130, ["rankmixer: stopped by SIGINT" if ranks > 1 else "rankmixer: interrupted"])
    assert not list(tmp_path.glob("scores*"))


CSV = "user,item,click\n" + "".join(f"{row % 7},{row % 5},{row % 2}\n" for row in range(100))


@pytest.mark.parametrize(
    ("slow", "arguments"),
    [
        ("rankmixer.pipeline.learn.build_vocabulary _write", "vocab --config run.yaml city --out words"),
        ("rankmixer.launch.job.job Metrics update", "evaluate --config run.yaml"),
        ("rankmixer.pipeline.sources.import_table write_proposal", "data csv clicks.csv --out imported --label click"),
        ("rankmixer.pipeline.sources.synthetic _schema", "data synthetic --out made --rows 200"),
        (
            "rankmixer.pipeline.profile.data_profile DataProfile read",
            "data profile test --config run.yaml --out profile.json",
        ),
    ],
)
def test_other_commands_leave_nothing_and_say_one_line(
    slow: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path)
    (tmp_path / "clicks.csv").write_text(CSV)
    if arguments.startswith("evaluate"):
        job.result(1, "train", "train.epochs=1")
    before = {path for path in tmp_path.rglob("*") if "run/" not in str(path)}
    root = os.getcwd()
    monkeypatch.chdir(tmp_path)
    with started("-c", SLOW, slow, *arguments.split(), PYTHONPATH=root) as process:
        wait_for_line(process, lambda line: line == "there\n")
        assert press(process) == (130, ["rankmixer: interrupted"])
    after = {path for path in tmp_path.rglob("*") if "run/" not in str(path) and path.name != "words"}
    assert after == before


def test_a_second_one_ends_training_at_once() -> None:
    script = (
        "import os, signal, time; from rankmixer.launch.ranks.preemption import Preemption\n"
        "with Preemption().listening():\n"
        "    for seconds in (0.1, 0.7, 5):\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(seconds); print(seconds, flush=True)\n"
    )
    with started("-c", script) as process:
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out.split()) == (130, ["0.1", "0.7"])
    assert said == "rankmixer: stopped by a second signal, SIGINT: nothing is saved\n"


def test_a_second_one_ends_torchrun_and_its_ranks_at_once(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    with started(*TORCHRUN, str(tmp_path / "deaf.py"), PYTHONPATH=os.getcwd()) as process:
        for _ in range(2):
            wait_for_line(process, lambda line: line == "there\n")
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.0)
        assert process.poll() is None
        status, said = press(process)  # which hears the end of a pipe that the ranks hold too
        assert (status, said) == (130, ["rankmixer: stopped by a second signal, SIGINT: nothing is saved"])


def test_a_job_in_the_background_does_not_hear_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        told = preemption.Preemption()
        with told.listening():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGUSR1)
            while not told.is_told_to_leave():
                time.sleep(0.01)
        assert told.signal == signal.SIGUSR1
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
