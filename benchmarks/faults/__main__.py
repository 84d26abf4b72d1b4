"""What a job survives: kills at any moment, damaged checkpoints, wrong configurations, disks and reads that fail.

What was tried is kept, one file a case: this command goes on where it was cut off, unless a source file has changed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.checkpoint_mutations import mutate_checkpoints
from benchmarks.faults import configurations as fault_configurations
from benchmarks.faults.disks import cases, try_case
from benchmarks.faults.kills import Cold, Forked, as_json, disturb
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.runs import RUNS, Run, command, write_configuration, write_data
from benchmarks.faults.server import ForkServer
from benchmarks.harness import arguments, report

KILLS, COLD_KILLS = 16, 11  # of a run
CONFIGURATIONS, MUTATIONS, BATCH = 100, 1000, 100


class Harness:
    """All cases of one seed.

    Args:
        folder: for data and runs.
        server: forks ranks.
        args: of the command line.
    """

    def __init__(self, folder: Path, server: ForkServer, args: argparse.Namespace) -> None:
        self.folder, self.server, self.args = folder, server, args
        write_data(folder)
        self.configuration = write_configuration(folder)

    def kept(self, name: str, case: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a case came to, from its file or now."""
        key = json.dumps([name, _sources(), vars(self.args)], sort_keys=True, default=str)
        path = self.args.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not path.exists():
            started = time.monotonic()
            result = {"name": name, **case(), "seconds": round(time.monotonic() - started, 1)}
            self.args.cache.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".tmp").write_text(json.dumps(result, indent=1))
            path.with_suffix(".tmp").rename(path)
        kept: dict[str, Any] = json.loads(path.read_text())
        print(f"{name}: {_short(kept)}", file=sys.stderr, flush=True)
        return kept

    def kill(self, run: Run) -> dict[str, Any]:
        """Kill one run again and again."""
        launcher = Cold(self.folder) if run.cold else Forked(self.server)
        kills = self.args.cold_kills if run.cold else self.args.kills
        return as_json(disturb(run, kills, self.args.seed, self.configuration, self.folder / "runs", launcher))

    @functools.cache  # noqa: B019  one harness a process
    def twin(self, ranks: int) -> Outcome:
        """The undisturbed run that troubled ones are compared with."""
        directory = self.folder / f"undisturbed-{ranks}"
        statuses = self.server.run(ranks, command(Run("", (ranks,)), self.configuration, directory), seconds=240)
        assert not any(statuses.values()), self.server.said(0)
        return Outcome(directory)

    def troubles(self) -> list[dict[str, Any]]:
        """Disks, reads, slow ranks."""

        def one(case: Any) -> dict[str, Any]:
            failed = try_case(case, self.twin, self.configuration, self.folder, self.server)
            return {"expected": case.expected, "failed": failed}

        return [self.kept(case.name, functools.partial(one, case)) for case in cases(self.folder / "troubled")]

    def configurations(self) -> dict[str, Any]:
        """Wrong configurations."""
        tree = yaml.safe_load(self.configuration.read_text())
        verdicts, unclear = Counter[str](), {}
        for what, mutated in fault_configurations.mutations(tree, CONFIGURATIONS, self.args.seed):
            verdict, said = fault_configurations.judge(mutated, self.folder, self.server)
            shutil.rmtree(self.folder / "mutated", ignore_errors=True)
            verdicts[verdict] += 1
            if said:
                unclear[what] = said
        return {**{verdict: verdicts[verdict] for verdict in fault_configurations.VERDICTS}, "failed": unclear}

    def checkpoints(self) -> list[dict[str, Any]]:
        """Damaged checkpoints, a part at a time."""
        return [
            self.kept(
                f"{BATCH} mutations of checkpoint files, part {part + 1}",
                lambda part=part: dict(mutate_checkpoints(BATCH, self.args.seed + part)),  # type: ignore[misc]
            )
            for part in range(MUTATIONS // BATCH)
        ]


@functools.cache
def _sources() -> str:
    """A digest of all source files that a case may run."""
    root = Path(__file__).parents[2]
    folders = (root / "rankmixer", root / "rankmixer_head", Path(__file__).parent)
    files = [path for folder in folders for path in folder.rglob("*.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=KILLS, help="of every run on forked ranks (default %(default)s)")
    parser.add_argument("--cold-kills", type=int, default=COLD_KILLS, help="of every run under torchrun (%(default)s)")
    parser.add_argument("--only", action="append", metavar="RUN", help="kills of that run alone; several times")
    parser.add_argument("--cache", type=Path, default=Path(".cache/faults"), help="of what was tried (%(default)s)")
    args = parser.parse_args()
    record, args.record = args.record, None  # no part of a case's key
    only, args.only = args.only, None
    with tempfile.TemporaryDirectory() as scratch, ForkServer(Path(scratch)) as server:
        harness = Harness(Path(scratch), server, args)
        runs = [run for run in RUNS if not only or run.name in only]
        killed = [harness.kept(run.name, functools.partial(harness.kill, run)) for run in runs]
        troubles = [] if only else harness.troubles()
        configurations = {} if only else harness.kept("configurations", harness.configurations)
        damaged = [] if only else harness.checkpoints()
    _report(killed, troubles, configurations, damaged, args.seed, record)


def _report(
    killed: list[dict[str, Any]],
    troubles: list[dict[str, Any]],
    configurations: dict[str, Any],
    damaged: list[dict[str, Any]],
    seed: int,
    record: bool,
) -> None:
    rows = [
        {
            "run": one["name"],
            "kills": one["kills"],
            "came to its end": one["rounds"],
            "lost": len(one["lost"]),
            "different": len(one["different"]),
            **{f"{name} apart": distance for name, distance in one["distances"].items()},
            "seconds": one["seconds"],
        }
        for one in killed
    ]
    points = Counter[str]()
    for one in killed:
        points.update(one["points"])
    failed = [one for one in troubles if one["failed"] and not one["failed"].startswith("skipped")]
    further = {
        "Where the kills struck, and whom": [
            {"point, victims": name, "kills": n} for name, n in sorted(points.items())
        ],
        "Disks, reads and ranks": [
            {"trouble": one["name"], "the run": one["expected"], "found": one["failed"][:300] or "as expected"}
            for one in troubles
        ],
        "Configurations with one thing wrong": [
            {verdict: configurations[verdict] for verdict in fault_configurations.VERDICTS}
        ]
        if configurations
        else [],
        "Single bytes and cuts of checkpoint files": [
            {key: sum(one[key] for one in damaged) for key in ("tried", "detected", "harmless", "silent")}
        ],
    }
    seconds = sum(
        one["seconds"] for one in [*killed, *troubles, *damaged, *([configurations] if configurations else [])]
    )
    result = {
        "kills": sum(one["kills"] for one in killed),
        "lost": sum(len(one["lost"]) for one in killed),
        "different": sum(len(one["different"]) for one in killed),
        "mutations": sum(one["tried"] for one in damaged),
        "silent": sum(one["silent"] for one in damaged),
        "troubles": len(troubles),
        "troubles_failed": len(failed),
        "configurations": sum(configurations.get(verdict, 0) for verdict in fault_configurations.VERDICTS),
        "configurations_unclear": configurations.get("unclear", 0),
    }
    title = f"Faults, seed {seed}, {seconds:.0f} s"
    report(title, rows, result, record=record, further={name: lines for name, lines in further.items() if lines})


def _short(kept: dict[str, Any]) -> str:
    """One line of a result, without what went wrong in full."""
    return ", ".join(
        f"{key} {str(value)[:700]}" for key, value in kept.items() if key not in ("name", "points") and value
    )


if __name__ == "__main__":
    main()
