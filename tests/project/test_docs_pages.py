"""The commands of the quickstart and of docs/own_data.md, each as it stands on the page; and the site as a whole."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from rankmixer.launch.cli import main
from rankmixer.launch.config.config import json_schema
from rankmixer.pipeline.schema.features import Feature
from rankmixer.pipeline.schema.schema import Schema
from tests.pipeline.sources.test_movielens import official_100k

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def commands(page: str, after: str) -> list[str]:
    """The lines of the page's blocks from a heading on, less those that a shell of the user's runs once."""
    text = (DOCS / page).read_text().partition(f"\n## {after}\n")[2]
    return re.findall(r"^    ((?:rankmixer|cat|python) .*)$", text, re.MULTILINE)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(command: str) -> str:
    """What a command prints; it runs in this process, where torch is imported already."""
    program, *arguments = shlex.split(command)
    out = io.StringIO()
    if program == "cat":
        return Path(arguments[0]).read_text()
    if program == "python":
        return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout
    with contextlib.redirect_stdout(out):
        assert main(arguments) == 0, command
    return out.getvalue()


def own_csv(path: Path, rows: int, label: bool) -> None:
    """Rows as the page shows them: dates, ids with gaps, missing values, lists; some users buy more than others."""
    random = np.random.RandomState(rows)
    names = ["when", "user", "item", "tags", "price", "country", "shown_on"] + ["bought"] * label
    lines = [",".join(names)]
    for row in range(rows):
        user = random.randint(40)
        line = [
            f"2024-06-{row * 28 // rows + 1:02d} {random.randint(24):02d}:{random.randint(60):02d}:00",
            f"u{user * 7}",
            str(random.randint(30) * 131),
            random.choice(["red|new", "sale", "new", "red|sale", ""]),
            random.choice(["", f"{random.rand() * 40:.2f}"]),
            random.choice(["NO", "SE"]),
            random.choice(["mail", "web"]),
        ]
        lines.append(",".join([*line, str(int(user < 20))] if label else line))
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.filterwarnings("ignore")  # the command silences libraries itself, in a process of its own
def test_your_own_data_in_ten_minutes(tmp_path: Path) -> None:
    own_csv(tmp_path / "clicks.csv", 900, label=True)
    own_csv(tmp_path / "new.csv", 50, label=False)
    for source, folder in (("clicks.csv", "logs"), ("new.csv", "new-logs")):
        (tmp_path / folder).mkdir()
        pq.write_table(csv.read_csv(tmp_path / source), tmp_path / folder / "day.parquet")
    printed = {command: run(command) for command in commands("own_data.md", "Import it")}
    assert len(printed) == 12
    imported = [text for command, text in printed.items() if "--time when" in command]
    assert len(imported) == 2
    for text in imported:
        assert "900 rows, 8 columns" in text
        assert "by time: from 2024-06-23" in text
    assert "bought: {}" in printed["cat data/clicks/schema.yaml"]
    (report,) = (text for command, text in printed.items() if "report" in command)
    assert float(re.findall(r'"test_auc": ([\d.]+)', report)[-1]) > 0.9  # the user decides
    scores = csv.read_csv("scores.csv")
    assert scores.column_names == ["user", "item", "bought_probability"]
    assert len(scores) == 50


def test_the_example_on_the_page_can_be_read(tmp_path: Path) -> None:
    text = (DOCS / "own_data.md").read_text()
    header, *rows = re.findall(r"^    (when,.*|2024-.*)$", text, re.MULTILINE)
    (tmp_path / "clicks.csv").write_text("\n".join([header, *rows * 10]))
    assert "label bought: 50.0% are 1" in run("rankmixer data csv clicks.csv --out data/clicks --label bought")


@pytest.mark.filterwarnings("ignore")
def test_quickstart(tmp_path: Path) -> None:
    official_100k(tmp_path / "ml-100k.zip")
    run("rankmixer data ml-100k --out data/ml-100k --source ml-100k.zip")  # what `make demo` fetches
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    *lines, plan = commands("index.md", "The same by hand")
    assert len(lines) == 5
    for command in lines:
        run(command)
    assert (tmp_path / "scores" / "part-00000.parquet").exists()
    assert plan.startswith("rankmixer plan")  # test_what_takes_longer runs it
    assert re.search(r"^demo:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_what_takes_longer(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert "head: " in run(commands("index.md", "The same by hand")[-1])
    own_csv(tmp_path / "clicks.csv", 900, label=True)
    lines = commands("own_data.md", "Import it")
    run(lines[0])
    (in_two_processes,) = re.findall(r"`(torchx run .*?)`", (DOCS / "own_data.md").read_text())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(shlex.split(in_two_processes), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"test_auc"' in done.stderr  # what the ranks print, as TorchX passes it on


def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Links and anchors are checked; every key of the configuration has a line; nothing is asked of another host."""
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(ROOT / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*mkdocs, "--site-dir", tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    reference = (tmp_path / "config.html").read_text()
    models = json.loads(json_schema())["$defs"].values()
    for key in {key for model in models for key in model.get("properties", {})} - set(Schema.model_fields):
        assert f"<code>{key}</code>" in reference
    for kind in get_args(get_args(Feature)[0]):
        assert f">kind: {get_args(kind.model_fields['kind'].annotation)[0]}<" in reference
    assert "RankMixerConfig" in (tmp_path / "api" / "rankmixer_head.html").read_text()
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]* (?:src|href)="(?:https?:)?//[^"]*"', page.read_text()
        )
        assert not loaded, f"{page.name} loads {loaded}"
