"""What imports what, what is installed, and what the README says is there."""

import ast
import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from torchx.specs.finder import ModuleComponentsFinder

from launch.versions import FBGEMM, PAIRS, TESTED_TORCH

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "embeddings", "rankmixer_head", "launch")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(lines: str) -> list[Requirement]:
    stripped = (line.split("#")[0].strip() for line in lines.splitlines())
    return [Requirement(line) for line in stripped if line]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, no_logo=True))"
    return subprocess.run([sys.executable, "-c", command], cwd=folder, capture_output=True, text=True)


def test_import_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pipeline/a.py", "import launch.a"),
        ("pipeline/a.py", "import embeddings.a"),
        ("embeddings/a.py", "from pipeline.a import b"),
        ("embeddings/a.py", "import rankmixer_head.a"),
        ("rankmixer_head/a.py", "import pyarrow"),
        ("rankmixer_head/a.py", "import pipeline.schema"),
    ],
)
def test_import_contracts_can_break(tmp_path: Path, file: str, line: str) -> None:
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "a.py").touch()
    (tmp_path / "pipeline" / "schema.py").touch()
    (tmp_path / "embeddings" / "a.py").write_text("import pipeline.schema\n")
    with (tmp_path / file).open("a") as module:
        module.write(line + "\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "2 kept, 1 broken" in done.stdout


def test_rankmixer_head_needs_torch_and_jaxtyping_alone() -> None:
    allowed = {"rankmixer_head", "torch", "jaxtyping"} | sys.stdlib_module_names
    for path in (ROOT / "rankmixer_head").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, f"{path.name} imports {names}"


def test_every_package_is_installed() -> None:
    assert tuple(setup_cfg()["options"]["packages"].split()) == PACKAGES
    found = {path.parent.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert found == set(PACKAGES), "packages are flat; list a new one in setup.cfg"


def test_torchx_finds_our_components_beside_its_own() -> None:
    group = setup_cfg()["options.entry_points"]["torchx.components"]
    points = dict(line.split(" = ") for line in group.splitlines() if line)
    names: set[str] = set()
    for name, module in points.items():
        finder = ModuleComponentsFinder(module, "" if name.startswith("_") else name)
        names |= {component.name for component in finder.find() if not component.validation_errors}
    builtin = {component.name for component in ModuleComponentsFinder("torchx.components", "").find()}
    assert {"rankmixer.train", "rankmixer.evaluate", "rankmixer.predict"} <= names
    assert {"dist.ddp", "utils.echo"} <= builtin & names


@pytest.mark.parametrize(("device", "fbgemm"), [("cpu", FBGEMM[0]), ("cuda", FBGEMM[1])])
def test_the_pins_are_complete_and_fit_the_extras(device: str, fbgemm: str) -> None:
    pins = {pin.name: pin for pin in requirements((ROOT / f"requirements/{device}.txt").read_text())}
    assert all([spec.operator for spec in pin.specifier] == ["=="] for pin in pins.values())
    versions = {name: next(iter(pin.specifier)).version for name, pin in pins.items()}
    assert {name for name in pins if name.startswith("fbgemm")} == {fbgemm}
    assert "torch" not in pins

    options = setup_cfg()
    for needed in requirements(options["options"]["install_requires"]):
        assert needed.name == "torch" or needed.specifier.contains(versions[needed.name]), needed
    extra = {needed.name: str(needed.specifier) for needed in requirements(options["options.extras_require"][device])}
    fitting = f"=={PAIRS[TESTED_TORCH]}.0"
    assert extra == {"torch": f"=={TESTED_TORCH}.*", fbgemm: fitting, "torchrec": fitting}
    assert {name: str(pins[name].specifier) for name in (fbgemm, "torchrec")} == {fbgemm: fitting, "torchrec": fitting}


def readme_tree() -> dict[str, bool]:
    """Paths of the tree under `## Files`, one a line, four blanks a level -> whether it is a folder left closed."""
    section = (ROOT / "README.md").read_text().split("\n## Files\n")[1].split("\n## ")[0]
    tree: dict[str, bool] = {}
    open_folders: list[str] = []
    for line in section.splitlines():
        if not line.startswith("    "):
            continue
        depth = (len(line) - len(line.lstrip())) // 4 - 1
        path = "".join(open_folders[:depth]) + line.split()[0]
        open_folders[depth:] = [line.split()[0]]
        tree[path] = path.endswith("/")
        tree.pop("".join(open_folders[:depth]), None)  # its files follow: it is open
    return tree


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """Every file has its line; only folders that are no packages may stay closed, with one line for all they hold."""
    tree = readme_tree()
    missing = [path for path in tree if not (ROOT / path).exists()]
    assert not missing, f"README.md lists under Files what is not there: {missing}"
    assert not {f"{package}/" for package in PACKAGES} & set(tree), "list the files of the packages"
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    else:
        listed = [path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).glob("*.py")]
    closed = tuple(path for path, is_closed in tree.items() if is_closed)
    unlisted = [path for path in listed if path not in tree and not path.startswith(closed)]
    unlisted = [path for path in unlisted if not path.endswith("__init__.py") and (ROOT / path).exists()]
    assert not unlisted, f"README.md does not list under Files: {unlisted}"
