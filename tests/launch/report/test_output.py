"""What commands print: for a pipe, for a terminal, and for a machine."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankmixer.launch.cli import main
from rankmixer.launch.report.output import show
from rankmixer.launch.report.report import metrics_table
from tests.helpers.job import ROWS, Job

COMMANDS = ("vocab", "plan", "profile", "report", "evaluate")
ESCAPES = ("\x1b", "\r", "\b")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Command lines over one trained run, whose `city` has a vocabulary."""
    job = Job(tmp_path_factory.mktemp("output"))
    tree = yaml.safe_load(job.config.read_text())
    tree["feature_schema"]["features"]["city"] = {"kind": "id", "vocabulary": str(job.folder / "city.txt"), "dim": 8}
    tree["model"]["tokens"] = 2
    job.config.write_text(yaml.safe_dump(tree))
    config = ["--config", str(job.config)]
    commands = {
        "vocab": ["vocab", *config],
        "train": ["train", *config, "train.epochs=1"],
        "plan": ["plan", *config, "-j", "1x2"],
        "profile": ["data", "profile", str(job.folder / "train"), *config],
        "report": ["report", str(job.folder / "run")],
        "evaluate": ["evaluate", *config],
    }
    return commands


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> Run:
    def run(name: str, *more: str) -> tuple[str, str]:
        status = main([*commands[name], *more])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out, printed.err

    return run


@pytest.mark.filterwarnings("ignore")  # the command silences libraries itself, in a process of its own
def test_a_pipe_gets_plain_lines_and_a_machine_one_object(run: Run, tmp_path: Path) -> None:
    printed: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in ("vocab", "train", *COMMANDS[1:]):
        printed[name], said = run(name)
        assert not any(escape in printed[name] + said for escape in ESCAPES), name
        assert max(map(len, printed[name].splitlines()[:-1]), default=0) <= 120
    for name in COMMANDS:
        out, _ = run(name, "--json", *(["--out", str(tmp_path)] if name == "vocab" else []))
        assert out.count("\n") == 1, f"{name} --json prints one line"
        found[name] = json.loads(out)
    assert json.loads(printed["evaluate"].splitlines()[-1]) == found["evaluate"]
    assert json.loads(printed["report"].splitlines()[-1]) == found["report"]
    assert f"{found['evaluate']['click/auc']:.4f}" in printed["evaluate"]
    assert json.loads(printed["train"]).keys() == found["report"].keys() - {"state", "report"}
    (vocabulary,) = found["vocab"]["vocabularies"]
    assert vocabulary["path"].endswith("city.txt")
    assert f"{vocabulary['words']} words of {vocabulary['values']} values" in printed["vocab"]
    assert found["profile"]["profile"]["rows"] == ROWS
    plan = found["plan"]
    assert plan["cluster"]["world_size"] == len(plan["bytes"]) == 2
    assert {shard["table"] for shard in plan["shards"]} == {"user", "city", "tags"}
    for rank, sizes in enumerate(plan["bytes"]):
        assert sizes["tables"] == sum(shard["bytes"] for shard in plan["shards"] if shard["rank"] == rank)
    assert (
        f"head: {plan['head_parameters']:,} parameters, {plan['flops_per_example']:,} forward FLOPs an "
        in printed["plan"]
    )
    assert f"tables: {plan['table_parameters']:,} parameters" in printed["plan"]


def test_a_mistake_leaves_stdout_empty(commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*commands["plan"], "--json", "data.batch_size=3"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("rankmixer: error: ")


def on_a_terminal(statement: str, **environment: str) -> str:
    """What a Python statement writes to a pseudo-terminal that is its stdout and stderr."""
    ours, theirs = pty.openpty()
    unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
    variables = {key: value for key, value in os.environ.items() if key not in unset}
    variables |= {"TERM": "xterm", **environment}
    subprocess.run([sys.executable, "-c", statement], stdout=theirs, stderr=theirs, env=variables, check=True)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed and nothing is left
            break
        if not part:
            break
        written += part
    os.close(ours)
    return written.decode()


def test_colours_on_a_terminal_and_none_where_they_are_not_wanted() -> None:
    statement = (
        "from rankmixer.launch.ranks import errors; from rankmixer.launch.report import output; "
        "from rich.table import Table; t = Table('metric'); t.add_row('auc'); "
    )
    statement += "output.show({}, t, '[red]plain[/red]', as_json=False); errors.report('rankmixer: error: a mistake')"
    colours = ("\x1b[31m", "\x1b[1;31m", "\x1b[1;36m", "\x1b[36m")
    written = on_a_terminal(statement)
    assert any(colour in written for colour in colours)
    assert "\x1b[1;31mrankmixer: error:\x1b[0m a mistake" in written
    assert "[red]plain[/red]" in written
    assert not any(colour in on_a_terminal(statement, NO_COLOR="1") for colour in colours)
    assert "\x1b" not in on_a_terminal(statement, TERM="dumb")


def test_numbers_that_are_not_defined(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"auc": float("nan"), "rows": 12345.0, "ne": 0.5}
    show({"slices": [metrics]}, metrics_table("step-00000004", metrics), as_json=False, ends_in_json=True)
    *table, line = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"slices": [{"auc": None, "rows": 12345.0, "ne": 0.5}]}
    shown = "\n".join(table)
    for text in ("step-00000004", "undefined", "12,345", "0.5000"):
        assert text in shown
