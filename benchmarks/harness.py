"""What every benchmark shares: arms measured in turn, ratios of paired runs, one table and one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNSTABLE_SPREAD = 0.2
ENVIRONMENT = (  # what, set from outside, changes speed
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "THP_MEM_ALLOC_ENABLE",
)
RESULTS = Path(__file__).parent / "results"
CHANGED = " with changes"  # after the commit of a tree that differs from it


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest of the ratios of paired runs."""

    median: float
    low: float
    high: float

    @property
    def unstable(self) -> bool:
        """Whether the ratios spread over more than 20 % of their median: too noisy to support a claim."""
        return self.high - self.low > UNSTABLE_SPREAD * abs(self.median)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}-{self.high:.3f}]{' UNSTABLE' if self.unstable else ''}"


def interleave(
    arms: Mapping[str, Callable[[], float]],
    runs: int = 5,
    measurements: int = 1,
    reduce: Callable[[list[float]], float] = statistics.median,
) -> dict[str, list[float]]:
    """Measure the arms in turn, so that a disturbance of the machine falls on all of them.

    Args:
        arms: by name, a callable that takes one measurement and returns its value (seconds, or a rate).
        runs: values returned for each arm; run i of one arm is the pair of run i of another.
        measurements: taken per arm and run, again in turn.
        reduce: from these measurements to the value of the run; `min` of seconds looks past a machine busy elsewhere.

    Returns:
        By name, `runs` values. A first round warms up and is not counted; every other round goes through the arms
        backwards, so that none is always the first.

    >>> interleave({"a": lambda: 1.0, "b": lambda: 2.0}, runs=3)
    {'a': [1.0, 1.0, 1.0], 'b': [2.0, 2.0, 2.0]}
    """
    for arm in arms.values():
        arm()
    values: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for _ in range(runs):
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(measurements):
            for name in names:
                taken[name].append(arms[name]())
            names.reverse()
        for name in arms:
            values[name].append(reduce(taken[name]))
    return values


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """The ratio of each run of one arm to the same run of another, summarised.

    >>> str(paired_ratio([2.0, 3.0, 4.0], [4.0, 4.0, 4.0]))
    '0.750 [0.500-1.000] UNSTABLE'
    """
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def arguments(description: str, runs: int = 5) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have: --runs and --record."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{_benchmark()}", description=description)
    parser.add_argument("--runs", type=int, default=runs, help="paired runs (default %(default)s)")
    parser.add_argument(
        "--record", action=RecordCommitted, help="also write the table to benchmarks/results; wants a committed tree"
    )
    return parser


class RecordCommitted(argparse.Action):
    """--record, refused at once where the figures could not be traced to a commit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, nargs=0, default=False)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        """Called where the option stands."""
        commit = _commit()
        if commit.endswith(CHANGED):
            parser.error(f"--record: the tree is {commit}; commit or stash first, for a record names its commit")
        setattr(namespace, self.dest, True)


def report(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    *,
    record: bool = False,
    variant: str = "",
    further: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Print where and how it ran, the rows as a table, further tables; on the last line `result` as one JSON object.

    Args:
        title: the heading.
        rows: one mapping from column to value for each line of the table; what a row does not have stays empty.
        result: the figures to be read by machines; a Ratio becomes its median.
        record: also write the same as benchmarks/results/<benchmark><variant>.md.
        variant: what tells this record from others of the same benchmark.
        further: rows of more tables, by title.
    """
    tables = {heading: _cells(lines) for heading, lines in {title: rows, **(further or {})}.items()}
    about = _about()
    last_line = json.dumps(dict(result), default=_as_json)

    console = Console(width=None if sys.stdout.isatty() else 160)
    for key, value in about.items():
        print(f"{key}: {value}")
    sys.stdout.flush()
    for heading, (columns, cells) in tables.items():
        table = Table(*columns, title=heading)
        for line in cells:
            table.add_row(*map(Text, line))
        console.print(table)
    if record:
        path = RESULTS / f"{_benchmark()}{variant}.md"
        _write(path, _markdown(about, tables, last_line))
        print(f"written: {path}")
    print(last_line, flush=True)


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return columns, [[_cell(row.get(column, "")) for column in columns] for row in rows]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_json(value: Any) -> Any:
    if isinstance(value, Ratio):
        return round(value.median, 4)
    raise TypeError(f"{type(value).__name__} in the result of a benchmark is not JSON")


def _benchmark() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removeprefix("benchmarks.").removesuffix(".__main__") if spec else Path(sys.argv[0]).stem


def _about() -> dict[str, str]:
    return {
        "command": f"python -m benchmarks.{_benchmark()} {shlex.join(sys.argv[1:])}".rstrip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "versions": ", ".join(_versions()),
        "hardware": _hardware(),
        "environment": " ".join(f"{key}={os.environ[key]}" for key in ENVIRONMENT if key in os.environ) or "default",
    }


def _versions() -> list[str]:
    found = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in ("torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "pyarrow"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> str:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    text = f"{_cpu()}, {cores} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB, load {load:.1f}"
    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def _cpu() -> str:
    fields = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    values = {key.strip(): value.strip() for key, _, value in fields}
    return f"{values.get('model name', platform.machine())} ({torch.backends.cpu.get_cpu_capability()})"


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        others = f":!{RESULTS.name}"  # what was recorded a moment ago
        return git("rev-parse", "--short", "HEAD") + (
            CHANGED if git("status", "--porcelain", "--", ":/", others) else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _markdown(about: Mapping[str, str], tables: Mapping[str, tuple[list[str], list[list[str]]]], last_line: str) -> str:
    def line(values: Sequence[str]) -> str:
        return f"| {' | '.join(values)} |"

    text: list[str] = []
    for title, (columns, cells) in tables.items():
        text += [f"## {title}" if text else f"# {title}", ""]
        if len(text) == 2:
            text += [*(f"- {key}: {value}" for key, value in about.items()), ""]
        text += [line(columns), line(["---"] * len(columns)), *map(line, cells), ""]
    return "\n".join([*text, "```json", last_line, "```", ""])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.rename(path)
