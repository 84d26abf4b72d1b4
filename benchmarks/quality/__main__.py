"""How good is the model? Test AUC over seeds, through the whole pipeline, beside logistic regression on the same rows.

    python -m benchmarks.quality --data ml-100k --seeds 5
    python -m benchmarks.quality --data ml-1m.context.parquet --seeds 5
    python -m benchmarks.quality --suite head --data ml-1m.context.parquet    # see quality_head.py

Every seed is one `rankmixer train` of the configuration that ships. What it says was chosen on a validation part of the
training rows (docs/lab_log.md); here it trains on all of them, validation part included, for the epochs it says, and
reads the test rows once. The seeds share one split.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from benchmarks.harness import arguments, report
from benchmarks.quality import head as quality_head
from benchmarks.quality.ml_1m import FEATURES, PARTS, split_ml_1m
from rankmixer.pipeline.sources.movielens import write_ml_100k

CONFIGS = {"ml-100k": "configs/ml-100k.yaml", "ml-1m": "configs/ml-1m.yaml"}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="ml-100k, or a Parquet file of MovieLens-1M with a 0/1 label")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--suite", choices=["head"], help="compare heads and their parts instead; see quality_head.py")
    quality_head.add_arguments(parser)
    parser.add_argument("overrides", nargs="*", help="section.key=value for every run")
    options = parser.parse_args()
    if options.suite:
        return quality_head.run_suite(options)
    name = "ml-100k" if options.data == "ml-100k" else "ml-1m"
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "data")
        if name == "ml-100k":
            write_ml_100k(str(data))
        else:
            split_ml_1m(options.data, data)
        rows: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            rows.append(run(CONFIGS[name], data, Path(scratch, f"run-{seed}"), seed, options.overrides))
        rows.append(logistic_regression(data))
    ours = [row for row in rows if row["arm"] == "rankmixer"]
    result: dict[str, Any] = {"data": name, "seeds": options.seeds}
    for key in ("auc", "gauc", "logloss", "ne"):
        result["rankmixer_auc" if key == "auc" else key] = round(statistics.mean(row[key] for row in ours), 5)
    if len(ours) > 1:
        result["rankmixer_auc_std"] = round(statistics.stdev(row["auc"] for row in ours), 5)
    result["logistic_regression_auc"] = round(rows[-1]["auc"], 5)
    report(f"Quality on the test rows of {name}", rows, result, record=options.record, variant=f"-{name}")


def run(config: str, data: Path, directory: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One training run in a process of its own; its last line of output is the result."""
    paths = [
        f"data.train=[{data / 'train'}, {data / 'validation'}]",
        "data.evaluate=null",
        f"data.test={data / 'test'}",
    ]
    command = [sys.executable, "-m", "rankmixer", "train", "--config", config, *paths]
    command += [f"run.directory={directory}", f"train.seed={seed}", *overrides]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "160"})
    if done.returncode:
        sys.exit(f"seed {seed}: {' '.join(command)} ended with status {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"seed {seed}: {json.dumps(result)}", file=sys.stderr, flush=True)
    return {
        "arm": "rankmixer",
        "seed": seed,
        **{key: result[f"test_{key}"] for key in ("auc", "gauc", "logloss", "ne", "calibration")},
        "steps": result["steps"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def logistic_regression(data: Path) -> dict[str, Any]:
    """scikit-learn on one-hot features, its regularisation chosen on the validation rows."""
    tables = {part: pq.read_table(data / part) for part in PARTS}
    encode = _one_hot(tables["train"])
    inputs = {part: encode(table) for part, table in tables.items()}
    labels = {part: table["label"].to_numpy() for part, table in tables.items()}

    def fit(strength: float, parts: tuple[str, ...]) -> LogisticRegression:
        everything = vstack([inputs[part] for part in parts]), np.concatenate([labels[part] for part in parts])
        return LogisticRegression(C=strength, max_iter=300).fit(*everything)

    def auc(model: LogisticRegression, part: str) -> float:
        return float(roc_auc_score(labels[part], model.predict_proba(inputs[part])[:, 1]))

    strength = max((0.3, 1.0, 3.0), key=lambda strength: auc(fit(strength, ("train",)), "validation"))
    test_auc = auc(fit(strength, ("train", "validation")), "test")
    return {"arm": f"logistic regression, C = {strength}", "auc": test_auc}


def _one_hot(train: pa.Table) -> Callable[[pa.Table], csr_matrix]:
    single = [name for name in FEATURES if name != "genres"]
    encoder = OneHotEncoder(handle_unknown="ignore").fit(_strings(train, single))
    words = sorted({word for genres in train["genres"].to_pylist() for word in genres.split("|")})
    column = {word: i for i, word in enumerate(words)}

    def encode(table: pa.Table) -> csr_matrix:
        pairs = [
            (row, column[word])
            for row, genres in enumerate(table["genres"].to_pylist())
            for word in genres.split("|")
            if word in column
        ]
        rows, columns = np.array(pairs).T
        multi_hot = csr_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(table), len(words)))
        return hstack([encoder.transform(_strings(table, single)), multi_hot]).tocsr()

    return encode


def _strings(table: pa.Table, names: list[str]) -> np.ndarray:
    return np.stack([np.array([str(value) for value in table[name].to_pylist()]) for name in names], axis=1)


if __name__ == "__main__":
    main()
