"""The recipes of docs/launch.md for schedulers, each as a dry run of TorchX's own command line."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.job import Job

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "launch.md").read_text().partition("## Many nodes")[2]
COMMANDS = re.findall(r"^    (torchx run\b.*(?:\n        .*)*)", PAGE, re.MULTILINE)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What the page calls /shared, and the folder of the submission."""
    job = Job(tmp_path)
    tree = yaml.safe_load(job.config.read_text())
    tree["data"]["evaluate_batch_size"] = 32
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(tree))
    config = re.search(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    assert config
    (tmp_path / ".torchxconfig").write_text(config[1].replace("/shared", str(tmp_path)))
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    return tmp_path


def test_the_page_has_recipes() -> None:
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("command", COMMANDS)
def test_recipe_is_accepted(command: str, shared: Path) -> None:
    words = shlex.split(command.replace("\\\n", " ").replace("/shared", str(shared)))
    if "-cfg" in words:  # a recipe that says all by itself
        (shared / ".torchxconfig").unlink()
    environment = {key: value for key, value in os.environ.items() if key != "TORCHXCONFIG"}
    done = subprocess.run(
        [Path(sys.executable).parent / "torchx", "run", "--dryrun", *words[2:]],
        cwd=shared,
        env={**environment, "HOME": str(shared), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    request = done.stdout.partition("=== SCHEDULER REQUEST ===")[2]
    shell = " ".join(request.split())  # YAML folds its lines
    assert "--nnodes 2 --nproc-per-node 8" in shell
    assert f"--config {shared}/my.yaml" in shell
    assert "env NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0 python -m" in shell
    if "kubernetes" in command:
        assert "queue: default" in request
        assert request.count("nvidia.com/gpu: '8'") == 4
        assert request.count("maxRetry: 3") == 3  # the job and two tasks
        assert request.count("action: RestartJob") == 4
        assert request.count("name: TORCHX_JOB_ID") == 2  # by which launch/ranks/retries.py knows a retry
        assert re.search(r"first=VC_TRAIN-RUN(-1)?_0_HOSTS; first=\$\{first//-/_\}; ", shell)
        assert ("claimName: training" in request) == ("--mounts" in command)
    else:
        assert request.count("--requeue --partition=gpu --time=720 ") == 2
        assert request.count("--cpus-per-task=64 --mem=900000 --gpus-per-task=8") == 2
        assert "TORCHX_MAX_RETRIES=3" in request
        assert "first=SLURM_JOB_NODELIST_HET_GROUP_0; first=${first//-/_}; " in request
        assert re.search("#SBATCH --job-name=train-run(-[12])?-0 ", request)
