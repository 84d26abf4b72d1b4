"""No key of the configuration is ignored: each changes a run, or is refused, or has a reason why it may not."""

from __future__ import annotations

import hashlib
import itertools
import json
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import BaseModel
from safetensors.torch import load_file

from rankmixer.launch.config.config import Config, dump_config, load_config
from rankmixer.launch.job.rollback import Rollbacks
from rankmixer.launch.job.train import Training
from rankmixer.launch.ranks.distributed import process_group
from rankmixer.launch.ranks.run_lock import RunLock
from rankmixer.launch.rows.learnt import with_schema_to_train
from rankmixer.pipeline.journal.journal import read_log
from tests.helpers.every_feature_key import WAYS
from tests.helpers.every_key import ENTRIES, SIZES, Changes, Elsewhere, Exempt, Refused

ROWS = 32
SPLIT = {
    "optimizer.sparse": "kind",
    "optimizer.dense": "kind",
    "optimizer.schedule": "decay",
    "model": "arch",
    "model.moe": "routing",
    "feature_schema.features.time": "part",
}
# What is no literal of the model: how ids are formed, and whether a number has a table.
WAYS_OF = dict.fromkeys(("feature_schema.features.id", "feature_schema.features.id_list"), tuple(WAYS))
WAYS_OF["feature_schema.features.number"] = ("dense", "table")
# Of the log: what another run of the same configuration says differently.
NOISE = {"time", "config", "versions", "seconds", "bytes_per_second", "examples_per_second", "data_wait_share"}
NOISE |= {"bytes", "rss_bytes", "ranks", "mfu"}


def keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every key below `model` by its dotted path, with each choice of the key that it is split by."""
    choices = WAYS_OF.get(path, ())
    if path in SPLIT:
        choices = get_args(model.model_fields[SPLIT[path]].annotation)
    for name, field in model.model_fields.items():
        inner = list(sections(field.annotation, f"{path}.{name}".lstrip(".")))
        # A section that is there or not is a key of the section around it; what is in it has keys of its own.
        is_key = not inner or path == "model"
        says_which = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1  # `kind: cross`
        if is_key and not says_which:
            yield from (
                (f"{path}.{name}[{choice}]" for choice in choices) if choices else (f"{path}.{name}".lstrip("."),)
            )
        for section, section_path in inner:
            yield from keys(section, section_path)


def sections(annotation: Any, path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """The models in a field's type, each with its path: `*` is any name, and a kind of feature goes by its kind."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        if path == "feature_schema.features.*" and kind is not None:
            path = f"feature_schema.features.{get_args(kind.annotation)[0]}"
        yield annotation, path
    elif get_origin(annotation) is Annotated:
        yield from sections(get_args(annotation)[0], path)
    elif get_origin(annotation) is dict:
        yield from sections(get_args(annotation)[1], f"{path}.*")
    elif get_origin(annotation) in (Union, types.UnionType):
        for choice in get_args(annotation):
            yield from sections(choice, path)


def test_every_key_has_an_entry_and_every_entry_a_key() -> None:
    found = set(keys(Config))
    assert not found - set(ENTRIES), "keys of the configuration without an entry in tests/helpers/every_key.py"
    assert not set(ENTRIES) - found, "entries of tests/helpers/every_key.py that are no keys of the configuration"
    for key, case in ENTRIES.items():
        if isinstance(case, Elsewhere):
            assert key.rpartition(".")[2] in (Path(__file__).parents[2] / case.file).read_text(), f"{key}: {case.file}"


def test_a_new_key_and_a_new_kind_would_be_found() -> None:
    class Section(BaseModel):
        kind: Literal["a", "b"] = "a"
        rate: float = 1.0

    class Tree(BaseModel):
        optimizer: dict[str, Section]
        other: Section | None = None

    assert set(keys(Tree)) == {"optimizer.*.kind", "optimizer.*.rate", "other.kind", "other.rate"}
    assert set(keys(Section, "optimizer.dense")) == {
        f"optimizer.dense.{key}[{kind}]" for key in ("kind", "rate") for kind in ("a", "b")
    }


def write_files(folder: Path) -> None:
    """Training and test rows with a column for every kind of feature, nulls among them."""
    random = np.random.default_rng(0)
    rows = 2 * ROWS
    days = random.integers(1_714_000_000, 1_717_000_000, (2, rows))

    def lists(make: Callable[[int], Any]) -> list[Any]:
        return [None if row % 9 == 0 else [make(int(value)) for value in range(row % 4)] for row in range(rows)]

    def text(column: list[Any]) -> list[str | None]:
        return [None if part is None else "|".join(part) for part in column]

    words = lists(lambda value: f"c{random.integers(12)}")
    table = pa.table(
        {
            "user": random.integers(10, size=rows),
            "small": [None if row % 7 == 0 else int(random.integers(10)) for row in range(rows)],
            "city": [None if row % 7 == 0 else f"c{random.integers(12)}" for row in range(rows)],
            "town": [f"c{random.integers(12)}" for row in range(rows)],
            "tags": lists(lambda value: int(random.integers(10))),
            "marks": lists(lambda value: int(random.integers(10))),
            "shares": lists(lambda value: 0.5 + value),
            "words": text(words),
            "phrases": text(words[::-1]),
            "price": [None if row % 5 == 0 else float(row % 23) for row in range(rows)],
            "cost": random.random(rows) * 30,
            "moment": pa.array(days[0], pa.timestamp("s")),
            "later": pa.array(days[0] + days[1] % 9_000_000, pa.timestamp("s")),
            "clock": days[0],
            "click": random.integers(2, size=rows).astype(np.int8),
            "like": random.integers(2, size=rows).astype(np.int8),
            "importance": random.random(rows) + 0.5,
        }
    )
    for part, start in (("train", 0), ("test", ROWS)):
        (folder / part).mkdir()
        pq.write_table(table.slice(start, ROWS), folder / part / "a.parquet", row_group_size=16)
    (folder / "words.txt").write_text("".join(f"c{number}\n" for number in range(8)))
    (folder / "more.txt").write_text("".join(f"c{number}\n" for number in range(10)))


def tree(folder: Path) -> dict[str, Any]:
    features = {
        "user": {"kind": "id", "range": 10, "dim": 4, "group": "user"},
        "price": {"kind": "number", "default": 1.0},
        "f": {"kind": "id", "column": "city", "buckets": 5, "dim": 4},
    }
    return {
        "feature_schema": {"features": features, "labels": {"click": {}}},
        "data": {"train": str(folder / "train"), "batch_size": 8, "window_rows": 16},
        "model": {key: int(value) for key, value in SIZES.items()},
        "train": {"max_steps": 3, "log_steps": 1, "peak_tflops": 1.0},
        "run": {"keep": 9},
    }


def without_noise(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_noise(part) for key, part in value.items() if key not in NOISE}
    return value


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """Train with overrides, in this process; what the run left. The same overrides are trained with once."""
    folder = tmp_path_factory.mktemp("every_key")
    write_files(folder)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree(folder), sort_keys=False))
    numbers = itertools.count()

    def load(overrides: tuple[str, ...], directory: Path) -> Config:
        given = [override.replace("FOLDER", str(folder)) for override in overrides]
        return load_config(str(path), [f"run.directory={directory}", *given])

    with process_group(load((), folder / "unused")) as ranks:

        @cache
        def train(overrides: tuple[str, ...]) -> dict[str, Any]:
            directory = folder / str(next(numbers))
            config = load(overrides, directory)
            assert Config.model_validate(dump_config(config)) == config  # a checkpoint's configuration is read again
            with RunLock(config) as lock:
                config = with_schema_to_train(config)
                Training(config, ranks, Rollbacks(config, ranks), lock).run()
            return left_by(config, directory)

        yield train


def left_by(config: Config, directory: Path) -> dict[str, Any]:
    """The parts of a run that a key may change; `meta` is what the checkpoint remembers of the evaluations."""
    checkpoints = Path(config.run.checkpoints or Path(config.run.directory, "checkpoints"))
    newest = max(checkpoints.glob("step-*"))
    weights = {
        f"{name} {tuple(tensor.shape)}": hashlib.sha256(tensor.float().numpy().tobytes()).hexdigest()
        for file in newest.glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if name.startswith("model")
    }
    assert weights
    log = json.dumps([without_noise(line) for line in read_log(config.run.directory)]).replace(str(directory), "RUN")
    files = sorted(str(file.relative_to(directory)) for file in directory.rglob("*") if "tfevents" not in file.name)
    meta = json.loads((newest / "meta.json").read_text())
    return {"weights": weights, "log": log, "files": files, "meta": {key: meta.get(key) for key in ("best",)}}


@pytest.mark.parametrize("key", [key for key, case in ENTRIES.items() if isinstance(case, Changes)])
def test_it_changes_a_run(key: str, run: Callable[..., dict[str, Any]]) -> None:
    case = ENTRIES[key]
    assert isinstance(case, Changes)
    assert run(case.base)[case.part] != run((*case.base, *case.overrides))[case.part]


@pytest.mark.parametrize("key", [key for key, case in ENTRIES.items() if isinstance(case, Refused)])
def test_it_is_refused(key: str, run: Callable[..., dict[str, Any]]) -> None:
    case = ENTRIES[key]
    assert isinstance(case, Refused)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        run(case.overrides)
    assert all(words in str(refusal.value) for words in case.words), refusal.value


@pytest.mark.parametrize("key", [key for key, case in ENTRIES.items() if isinstance(case, Exempt) and case.overrides])
def test_it_changes_nothing_as_its_exemption_says(key: str, run: Callable[..., dict[str, Any]]) -> None:
    case = ENTRIES[key]
    assert isinstance(case, Exempt)
    assert run(case.base) == run((*case.base, *case.overrides))


STILL_DENSE, STILL_TABLES = "optimizer.dense.lr=1e-30", "optimizer.sparse.lr=1e-30"


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad", "sgd"])
@pytest.mark.parametrize("schedule", ["warmup_steps=2", "decay=linear", "decay=cosine"])
def test_the_schedule_reaches_the_tables_and_the_dense_part(
    schedule: str, kind: str, run: Callable[..., dict[str, Any]]
) -> None:
    tables = (f"optimizer.sparse.kind={kind}", STILL_DENSE)
    for base in (tables, (STILL_TABLES,)):
        assert run(base)["weights"] != run((*base, f"optimizer.schedule.{schedule}"))["weights"]


def test_the_schedule_holds_from_the_first_step(run: Callable[..., dict[str, Any]]) -> None:
    rates = {"optimizer.sparse.lr": 0.0625, "optimizer.dense.lr": 0.03125}
    one = ("train.max_steps=1", "optimizer.sparse.kind=sgd", "optimizer.dense.kind=adagrad")
    warmed = (*one, *(f"{key}={rate}" for key, rate in rates.items()), "optimizer.schedule.warmup_steps=2")
    halved = (*one, *(f"{key}={rate / 2}" for key, rate in rates.items()))
    assert run(warmed)["weights"] == run(halved)["weights"] != run(one)["weights"]
