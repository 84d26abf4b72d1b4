"""How processes end whose token groups leave threads of gloo behind: whole files, whole output, the same status."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.launch.cli import main
from rankmixer.pipeline.journal.journal import read_log
from tests.helpers.job import Job

# A rank that writes what it saw: threads of gloo when exit handlers run, and whether Python was taken down afterwards.
WORKER = """
import atexit, os, sys
from pathlib import Path
from rankmixer.launch import cli
from rankmixer.launch.ranks.leave import gloo_threads

note = Path(sys.argv[1], os.environ["RANK"])

class Witness:
    def __del__(self, write=Path.write_text):
        write(note.with_suffix(".down"), "")

witness = Witness()
atexit.register(lambda: note.write_text(" ".join(gloo_threads())))
cli.command(sys.argv[2:])
"""

# Each child holds a process group and a page of output that no one has flushed when it ends with its status.
CHILDREN = """
import atexit, os, sys, threading, time
import torch.distributed as dist
from rankmixer.launch.ranks.leave import call_and_leave, gloo_threads, leave

def child(status):
    global group
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.new_group(backend="gloo")
    while not gloo_threads():  # a thread takes its name when it runs
        time.sleep(0.01)
    atexit.register(print, "handler", status)
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread", status))).start()
    print("output", status)
    if status == "raises":
        call_and_leave(lambda: 1 / 0)
    leave(status)

for status in (0, 1, 2, 75, 130, "raises"):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        child(status)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def train(job: Job, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Two ranks in one token group, under this project's torchrun, which keeps the status of the rank that failed."""
    worker = job.folder / "worker.py"
    worker.write_text(WORKER)
    command = [
        sys.executable,
        "-m",
        "rankmixer.launch.ranks.torchrun",
        "--nproc-per-node",
        "2",
        str(worker),
        str(job.folder),
    ]
    command += ["train", "--config", str(job.config), "parallel.token_group=2", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def check_how_ranks_ended(folder: Path) -> None:
    for rank in ("0", "1"):
        threads = (folder / rank).read_text().split()
        assert {"gloo_tcp_loop", "pt_gloo_runloop"} <= set(threads), f"rank {rank}: {threads}: nothing is tested"
        assert not (folder / f"{rank}.down").exists(), f"Python was taken down on rank {rank} beside {threads}"


def test_a_finished_job_with_a_token_group_is_whole(tmp_path: Path) -> None:
    job = Job(tmp_path)
    done = train(job)
    assert done.returncode == 0, done.stderr
    check_how_ranks_ended(tmp_path)
    result = json.loads(done.stdout.splitlines()[-1])
    finish = read_log(str(tmp_path / "run"))[-1]
    assert finish["kind"] == "finish"
    assert result["steps"] == finish["steps"] == 12
    assert done.stdout.endswith("}\n")
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()
    assert main(["checkpoint", "verify", str(tmp_path / "run")]) == 0


def test_a_mistake_that_a_rank_meets_in_training_keeps_its_status_and_sentence(tmp_path: Path) -> None:
    job = Job(tmp_path)
    path = tmp_path / "train" / "b.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "user", pa.array([*table["user"].to_pylist()[:-1], 20])), path)
    done = train(job, "data.window_rows=1")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("column 'user': found 20") == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_status_output_handlers_and_threads_are_kept() -> None:
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = []
    for status in (0, 1, 2, 75, 130, "raises"):
        ended = 1 if status == "raises" else status
        expected += [f"output {status}", f"thread {status}", f"handler {status}", f"ended {ended}"]
    assert done.stdout.splitlines() == expected
    assert done.stderr.count("ZeroDivisionError") == 1
    assert "terminate" not in done.stderr
