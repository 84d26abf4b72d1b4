"""TorchX copies a clone for Slurm (job_dir), Ray, Docker and Kubernetes: all that git knows, to be imported there."""

import io
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from torchx import specs
from torchx.workspace.dir_workspace import DirWorkspaceMixin, TmpDirWorkspaceMixin
from torchx.workspace.docker_workspace import DockerWorkspaceMixin

ROOT = Path(__file__).parents[2]
FOLDERS = ("rankmixer", "rankmixer_head")


def git(*words: str, cwd: Path) -> str:
    return subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with its virtual environment, data and runs elsewhere behind links, and what tools leave."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git repository")
    clone, elsewhere = (tmp_path_factory.mktemp(name) for name in ("clone", "elsewhere"))
    for name in git("ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).exists():  # not removed since the last commit
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    git("init", "--quiet", cwd=clone)
    for name in (".venv", "venv", "environment"):
        venv.create(clone / name, symlinks=True)
        if not (clone / name / "lib64").exists():  # as Python makes it on Linux
            (clone / name / "lib64").symlink_to("lib")
    (elsewhere / "rows.parquet").write_bytes(b"")
    for name in ("data", "runs"):
        (clone / name).symlink_to(elsewhere)
    for name in (
        "__pycache__/x.pyc",
        "rankmixer/__pycache__/x.pyc",
        "rankmixer.egg-info/PKG-INFO",
        ".mypy_cache/3.11/x",
    ):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(b"")
    return clone


def role() -> specs.Role:
    return specs.Role(name="train", image="registry/image:1")


def to_job_dir(workspace: str, folder: Path) -> Path:
    DirWorkspaceMixin().build_workspace_and_update_role(role(), workspace, {"job_dir": str(folder / "job")})
    return folder / "job"


def to_temporary_folder(workspace: str, folder: Path) -> Path:
    copied = role()
    with mock.patch("torchx.workspace.dir_workspace.mkdtemp", return_value=str(folder)):
        TmpDirWorkspaceMixin().build_workspace_and_update_role(copied, workspace, {})
    return Path(copied.image)


def to_docker(workspace: str, folder: Path) -> Path:
    """The build context, unpacked as the Dockerfile that TorchX adds copies it; the engine is a stand-in."""
    engine = mock.MagicMock()
    contexts: list[bytes] = []

    def build(*, fileobj: Any, **_: Any) -> list[dict[str, Any]]:
        contexts.append(fileobj.read())
        return [{"aux": {"ID": "sha256:1"}}]

    engine.images.list.return_value = []
    engine.api.build.side_effect = build
    DockerWorkspaceMixin(docker_client=engine).build_workspace_and_update_role(role(), workspace, {"image_repo": None})
    with tarfile.open(fileobj=io.BytesIO(contexts[0])) as tar:
        tar.extractall(folder, filter="data")
    (folder / "Dockerfile.torchx").unlink()
    return folder


@pytest.mark.parametrize("copy", [to_job_dir, to_temporary_folder, to_docker])
def test_a_clone_with_its_virtual_environment_is_copied_whole(copy: Any, clone: Path, tmp_path: Path) -> None:
    copied = copy(f"file://{clone}", tmp_path)
    found = {str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()}
    found = {name for name in found if not name.startswith("environment/")}  # of a name that no pattern knows
    tracked = git("ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    assert found == {name for name in tracked if (ROOT / name).is_file()}
    for name in found:
        assert (copied / name).read_bytes() == (ROOT / name).read_bytes(), name
    script = (
        f"import sys; sys.path.insert(0, {str(copied)!r})\n"
        "import rankmixer.launch.job.train, rankmixer.launch.components, rankmixer_head\n"
        f"names = [name for name in sys.modules if name.partition('.')[0] in {FOLDERS}]\n"
        "print(*{sys.modules[name].__file__ for name in names}, sep=chr(10))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = done.stdout.splitlines()
    assert len(files) > 50
    assert all(Path(file).is_relative_to(copied) for file in files), files


def test_no_link_to_a_directory_is_part_of_the_project() -> None:
    ignored = (ROOT / ".torchxignore").read_text().splitlines()
    tracked = git("ls-files", cwd=ROOT).splitlines() if (ROOT / ".git").exists() else []
    links = [name for name in tracked if (ROOT / name).is_symlink() and (ROOT / name).is_dir()]
    assert not set(links) - set(ignored), "TorchX cannot copy a link to a directory: name it in .torchxignore"
