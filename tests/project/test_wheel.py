"""What is installed works beside folders and packages that have the names of our own: pipeline, embeddings, launch."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.job import Job

ROOT = Path(__file__).parents[2]
BREAKS = "raise RuntimeError('not this one')\n"


def unpacked_wheel(folder: Path) -> Path:
    """The wheel of this tree, built from a copy of its sources, as it lies in site-packages."""
    source, wheels, site = (folder / name for name in ("source", "wheels", "site"))
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rankmixer", "rankmixer_head"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    subprocess.run([*command, str(source)], check=True)
    with zipfile.ZipFile(next(wheels.iterdir())) as wheel:
        wheel.extractall(site)
    return site


@pytest.mark.slow
def test_the_wheel_works_beside_packages_and_folders_of_our_names(tmp_path: Path) -> None:
    site = unpacked_wheel(tmp_path)
    tops = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert tops == {"rankmixer", "rankmixer_head"}
    files = {path.relative_to(site / "rankmixer") for path in (site / "rankmixer").rglob("*.py")}
    there = {path.relative_to(ROOT / "rankmixer") for path in (ROOT / "rankmixer").rglob("*.py")}
    assert files == there
    others, user = tmp_path / "others", tmp_path / "user"  # distributions of these names, and a data team's folders
    for folder in (
        others / "launch",
        others / "pipeline",
        others / "embeddings",
        user / "pipeline",
        user / "embeddings",
    ):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(BREAKS)
    (others / "launch" / "cli.py").write_text(BREAKS)
    (user / "launch.py").write_text(BREAKS)
    job = Job(user)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # TorchX starts python by name
    environment = {**os.environ, "PATH": path, "PYTHONPATH": f"{others}:{site}", "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=user, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    place = run(sys.executable, "-c", "import rankmixer; print(rankmixer.__file__)")
    assert Path(place.strip()).is_relative_to(site)
    short = ["--config", str(job.config), "train.epochs=1"]
    assert "rankmixer train" in run(sys.executable, "-m", "rankmixer", "--help")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(*torchrun, "-m", "rankmixer", "train", *short, f"run.directory={user / 'two'}")
    torchx = Path(sys.executable).with_name("torchx")
    words = [str(torchx), "run", "-s", "local_cwd", "rankmixer.train", "-j", "1x1", "--config", str(job.config)]
    run(*words, "train.epochs=1", f"run.directory={user / 'one'}")
    for name in ("one", "two"):
        assert list((user / name / "checkpoints").glob("step-*"))
