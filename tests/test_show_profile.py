"""`rankmixer data profile`, as a user runs it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from launch.cli import main
from launch.profile_tables import tables
from launch.show_profile import findings
from tests.job import ROWS, Job

DOCS = Path(__file__).parents[1] / "docs" / "data.md"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("COLUMNS", "80")
    return Job(tmp_path)


def profiled(job: Job, *arguments: str) -> dict[str, Any]:
    out = job.folder / "new" / "profile.json"
    command = ["data", "profile", str(job.folder / "train"), "--config", str(job.config), "--out", str(out)]
    assert main([*command, *arguments]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["profile.json"]
    return dict(json.loads(out.read_text()))


def test_tables_and_json_say_the_same(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    found = profiled(job)
    assert (found["version"], found["against"], found["drift"]) == (1, None, None)
    assert found["profile"]["rows"] == ROWS
    printed = capsys.readouterr().out
    assert "90 rows, 2 files, 9 row groups" in printed
    user = found["profile"]["ids"]["user"]
    line = next(line.split() for line in printed.splitlines() if line.startswith(" user"))
    assert line == ["user", "90", "0", "0", *map(str, (user["distinct"], f"{user['top']['1']:.1%}")), "100.0%"] + [
        str(user["coverage"][share]) for share in ("90", "99")
    ]
    for title in ("Ids", "Lists", "Tables", "Numbers", "Labels"):
        assert re.search(f"^{title}", printed, re.MULTILINE)
    assert "Drift" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed


def test_drift_between_two_globs(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    path = job.folder / "test" / "a.parquet"
    table = pq.read_table(path)
    moved = pa.array([f"other {city}" for city in table["city"].to_pylist()])
    pq.write_table(table.set_column(table.schema.get_field_index("city"), "city", moved), path)
    found = profiled(job, "--against", str(path), str(job.folder / "test" / "b*"))
    assert found["against"]["rows"] == ROWS
    assert {name for name, one in found["drift"]["ids"].items() if one["drifted"]} == {"city"}
    assert found["drift"]["ids"]["city"]["unseen"] == pytest.approx(50 / 90)
    printed = capsys.readouterr().out
    drifted = printed[printed.index("Drift to the other files") :]
    assert re.findall(r"^ (\w+) .* yes", drifted, re.MULTILINE) == ["city"]
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{train}/x*.parquet", "--config", "{config}"],
            "x*.parquet: found no file; expected a Parquet file, directory or",
        ),
        (["{train}", "--config", "{config}", "--against", "{train}/no"], "no: found no file; expected a Parquet file"),
        (["{train}", "--config", "{config}", "--out", "{config}"], "run.yaml exists; remove it or give another --out"),
        (["{train}", "--config", "{config}", "--out", "{config}/a.json"], "a.json cannot be written: "),
        (["{train}", "--config", "{config}.no"], "run.yaml.no: cannot be read"),
        (
            ["{train}", "--config", "{config}", "--against", "{typed}"],
            "typed.parquet, column 'city': found type int64; expected string as in ",
        ),
        (["{other}", "--config", "{config}"], "column 'like': found no such column; expected one, for label 'like'."),
    ],
)
def test_mistakes_are_one_sentence(
    job: Job, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(job.folder / "train" / "a.parquet")
    other, typed = job.folder / "other.parquet", job.folder / "typed.parquet"
    pq.write_table(table.drop_columns("like"), other)
    pq.write_table(table.set_column(table.schema.get_field_index("city"), "city", table["user"]), typed)
    named = {"train": job.folder / "train", "config": job.config, "other": other, "typed": typed}
    assert main(["data", "profile", *(argument.format(**named) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["data", "profile", "--help"])
    assert exit_info.value.code == 0
    assert "example: rankmixer data profile" in capsys.readouterr().out


def test_what_a_person_should_look_at(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    rows = 4000
    columns = {
        "user": np.where(np.arange(rows) == 1234, 99, np.arange(rows) % 20),
        "city": np.where(np.arange(rows) % 10 < 6, "unknown", np.arange(rows).astype(str)),
        "tags": pa.array([[1]] * rows),
        "price": np.where(np.arange(rows) == 17, np.inf, 10.0 ** (5 + np.arange(rows) % 2)),
        "click": np.concatenate([np.arange(3000) % 2, np.arange(1000) % 10 == 0]).astype(np.int8),
        "like": np.where(np.arange(rows) == 5, 3, np.arange(rows) % 2),
    }
    for name, part in (("a", slice(0, 3000)), ("b", slice(3000, 4000))):
        table = pa.table({column: values[part] for column, values in columns.items()})
        pq.write_table(table, job.folder / "train" / f"{name}.parquet", row_group_size=1000)
    found = profiled(job)
    a, b = (str(job.folder / "train" / f"{name}.parquet") for name in "ab")
    assert findings(found) == [
        f"user: 1 ids have no place, the first in {a}, row group 1, row 1234; training stops there",
        "city: 'unknown' takes 60% of lookups; if it means missing, make it null",
        "price: the model gets numbers of mean 12.66 and standard deviation 1.151; `standardise` makes them 0 and 1",
        f"price: 1 values that training refuses, the first in {a}, row group 0, row 17",
        f"like: 1 values that training refuses, the first in {a}, row group 0, row 5",
        f"click: {b} has 10.00%, over all files 40.00% (-22 standard deviations)",
        f"click: {a} has 50.00%, over all files 40.00% (+22 standard deviations)",
    ]
    printed = capsys.readouterr().out
    assert all(f"- {sentence}" in printed for sentence in findings(found))


def test_long_names_and_large_numbers_stay_legible_at_80_columns(job: Job) -> None:
    found = profiled(job, "--against", str(job.folder / "test"))
    long = "a_feature_whose_name_is_much_longer_than_its_column"
    for feature in ("ids", "numbers"):
        one = next(iter(found["profile"][feature].values()))
        one |= {"lookups": 123_456_789_012, "nulls": 12_345_678, "distinct": 98_765_432, "distinct_error": 0.01}
        one |= {"min": -1.23456e9, "max": 1.23e12, "mean": 123_456.0, "std": 1e-11}
        found["profile"][feature][long] = one
        found["drift"][feature][long] = next(iter(found["drift"][feature].values()))
    console = Console(width=80)
    for table in tables(found):
        with console.capture() as capture:
            console.print(table)
        assert "…" not in capture.get()
        assert max(map(len, capture.get().splitlines())) <= 80


def keys(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return set().union(*map(keys, tree))
    return set(tree).union(*map(keys, tree.values())) if isinstance(tree, dict) else set()


def test_the_keys_are_those_of_the_documentation(job: Job) -> None:
    path = job.folder / "train" / "a.parquet"
    table = pq.read_table(path)
    beyond = pa.array(table["user"].to_numpy() + 10)  # so that a place is named
    pq.write_table(table.set_column(table.schema.get_field_index("user"), "user", beyond), path)
    found = profiled(job, "--against", str(job.folder / "test"))
    names = {"user", "city", "tags", "price", "click", "like"}
    section = DOCS.read_text().split("The JSON has ")[1].split("\n## ")[0]
    documented = {key for span in re.findall(r"`([^`]+)`", section) for key in re.findall(r"\w+", span)}
    assert keys(found) - names == documented - {"FEATURE", "TASK", "TABLE", "boundaries"}
