"""Training runs kept by the hash of their configuration: what has run is not run again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.quality.ml_1m import SPLIT_SEED, TEST_SHARE, VALIDATION_SHARE
from rankmixer.launch.config.config import dump_config, load_config
from rankmixer.pipeline.journal.journal import read_log

TRAINED_ON = {"validation": ["train"], "test": ["train", "validation"]}
SECONDS_PER_RUN = 70.0  # until some have been measured

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        config: configuration file.
        overrides: `section.key=value` over it.
        seed: of the run.
        part: the rows it is judged on; "test" trains on the validation rows too.
    """

    config: str
    overrides: tuple[str, ...]
    seed: int
    part: str

    def key(self, data_digest: str = "") -> str:
        """SHA-256 of the resolved configuration, without paths and ranks, and of the split."""
        split = [SPLIT_SEED, TEST_SHARE, VALIDATION_SHARE, data_digest]
        return hashlib.sha256(json.dumps([_resolved(self), self.part, split], sort_keys=True).encode()).hexdigest()


@functools.cache
def _resolved(run: Run) -> dict[str, Any]:
    tree = dump_config(load_config(run.config, [*run.overrides, f"train.seed={run.seed}"]))
    del tree["run"], tree["parallel"]  # a run here is one rank: how it is shared among ranks is not asked
    for path in ("train", "evaluate", "test"):
        del tree["data"][path]
    return tree


class RunFailed(Exception):
    """A run ended with another status than 0; the message is the end of its stderr."""


@dataclass
class Cache:
    """Results of runs, one JSON file each.

    Args:
        directory: of the files; made when the first is written.
        data_digest: of the rows the runs read.
    """

    directory: Path
    data_digest: str = ""
    failures: dict[Run, str] = field(default_factory=dict)

    def get(self, run: Run) -> Result | None:
        """The result of a run that has ended well, else None."""
        try:
            return json.loads(self._path(run).read_text())["result"]
        except FileNotFoundError:
            return None

    def put(self, run: Run, result: Result) -> None:
        """Keep a result; the file appears whole."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._path(run)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        about = {"overrides": run.overrides, "seed": run.seed, "part": run.part}
        temporary.write_text(json.dumps({**about, "result": result}, indent=1))
        temporary.rename(path)

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Those of `runs` without a result, each configuration once."""
        return list({run.key(): run for run in runs if self.get(run) is None}.values())

    def seconds_per_run(self) -> float:
        """The mean of the runs so far."""
        seconds = [json.loads(path.read_text())["result"]["seconds"] for path in self.directory.glob("*.json")]
        return statistics.mean(seconds) if seconds else SECONDS_PER_RUN

    def _path(self, run: Run) -> Path:
        return self.directory / f"{run.key(self.data_digest)}.json"


def estimate_seconds(runs: int, seconds_per_run: float, workers: int) -> float:
    """How long so many runs take, `workers` at a time.

    >>> estimate_seconds(5, 70.0, workers=2)
    210.0
    """
    return -(-runs // workers) * seconds_per_run


def affordable(runs: Sequence[Run], seconds: float, seconds_per_run: float, workers: int) -> list[Run]:
    """The first of `runs` that fit into `seconds`."""
    rounds = int(seconds // seconds_per_run) if seconds > 0 else 0
    return list(runs[: rounds * workers])


def run_missing(runs: Sequence[Run], cache: Cache, execute: Callable[[Run], Result], workers: int) -> None:
    """Execute the runs that the cache lacks, `workers` at a time; a failure is noted and does not stop the others."""

    def one(run: Run) -> None:
        try:
            cache.put(run, execute(run))
        except RunFailed as failure:
            cache.failures[run] = str(failure)
            print(f"failed: {' '.join(run.overrides)} seed {run.seed}\n{failure}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(one, cache.missing(runs)):
            pass


def train(run: Run, data: Path, scratch: Path) -> Result:
    """One `rankmixer train` in a process of its own with one thread; what it and its log say.

    Raises:
        RunFailed: it ended with another status than 0.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        train_on = ", ".join(str(data / part) for part in TRAINED_ON[run.part])
        paths = [f"data.train=[{train_on}]", "data.evaluate=null", f"data.test={data / run.part}"]
        command = [sys.executable, "-m", "rankmixer", "train", "--config", run.config, *run.overrides, *paths]
        command += [f"run.directory={directory}", f"train.seed={run.seed}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RunFailed(done.stderr[-1500:].strip() or f"status {done.returncode}, and nothing on stderr")
        result = json.loads(done.stdout.splitlines()[-1])
        print(f"{run.part} {result['test_auc']:.5f} seed {run.seed} {' '.join(run.overrides)}", file=sys.stderr)
        return {**metrics(result), **logged(list(read_log(directory))), "seconds": round(seconds, 1)}


def metrics(result: Mapping[str, Any]) -> Result:
    """What the last line of a run says of the rows it is judged on."""
    return {key.removeprefix("test_"): value for key, value in result.items() if key.startswith("test_")}


def logged(events: Sequence[Mapping[str, Any]]) -> Result:
    """What a log says of the dense part and its speed."""
    start = next(event for event in events if event["kind"] == "start")
    rates = [event["examples_per_second"] for event in events if event["kind"] == "train"]
    return {
        "dense_parameters": start["dense_parameters"],
        "flops_per_example": start["flops_per_example"],
        "examples_per_second": statistics.median(rates) if rates else None,
    }
