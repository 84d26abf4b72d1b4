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

from rankmixer.launch.cli import main
from rankmixer.launch.commands.profile_findings import findings
from rankmixer.launch.commands.profile_tables import tables
from tests.helpers.job import ROWS, Job

DOCS = Path(__file__).parents[3] / "docs" / "data.md"


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
    assert "90 rows in 2 files, 9 row groups" in printed
    user = found["profile"]["ids"]["user"]
    of_ids = printed[printed.index("Ids: how many") :]  # what shares its bucket comes first
    line = next(line.split() for line in of_ids.splitlines() if line.startswith(" user"))
    assert line == ["user", "90", "0", "0", *map(str, (user["distinct"], f"{user['top']['1']:.1%}")), "100.0%"] + [
        str(user["coverage"][share]) for share in ("90", "99")
    ]
    for title in ("Ids", "Lists", "Tables", "Numbers", "Labels"):
        assert re.search(f"^{title}", printed, re.MULTILINE)
    assert "Drift" not in printed
    assert max(len(line) for line in printed.splitlines() if not line.startswith("- ")) <= 80
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
    assert max(len(line) for line in printed.splitlines() if not line.startswith("- ")) <= 80


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
        "city: 100.0% of lookups are of ids that share one of 11 buckets with another; "
        "give city a `vocabulary`: 1,601 ids, each with a row of its own",
        f"user: 1 ids have no place, the first in {a}, row group 1, row 1234; training stops there",
        f"price: 1 values that training refuses, the first in {a}, row group 0, row 17",
        f"like: 1 values that training refuses, the first in {a}, row group 0, row 5",
        "tags: has one value in every row, which teaches nothing; leave it out",
        "city: 'unknown' takes 60% of lookups; if it means missing, make it null",
        "price: the model gets numbers of mean 12.66 and standard deviation 1.151; `standardise` makes them 0 and 1",
        f"click: {b} has 10.00%, over all files 40.00% (-22 standard deviations)",
        f"click: {a} has 50.00%, over all files 40.00% (+22 standard deviations)",
    ]
    printed = capsys.readouterr().out
    assert all(f"- {sentence}" in printed for sentence in findings(found))


def test_what_has_most_trouble_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.arange(4000)
    kinds: dict[str, dict[str, Any]] = {
        "fine": {"range": 4},
        "few": {"buckets": 4096},
        "some": {"buckets": 30},
        "all": {"buckets": 3},
    }
    kinds |= {"empty": {"range": 9}, "unknown": {"range": 4, "on_bad": "reserve"}, "same": {"range": 9}}
    kinds |= {"own": {"range": 4000}}
    columns = {
        "fine": rows % 4,
        "few": rows % 100,
        "some": rows % 20,
        "all": rows % 9,
        "empty": pa.array([None if row % 10 else 1 for row in rows]),
        "unknown": np.where(rows % 10 < 3, 7, rows % 4),
        "same": np.full(4000, 5),
        "own": rows,
        "click": rows % 2,
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    pq.write_table(pa.table(columns | {"unknown": pa.nulls(4000, pa.int64())}), tmp_path / "b.parquet")
    features = {name: {"kind": "id", "dim": 4, **kind} for name, kind in kinds.items()}
    tree = {"feature_schema": {"features": features, "labels": {"click": {}}}, "data": {"train": str(tmp_path)}}
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    command = ["data", "profile", f"{tmp_path}/a.parquet", "--config", f"{tmp_path}/run.yaml"]
    assert main([*command, "--against", f"{tmp_path}/b.parquet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    share = {
        name: table["collisions"] and table["collisions"]["lookups"]
        for name, table in found["profile"]["tables"].items()
    }
    assert share["all"] == 1.0 > share["some"] > 0.05 > share["few"]
    told = findings(found)
    assert told[:2] == [
        "all: 100.0% of lookups are of ids that share one of 3 buckets with another; "
        "give all a `vocabulary`: 9 ids, each with a row of its own",
        f"some: {share['some']:.1%} of lookups are of ids that share one of 30 buckets with another; "
        "give some a `vocabulary`: 20 ids, each with a row of its own",
    ]
    assert told[2].startswith("unknown: 1,200 ids have no place, the first in ")
    assert told[3:6] == [
        "same: has one value in every row, which teaches nothing; leave it out",
        "own: 4,000 ids in 4,000 lookups hardly repeat, so nothing is learnt of them; leave it out or use what they "
        "have in common",
        "empty: 90% are null, which teaches nothing; fill the column, or leave the feature out",
    ]
    assert told[6:] == ["unknown: 0% are null here and 100% in the other files; see to what writes it"]
    by_collisions, ids, *_ = tables(found)
    assert str(by_collisions.title).startswith("Tables: what shares its bucket")
    assert [str(cell) for cell in by_collisions.columns[0].cells][:3] == ["all", "some", "few"]
    assert [str(cell) for cell in ids.columns[0].cells] == [
        *("all", "same", "empty", "some", "unknown", "few", "fine", "own"),
    ]


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
