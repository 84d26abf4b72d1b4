"""The demo's training as a user starts it: examples a second, and the share of the time in which steps waited for data.

    python -m benchmarks.end_to_end [--ranks 2] [--runs 3] [section.key=value ...]

MovieLens-100K, configs/ml-100k.yaml. Where the rows cannot be fetched, as many of `rankmixer data synthetic`, and the
record says so. Both figures are of the whole training, first batches of every epoch included, without evaluations and
checkpoints; the log's own records, `data_wait_share` in log.jsonl, are added up by the time that each covers.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import arguments, report
from rankmixer.launch.config.config import load_config
from rankmixer.launch.report.report import waiting
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.sources.movielens import write_ml_100k
from rankmixer.pipeline.sources.synthetic import write_synthetic

CONFIG = "configs/ml-100k.yaml"
SYNTHETIC_ROWS = 100_000


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], runs=3)
    parser.add_argument("--ranks", type=int, default=2, help="processes (default %(default)s, as the demo)")
    parser.add_argument("overrides", nargs="*", help="section.key=value for every run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data, overrides = make_data(Path(scratch, "data"))
        rows = [
            run(args.ranks, Path(scratch, f"run-{number}"), [*overrides, *args.overrides])
            for number in range(args.runs)
        ]
    result: dict[str, Any] = {
        "data": data,
        "ranks": args.ranks,
        "examples_per_s": round(statistics.median(row["examples/s"] for row in rows)),
        "data_wait_share": round(statistics.median(row["data wait share"] for row in rows), 4),
    }
    report(f"The demo's training on {data}, {args.ranks} ranks", rows, result, record=args.record)


def make_data(out: Path) -> tuple[str, list[str]]:
    """Write the rows; what they are, and what the configuration has to be told of them."""
    name = "ml-100k"
    further: list[str] = []
    try:
        write_ml_100k(str(out))
    except ValueError as error:
        print(f"MovieLens-100K cannot be had ({error}); synthetic rows instead", file=sys.stderr)
        write_synthetic(str(out), SYNTHETIC_ROWS)
        name, further = "synthetic", [f"feature_schema={out / 'schema.yaml'}", "metrics.group=user"]
    parts = {part: out / part for part in ("train", "validation", "test")}
    paths = {"train": parts["train"], "evaluate": parts["validation"], "test": parts["test"]}
    return name, [f"data.{key}={path}" for key, path in paths.items() if path.exists()] + further


def run(ranks: int, directory: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One training run, and what its log says of its speed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "rankmixer", "train", "--config", CONFIG, f"run.directory={directory}", *overrides]
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}")
    batch_size = load_config(CONFIG, overrides).data.batch_size
    return {
        **speed(list(read_log(directory)), batch_size),
        "test AUC": json.loads(done.stdout.splitlines()[-1])["test_auc"],
    }


def speed(events: Sequence[Mapping[str, Any]], batch_size: int) -> dict[str, float]:
    """Examples a second and the share of waiting over all training records of a log, and the largest of its records."""
    records = [event for event in events if event["kind"] == "train"]
    seconds, before = 0.0, 0
    for record in records:
        seconds += (record["step"] - before) * batch_size / record["examples_per_second"]
        before = record["step"]
    return {
        "steps": before,
        "training seconds": seconds,
        "examples/s": before * batch_size / seconds,
        "data wait share": waiting(records),
        "largest share of a record": max(record["data_wait_share"] for record in records),
    }


if __name__ == "__main__":
    main()
