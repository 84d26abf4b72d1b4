"""The runs that faults are injected into: small ones, one of each kind of state that a restart must bring back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROWS, BATCH = 960, 48  # 20 steps an epoch, on 1, 2 or 4 ranks

SCHEMA: dict[str, Any] = {
    "features": {
        "user": {"kind": "id", "range": 200, "dim": 8, "group": "user"},
        "city": {"kind": "id", "buckets": 50, "dim": 8, "group": "user"},
        "tags": {"kind": "id_list", "range": 90, "dim": 4, "pooling": "mean", "group": "item"},
        "price": {"kind": "number", "transform": "log1p", "default": 1.0, "group": "item"},
    },
    "labels": {"click": {}, "like": {"weight": 0.5}},
}


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: of its folder and its line in the table.
        ranks: how many; several numbers: at the first attempt, at the second, and so on, over again.
        overrides: `section.key=value` over the common configuration.
        cold: started by torchrun, each attempt a new interpreter; otherwise forked.
    """

    name: str
    ranks: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    cold: bool = False

    @property
    def resized(self) -> bool:
        """Whether attempts differ in the number of ranks: sums are then rounded otherwise."""
        return len(self.ranks) > 1


MANAGED = (
    "feature_schema.features.user={kind: id, managed: 1, dim: 8, group: user}",
    "feature_schema.features.tags={kind: id_list, managed: 1, dim: 4, pooling: mean, group: item}",
)
MOE = "model.moe={experts: 3, active_ratio: 0.34, routing: dtsi}"
WIDE = ("model.width=64", "model.layers=2")  # enough of them that the order of a sum shows

RUNS = (
    Run("one rank", (1,)),
    Run("two ranks", (2,), ("data.sample={keep: 0.7, negatives_of: click}",)),
    Run("four ranks, wide", (4,), WIDE),
    Run("Sparse-MoE, two ranks", (2,), (MOE,)),
    Run("Sparse-MoE, four ranks", (4,), (MOE, *WIDE)),
    Run("managed ids, two ranks", (2,), MANAGED),
    Run("managed ids, four ranks", (4,), (*MANAGED, "train.evaluate_every=7")),
    Run("token groups, four ranks", (4,), ("parallel.token_group=2", "optimizer.dense.weight_decay=0.1")),
    Run(
        "stream, two ranks",
        (2,),
        ("data.stream={poll_seconds: 0.05, idle_seconds: 0.2}", "train.epochs=1", "train.max_steps=20"),
    ),
    Run(
        "a checkpoint every step, Muon, two ranks",
        (2,),
        ("train.checkpoint_every=1", "optimizer.dense.kind=muon", "optimizer.sparse.kind=adagrad"),
    ),
    Run(
        "early stopping, best weights tested, two ranks",
        (2,),
        ("train.early_stopping.patience=2", "optimizer.dense.lr=0.02", "train.epochs=4"),
    ),
    Run("4, 2, 1 and 4 ranks", (4, 2, 1)),
    Run("torchrun, two ranks", (2,), cold=True),
    Run("torchrun, four ranks, wide", (4,), WIDE, cold=True),
)


def write_data(folder: Path) -> None:
    """Parquet files of a thousand rows, in `train` and `test`; seeded."""
    random = np.random.RandomState(0)
    user, city = random.randint(200, size=ROWS), random.randint(30, size=ROWS)
    table = pa.table(
        {
            "user": user,
            "city": [f"city {number}" for number in city],
            "tags": [list(random.randint(90, size=random.randint(4))) for _ in range(ROWS)],
            "price": pa.array([None if row % 10 == 0 else float(row) for row in range(ROWS)]),
            "click": ((user + city + random.randint(3, size=ROWS)) % 2).astype(np.int8),
            "like": random.randint(2, size=ROWS).astype(np.int8),
        }
    )
    for part, rows in (("train", ROWS), ("test", ROWS // 4)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        half = rows // 2
        pq.write_table(table.slice(0, half), folder / part / "a.parquet", row_group_size=100)
        pq.write_table(table.slice(half, rows - half), folder / part / "b.parquet", row_group_size=70)


def write_configuration(folder: Path) -> Path:
    """The common configuration, over the data of `write_data` in the same folder."""
    tree = {
        "feature_schema": SCHEMA,
        "data": {
            "train": str(folder / "train"),
            "evaluate": str(folder / "test"),
            "test": str(folder / "test"),
            "batch_size": BATCH,
            "evaluate_batch_size": BATCH,
            "window_rows": 300,
            "manifests": str(folder / "manifests"),
        },
        "model": {"tokens": 4, "width": 16, "layers": 1},
        "optimizer": {"schedule": {"warmup_steps": 3, "decay": "linear"}, "clip_norm": 1.0},
        "train": {"epochs": 2, "evaluate_every": 8, "checkpoint_every": 4, "log_steps": 1, "peak_tflops": 1.0},
        "metrics": {"group": "user"},
        "run": {"keep": 2, "timeout_seconds": 60},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def command(run: Run, configuration: Path, directory: Path) -> list[str]:
    """The arguments of `rankmixer`."""
    return ["train", "--config", str(configuration), *run.overrides, f"run.directory={directory}"]


def prepare(run: Run, configuration: Path, directory: Path) -> None:
    """Make the run directory. That of a stream knows two portions, so that when files came is no matter of chance."""
    directory.mkdir()
    if any(override.startswith("data.stream=") for override in run.overrides):
        files = sorted((configuration.parent / "train").glob("*.parquet"))
        portions = [
            {"number": number, "files": [str(file)], "rows": ROWS // 2, "strings": ["city"]}
            for number, file in enumerate(files)
        ]
        (directory / "arrivals.jsonl").write_text("".join(json.dumps(portion) + "\n" for portion in portions))


def ranks_of(run: Run, attempt: int) -> int:
    """How many ranks an attempt has, counted from 0.

    >>> [ranks_of(Run("", (4, 2, 1)), attempt) for attempt in range(5)]
    [4, 2, 1, 4, 2]
    """
    return run.ranks[attempt % len(run.ranks)]


def by_name(names: Sequence[str]) -> list[Run]:
    """The runs of these names; all if none is given."""
    return [run for run in RUNS if not names or run.name in names]
