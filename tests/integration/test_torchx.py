"""`torchx run` end to end: two processes on one node, two nodes of one, and mistakes found before anything starts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.pipeline.journal.journal import read_log
from tests.helpers.job import Job

BIN = Path(sys.executable).parent


def torchx_run(job: Job, *arguments: str, configuration: str = "") -> subprocess.CompletedProcess[str]:
    config = job.folder / "torchx.ini"
    config.write_text(f"[local_cwd]\nlog_dir = {job.folder / 'torchx'}\n{configuration}")
    return subprocess.run(
        [BIN / "torchx", "run", "-s", "local_cwd", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        # python must be found by name, where the environment's other programs are.
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TORCHXCONFIG": str(config)},
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@pytest.mark.long
@pytest.mark.slow
def test_one_node_of_two_processes_and_two_nodes_of_one_train_alike(tmp_path: Path) -> None:
    job = Job(tmp_path)
    results = []
    for component, shape in (("rankmixer.train", "1x2"), ("launch/components.py:train", "2x1")):
        run = tmp_path / shape
        arguments = [component, "-j", shape, "--config", str(job.config), "--rdzv_port", str(free_port())]
        done = torchx_run(job, *arguments, "--", f"run.directory={run}", "train.epochs=1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert read_log(str(run))[0]["hosts"] == socket.gethostname()
        (finish,) = (line for line in read_log(str(run)) if line["kind"] == "finish")
        results.append({key: value for key, value in finish.items() if key not in ("kind", "time")})
        assert (run / "checkpoints" / "step-00000006" / "manifest.json").exists()
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert value == pytest.approx(results[1][key], rel=1e-5), key


def test_a_mistake_ends_torchx_with_status_2(tmp_path: Path) -> None:
    job = Job(tmp_path)
    done = torchx_run(job, "rankmixer.train", "-j", "1x3", "--config", str(job.config))
    assert done.returncode == 2
    assert "data.batch_size is 16, which 3 ranks do not divide; use 15 or 18" in done.stderr
    predict = ["rankmixer.predict", "-j", "1x2", "--config", str(job.config), "--data", str(tmp_path / "test")]
    done = torchx_run(job, *predict, "--out", str(tmp_path / "out"), "--keys", "nobody")
    assert done.returncode == 2
    assert "nobody" in done.stderr
    (tmp_path / "train" / "b.parquet").write_bytes(b"")
    done = torchx_run(job, "rankmixer.train", "-j", "1x2", "--config", str(job.config))
    assert done.returncode == 2
    assert "b.parquet" in done.stderr


@pytest.mark.long
@pytest.mark.slow
def test_a_row_that_cannot_be_read_is_said_once(tmp_path: Path) -> None:
    job = Job(tmp_path)
    table = pq.read_table(tmp_path / "train" / "b.parquet")
    users = [20, *table["user"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, "user", pa.array(users)), tmp_path / "train" / "b.parquet")
    done = torchx_run(job, "rankmixer.train", "-j", "1x2", "--config", str(job.config))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert said.count("b.parquet, row group 0, row 0, column 'user': found 20") == 1, said
    assert "Traceback" not in said
