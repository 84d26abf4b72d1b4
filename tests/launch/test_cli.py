"""The command line, in this process."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rankmixer.launch import cli
from rankmixer.launch.cli import main
from rankmixer.launch.preflight import check_job
from rankmixer.launch.ranks.leave import gloo_threads
from tests.helpers.job import Job


def test_plan_for_machines_that_do_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path)
    overrides = ["plan.tables.user.sharding=table_wise", "data.batch_size=32", "data.evaluate_batch_size=32"]
    assert main(["plan", "--config", str(job.config), "-j", "2x8", "--device", "cuda", *overrides]) == 0
    printed = capsys.readouterr().out
    for table in ("user", "city", "tags"):
        assert table in printed
    assert "fused" in printed
    memory = printed[printed.index("Memory") :]
    assert memory.count("%") == 16
    number = r"[\d,]{4,}"
    head = (
        rf"head: {number} parameters, {number} forward FLOPs an example, {number} in training; tables: 284 parameters"
    )
    assert re.search(head, printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-j", "two"], "-j is 'two'; expected NODESxPROCESSES"),
        (["-j", "1x3"], "data.batch_size is 16, which 3 ranks do not divide"),
        (["-j", "1x2", "--ddr-gb", "1e-9"], "no sharding plan fits 2 ranks"),
        (["-j", "1x2", "plan.ddr_gb=1e-9"], "no sharding plan fits 2 ranks"),
        (["-j", "1x2", "--device", "cuda", "plan.hbm_gb=1e-9"], "no sharding plan fits 2 ranks with 0.0 GiB each"),
        (["--hbm-gb", "80"], "--hbm-gb is the memory of a GPU, and --device is cpu; give --ddr-gb, or --device cuda"),
        (["-j", "1x8", "plan.tables.tags.sharding=row_wise"], "9 rows leave some of 8 ranks without any"),
    ],
)
def test_plans_that_cannot_be(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(tmp_path)
    assert main(["plan", "--config", str(job.config), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_directory_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path)
    assert main(["train", "--config", str(job.config), f"run.directory={job.config}/run"]) == 2
    assert f"but {job.config} is not a directory; give another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("country", "a.parquet, column 'country': found no such column; expected one"),
        ("tags", "metrics.slices: column tags is list<element: int64>; expected one value a row"),
    ],
)
def test_slices_are_checked_before_anything_starts(
    column: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(tmp_path)
    assert main(["train", "--config", str(job.config), f"metrics.slices=[city, {column}]"]) == 2
    assert message in capsys.readouterr().err


def test_prediction_is_checked_before_anything_starts(tmp_path: Path) -> None:
    job = Job(tmp_path)
    predict = ["predict", "--config", str(job.config), "--data", str(tmp_path / "test"), "--out"]
    problem = check_job([*predict, str(tmp_path / "scores")], 2, files_are_here=True)
    assert problem is not None
    assert "no checkpoint 'best'; found none; train first" in problem
    problem = check_job([*predict, str(tmp_path / "test")], 2, files_are_here=True)
    assert problem == f"rankmixer: error: {tmp_path}/test exists; remove it or give another --out"


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Config"


def every_parser(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from every_parser(command)


def test_every_help_ends_with_an_example_that_the_grammar_takes() -> None:
    root = cli.parser()
    found = {parser.prog: parser.format_help() for parser in every_parser(root)}
    assert {"rankmixer", "rankmixer train", "rankmixer data", "rankmixer data csv"} <= set(found)
    for name, text in found.items():
        example = text.splitlines()[-1]
        assert example.startswith(f"example: {name}"), f"{name} --help ends with {example!r}"
        command_line = shlex.split(example.removeprefix("example: rankmixer").split(">")[0])
        assert callable(root.parse_args(command_line).command)


def test_help_imports_no_heavy_library() -> None:
    command = "import sys; from rankmixer.launch.cli import parser; parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "pyarrow", "pydantic", "rich", "torch"} & set(loaded)


@pytest.mark.filterwarnings("ignore")  # the command silences libraries itself, in a process of its own
def test_from_a_csv_to_a_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.RandomState(1)
    lines = ["user,film,genres,price,click"]
    for _ in range(400):
        user = random.randint(30)
        lines.append(f"{user},film {random.randint(9)},a|b,{random.rand():.3f},{int(user < 15)}")
    (tmp_path / "clicks.csv").write_text("\n".join(lines))
    out = tmp_path / "clicks"
    assert main(["data", "csv", str(tmp_path / "clicks.csv"), "--out", str(out)]) == 0
    overrides = {
        "data.evaluate": f"{out}/train",
        "data.test": "null",
        "model": "{tokens: 4, width: 16, layers: 1}",
        "optimizer.dense.lr": 0.01,
        "train": "{epochs: 5, peak_tflops: 1.0}",
        "metrics": "{slices: [film, price]}",
        "run.directory": f"{tmp_path}/run",
    }
    threads = len(gloo_threads())
    arguments = [f"{key}={value}" for key, value in overrides.items()]
    assert main(["train", "--config", str(out / "run.yaml"), *arguments]) == 0
    assert len(gloo_threads()) == threads, "what calls a command from Python keeps a thread of gloo"
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 50
    assert result["auc"] > 0.95  # the user decides
    assert main(["report", str(tmp_path / "run")]) == 0
    report = capsys.readouterr().out
    assert "Quality" in report
    assert json.loads(report.splitlines()[-1])["auc"] == result["auc"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "finished" in page
    assert "AUC by film" in page
    assert main(["evaluate", "--config", str(out / "run.yaml"), *arguments]) == 0
    by_film = json.loads(capsys.readouterr().out.splitlines()[-1])["slices"]["film"]
    assert sum(entry["rows"] for entry in by_film["values"]) == result["rows"]
    assert by_film["values"][0]["auc"] > 0.9
