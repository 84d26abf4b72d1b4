"""Which head, and which of its choices? `python -m benchmarks.quality --suite head --data ml-1m.context.parquet`.

Screening: one seed, trained on the training rows, judged on the validation rows. What is only a choice is made there: a
dense learning rate for every architecture, from as many as any rival gets; everything else takes the base's.
Finalists: five seeds, trained on training and validation rows, the test rows read once. Every arm is compared with
the faithful RankMixer seed by seed (same split, same order of rows): mean difference, its 95 % interval by Student's t,
and a claim only where that excludes 0.

Every run is kept by the hash of its configuration (run_cache.py): the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, report
from benchmarks.quality.arms import BASE, CONFIG, GROUPS, ROUTINGS, Arm, all_arms, moe_name, size
from benchmarks.quality.ml_1m import split_ml_1m
from benchmarks.quality.plots import draw
from benchmarks.quality.run_cache import Cache, Result, Run, affordable, estimate_seconds, run_missing, train
from benchmarks.quality.tables import Study, rows, summary

DTSI = [routing for routing in ROUTINGS if routing.startswith("dtsi")]
QUARTER = functools.partial(moe_name, ratio=0.25)
BEST = {"moe": 1, "settle": 1, "extras": 2}  # finalists among the arms that are not finalists anyway


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the suite."""
    suite = parser.add_argument_group("with --suite")
    suite.add_argument("--only", choices=GROUPS, action="append", help="a group of arms; may be repeated")
    suite.add_argument("--arm", action="append", help="one of their arms by its name; may be repeated")
    suite.add_argument("--plan", action="store_true", help="print arms, parameters and the estimate; run nothing")
    suite.add_argument(
        "--budget-hours", type=float, default=3.0, help="default %(default)s; what exceeds it is not run"
    )
    suite.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    suite.add_argument("--cache", type=Path, default=Path("runs/quality-head"), help="folder; default %(default)s")


def run_suite(options: argparse.Namespace) -> None:
    """Plan, screen, run the finalists, report."""
    found = all_arms()
    arms = chosen_arms(found.arms, options.only or GROUPS, options.arm)
    digest = hashlib.sha256(Path(options.data).read_bytes()).hexdigest()
    cache = Cache(options.cache, digest)
    study = Study(arms, cache, range(options.seeds), tuple(options.overrides), found.errors)
    if options.plan:
        return print_plan(study, options)

    data = split_once(options.data, options.cache / f"split-{digest[:16]}")
    left = options.budget_hours * 3600.0
    execute = functools.partial(train, data=data, scratch=options.cache)
    for name, runs in stages(study):
        left -= run_stage(name, runs(), study, execute, left, options.workers)
    if study.auc(study.arms[0], "test") is None:
        sys.exit(f"the base has not all its runs: {cache.failures or 'over the budget'}; run the command again")
    table, result = rows(study), summary(study)
    report(f"Heads on MovieLens-1M, {options.seeds} seeds", table, result, record=options.record, variant="_head")
    if options.record:
        (RESULTS / "quality_head.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(study, RESULTS)


def chosen_arms(arms: Sequence[Arm], groups: Sequence[str], names: Sequence[str] | None = None) -> list[Arm]:
    """The base, and the arms of these groups, or those of them that are named."""
    known = [arm.name for arm in arms if arm.group in groups]
    if unknown := set(names or ()) - set(known):
        sys.exit(f"--arm {sorted(unknown)[0]}: no such arm; there are {', '.join(known)}")
    return [arm for arm in arms if arm.name == BASE or arm.name in (names or known)]


def stages(study: Study) -> list[tuple[str, Callable[[], list[Run]]]]:
    """What is run one after another; a later stage depends on what an earlier one chose."""
    tuned = [arm for arm in study.arms if arm.rates]
    others = [arm for arm in study.arms if not arm.rates]
    return [
        ("screening learning rates", lambda: [run for arm in tuned for run in study.screening(arm)]),
        ("screening the others", lambda: [run for arm in others for run in study.screening(arm)]),
        ("finalists", lambda: [run for arm in finalists(study) for run in study.final(arm)]),
    ]


def run_stage(
    name: str, runs: Sequence[Run], study: Study, execute: Callable[[Run], Result], seconds: float, workers: int
) -> float:
    """Run what is missing of a stage and fits into `seconds`; how long it took, or was to take if that is more."""
    started = time.perf_counter()
    missing = study.cache.missing(runs)
    each = study.cache.seconds_per_run()
    fit = affordable(missing, seconds, each, workers)
    estimated = estimate_seconds(len(fit), each, workers)
    print(
        f"{name}: {len(runs)} runs, {len(missing)} of them not in {study.cache.directory}, {len(fit)} within the "
        f"budget: {estimated / 3600:.2f} h at {each:.0f} s a run, {workers} at a time",
        file=sys.stderr,
        flush=True,
    )
    run_missing(fit, study.cache, execute, workers)
    return max(estimated, time.perf_counter() - started)


def finalists(study: Study) -> list[Arm]:
    """The arms for all seeds and the test rows, in the order of the groups: those that always are, and the best.

    Of the MoE that is the DTSI reading that is best on the validation rows at 1/4.
    """
    chosen = {arm.name for arm in study.arms if arm.final}
    for group, count in BEST.items():
        screened = [arm for arm in study.arms if arm.group == group and not arm.final and study.auc(arm, "validation")]
        if group == "moe":
            screened = [arm for arm in screened if arm.name in map(QUARTER, DTSI)]
        chosen |= {arm.name for arm in sorted(screened, key=study.screened, reverse=True)[:count]}
    return [arm for arm in study.arms if arm.name in chosen]


def split_once(file: str, directory: Path) -> Path:
    """The split of `file` as Parquet files, made the first time."""
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
        split_ml_1m(file, partial)
        partial.rename(directory)
    return directory.resolve()


def print_plan(study: Study, options: argparse.Namespace) -> None:
    """The arms with their sizes, and how long it would take."""
    table: list[dict[str, Any]] = []
    for arm in study.arms:
        parameters, flops = size((*arm.overrides, *study.common))
        choices = len(arm.rates) or 1
        cells = {"parameters": parameters, "FLOPs": flops, "learning rates": choices, "finalist": arm.final}
        table.append({"group": arm.group, "arm": arm.name, **cells})
    table += [{"arm": name, "parameters": error} for name, error in study.errors.items()]
    screening = [run for _, runs in stages(study)[:2] for run in runs()]
    final = [run for arm in finalists(study) for run in study.final(arm)]
    runs = len(study.cache.missing([*screening, *final]))
    # Not known before the screening: the best of some groups.
    groups = {arm.group for arm in study.arms if not arm.final}
    unknown = sum(count for group, count in BEST.items() if group in groups)
    runs += unknown * len(study.seeds) if len(finalists(study)) == sum(arm.final for arm in study.arms) else 0
    each = study.cache.seconds_per_run()
    hours = estimate_seconds(runs, each, options.workers) / 3600
    result = {"runs": runs, "seconds_per_run": round(each, 1), "hours": round(hours, 2), "budget": options.budget_hours}
    report(f"Plan over {CONFIG}: nothing has run", table, result)
