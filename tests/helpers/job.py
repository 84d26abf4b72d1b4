"""A small training job in a folder: files, configuration, and commands run on it as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file

from rankmixer.pipeline.journal.journal import read_log

ROWS = 90
SCHEMA = {
    "features": {
        "user": {"kind": "id", "range": 20, "dim": 8, "group": "user"},
        "city": {"kind": "id", "buckets": 11, "dim": 8, "group": "user"},
        "tags": {"kind": "id_list", "range": 9, "dim": 4, "pooling": "mean", "group": "item"},
        "price": {"kind": "number", "transform": "log1p", "default": 1.0, "group": "item"},
    },
    "labels": {"click": {}, "like": {"weight": 0.5}},
}


class Job:
    """A configuration and its files in a folder; runs commands of `rankmixer` there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranks = 1
        self.outcome: dict[str, Any] = {}
        random = np.random.RandomState(0)
        user = random.randint(20, size=ROWS)
        table = pa.table(
            {
                "user": user,
                "city": [f"city {number}" for number in random.randint(30, size=ROWS)],
                "tags": [list(random.randint(9, size=random.randint(4))) for _ in range(ROWS)],
                "price": pa.array([None if row % 10 == 0 else float(row) for row in range(ROWS)]),
                "click": ((user + random.randint(3, size=ROWS)) % 2).astype(np.int8),
                "like": random.randint(2, size=ROWS).astype(np.int8),
                "row": np.arange(ROWS),
            }
        )
        for part in ("train", "test"):
            (folder / part).mkdir()
            pq.write_table(table.slice(0, 50), folder / part / "a.parquet", row_group_size=20)
            pq.write_table(table.slice(50), folder / part / "b.parquet", row_group_size=7)
        tree = {
            "feature_schema": SCHEMA,
            "data": {
                "train": str(folder / "train"),
                "evaluate": str(folder / "test"),
                "batch_size": 16,
                "evaluate_batch_size": 24,
                "window_rows": 30,
            },
            "model": {"tokens": 4, "width": 16, "layers": 1},
            "optimizer": {"schedule": {"warmup_steps": 3, "decay": "linear"}, "clip_norm": 1.0},
            "train": {"epochs": 2, "evaluate_every": 4, "log_steps": 1, "peak_tflops": 1.0},
            "metrics": {"group": "user"},
            "run": {"directory": str(folder / "run"), "keep": 9, "timeout_seconds": 60},
        }
        self.config = folder / "run.yaml"
        self.config.write_text(yaml.safe_dump(tree, sort_keys=False))

    def command(self, ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`rankmixer ARGUMENTS`, under torchrun if there are several ranks."""
        launcher = [sys.executable, "-m"]
        if ranks > 1:
            launcher += ["torch.distributed.run", "--nproc-per-node", str(ranks), "-m"]
        command, *rest = arguments
        return subprocess.run(
            [*launcher, "rankmixer", command, "--config", str(self.config), *rest],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def result(self, ranks: int, *arguments: str) -> dict[str, Any]:
        done = self.command(ranks, *arguments)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def losses(self, run: str = "run") -> dict[int, float]:
        return {line["step"]: line["loss"] for line in read_log(str(self.folder / run)) if line["kind"] == "train"}

    def weights(self, run: str, step: int) -> dict[str, torch.Tensor]:
        files = sorted((self.folder / run / "checkpoints" / f"step-{step:08d}").rglob("*.safetensors"))
        return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}
