"""The Dockerfile as text, and what its make would run; no Docker engine is asked for."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]


def values(instruction: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{instruction} ")]


@pytest.mark.parametrize(("device", "fbgemm"), [("cpu", "fbgemm-gpu-cpu"), ("cuda", "fbgemm-gpu")])
def test_it_installs_as_make_does(tmp_path: Path, device: str, fbgemm: str) -> None:
    (run,) = (value for value in values("RUN") if "make venv" in value)
    arguments = dict(value.partition("=")[::2] for value in values("ARG"))
    assert arguments["DEVICE"] == "cpu"
    makefile = (ROOT / "Makefile").read_text()
    assert f"TORCH ?= {arguments['TORCH']}\n" in makefile
    given = dict(re.findall(r'(\w+)="?([^" ]+)', run.partition("make venv")[2]))
    for name in given:
        assert re.search(rf"^{name} \?= ", makefile, re.MULTILINE), f"the Makefile has no variable {name}"
    words = [f"{name}={value}" for name, value in (given | {"DEVICE": device, "TORCH": arguments["TORCH"]}).items()]
    dry = subprocess.run(
        ["make", "--dry-run", "venv", *words, f"VENV={tmp_path}/venv"], cwd=ROOT, capture_output=True, text=True
    )
    assert dry.returncode == 0, dry.stderr
    assert f"--no-deps -r requirements/{device}.txt" in dry.stdout
    assert f"pip install '{arguments['TORCH']}'" in dry.stdout
    assert re.search(rf"^{fbgemm}==", (ROOT / f"requirements/{device}.txt").read_text(), re.MULTILINE)


def test_the_image_is_small_and_its_user_is_not_root() -> None:
    assert values("USER") == ["rankmixer"]
    assert LINES.index("USER rankmixer") > max(LINES.index(line) for line in LINES if line.startswith("RUN"))
    places = values("WORKDIR")
    assert values("ENV") == [f"PATH={places[0]}/.venv/bin:$PATH"]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    made = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("/")]
    assert not {".git", *made} - set(ignored), "what is made here would be copied into the image"
