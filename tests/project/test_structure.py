"""What imports what, what is installed, and what the README says is there."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from setuptools import find_packages
from torchx.specs.finder import ModuleComponentsFinder

from rankmixer.launch.ranks.versions import FBGEMM, PAIRS, TESTED_TORCH

ROOT = Path(__file__).parents[2]
PACKAGES = ("rankmixer", "rankmixer_head")
MOST_FILES = 15
LINKS = ("embeddings", "launch", "pipeline")


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
    assert "6 kept, 0 broken" in done.stdout


def copied(tmp_path: Path) -> Path:
    """The tree with its sources, in which a line may be wrong."""
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("rankmixer/pipeline/base/errors.py", "import rankmixer.launch.cli"),
        ("rankmixer/pipeline/base/errors.py", "import rankmixer_head.model"),
        ("rankmixer/pipeline/base/errors.py", "import rankmixer.pipeline.schema.schema"),
        ("rankmixer/pipeline/files/files.py", "import rankmixer.pipeline.read.order"),
        ("rankmixer/embeddings/tables.py", "import rankmixer.pipeline.base.errors"),
        ("rankmixer/embeddings/tables.py", "import rankmixer_head.model"),
        ("rankmixer/launch/config/config.py", "import rankmixer.launch.job.job"),
        ("rankmixer_head/model.py", "import pyarrow"),
        ("rankmixer_head/model.py", "import rankmixer.pipeline.schema.schema"),
    ],
)
def test_import_contracts_can_break(tmp_path: Path, file: str, line: str) -> None:
    with (copied(tmp_path) / file).open("a") as module:
        module.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert " 0 broken" not in done.stdout


def test_a_folder_is_seen_at_a_glance() -> None:
    folders = [
        path
        for top in (*PACKAGES, "benchmarks", "tests")
        for path in (ROOT / top, *(ROOT / top).rglob("*"))
        if path.is_dir()
    ]
    files = {folder: [p.name for p in folder.glob("*.py") if p.name != "__init__.py"] for folder in folders}
    crowded = {str(folder.relative_to(ROOT)): len(names) for folder, names in files.items() if len(names) > MOST_FILES}
    assert not crowded, f"folders of more than {MOST_FILES} files: {crowded}"


def test_every_file_has_its_line_in_the_readme_of_its_package() -> None:
    for readme in [*(ROOT / "rankmixer").glob("*/README.md"), ROOT / "rankmixer_head" / "README.md"]:
        text = readme.read_text()
        for room in {path.parent for path in readme.parent.rglob("*.py")}:
            heading = f"\n**{room.name}**: "
            assert room == readme.parent or heading in text, f"{readme} does not name the room {room.name}"
            part = text.partition(heading)[2] if heading in text else text
            part = part.partition("\n**")[0]
            there = {path.name for path in room.glob("*.py") if path.name != "__init__.py"}
            named = set(re.findall(r"^    (\w+\.py) ", part, re.MULTILINE))
            assert there == named, f"{readme}, {room.name}: {there ^ named}"


@pytest.mark.parametrize("name", LINKS)
def test_a_folder_under_its_bare_name_says_how_it_is_imported(name: str) -> None:
    assert os.readlink(ROOT / name) == f"rankmixer/{name}"
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert f"ImportError: {name} is a folder of rankmixer: import rankmixer.{name}" in done.stderr


def test_no_line_of_the_old_import_names_is_left() -> None:
    old = re.compile(r"(?<![\w./])(from|import) (pipeline|embeddings|launch)\b(?! import rank)|-m (launch|pipeline)\.")
    found = []
    for top in (*PACKAGES, "benchmarks", "tests", "docs", "README.md", "CONTRIBUTING.md", "Makefile"):
        files = [ROOT / top] if (ROOT / top).is_file() else [p for p in (ROOT / top).rglob("*") if p.is_file()]
        for path in files:
            if path.suffix in (".py", ".md", "") and path.name not in ("test_structure.py", "lab_log.md"):
                found += [f"{path}: {line}" for line in path.read_text().splitlines() if old.search(line)]
    assert not found


def test_rankmixer_head_needs_torch_and_jaxtyping_alone() -> None:
    allowed = {"rankmixer_head", "torch", "jaxtyping"} | sys.stdlib_module_names
    for path in (ROOT / "rankmixer_head").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, f"{path.name} imports {names}"


def test_every_package_is_installed() -> None:
    include = setup_cfg()["options.packages.find"]["include"].split()
    found = set(find_packages(str(ROOT), include=include))
    folders = {path.parent.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert found == {".".join(folder.parts) for folder in folders}, "a folder of sources without __init__.py"


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
