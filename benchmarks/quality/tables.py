"""What the runs of the suite of heads say: choices, the table, and the figures for machines."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.paired import Difference, paired_difference
from benchmarks.quality.arms import BASE, CONFIG, ROUTINGS, TORCHREC, Arm, moe_name, size
from benchmarks.quality.run_cache import Cache, Result, Run

SCREENING_SEED = 0


@dataclass(frozen=True)
class Study:
    """Arms and what is known of them.

    Args:
        arms: the base first.
        cache: of the runs.
        seeds: of the finalists.
        common: overrides of every run.
        errors: arms that cannot be built, and why.
    """

    arms: list[Arm]
    cache: Cache
    seeds: Sequence[int]
    common: tuple[str, ...]
    errors: dict[str, str]

    def named(self, name: str) -> Arm | None:
        """The arm of this name, if it takes part."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def screening(self, arm: Arm) -> list[Run]:
        """The runs that judge an arm on the validation rows, one for each of its learning rates."""
        rates = arm.rates or (self.rate(self.arms[0]),)
        return [self._run(arm, rate, SCREENING_SEED, "validation") for rate in rates]

    def final(self, arm: Arm) -> list[Run]:
        """The runs that judge an arm on the test rows, in order of the seeds."""
        return [self._run(arm, self.rate(arm), seed, "test") for seed in self.seeds]

    def rate(self, arm: Arm) -> float | None:
        """The dense learning rate chosen for an arm; None: none of its runs has ended yet, so the configuration's."""
        if not arm.rates:
            return self.rate(self.arms[0])
        scores = {rate: self._auc(run) for rate, run in zip(arm.rates, self.screening(arm), strict=True)}
        known = {rate: auc for rate, auc in scores.items() if auc is not None}
        return max(known, key=lambda rate: known[rate]) if known else None

    def screened(self, arm: Arm) -> float:
        """The best AUC of an arm on the validation rows; without any, minus infinity."""
        return max(self.auc(arm, "validation") or [-math.inf])

    def auc(self, arm: Arm, part: str) -> list[float] | None:
        """AUC of the arm's runs on a part; None unless all have ended (test) or one has (validation)."""
        found = [self._auc(run) for run in (self.screening if part == "validation" else self.final)(arm)]
        ended = [auc for auc in found if auc is not None]
        return ended if ended and (part == "validation" or len(ended) == len(found)) else None

    def results(self, arm: Arm) -> list[Result]:
        """Whatever has ended of an arm: on the test rows, or else in the screening."""
        for runs in (self.final(arm), self.screening(arm)):
            found = [result for run in runs if (result := self.cache.get(run)) is not None]
            if found:
                return found
        return []

    def difference(self, arm: Arm) -> Difference | None:
        """The arm against the base on the test rows, paired by seed."""
        base, own = self.auc(self.arms[0], "test"), self.auc(arm, "test")
        return paired_difference(own, base) if own and base and arm.name != BASE else None

    def _auc(self, run: Run) -> float | None:
        result = self.cache.get(run)
        auc = None if result is None else result["auc"]
        return None if auc is None or math.isnan(auc) else auc

    def _run(self, arm: Arm, rate: float | None, seed: int, part: str) -> Run:
        chosen = () if rate is None else (f"optimizer.dense.lr={rate}",)
        return Run(CONFIG, (*arm.overrides, *chosen, *self.common), seed, part)


def rows(study: Study) -> list[dict[str, Any]]:
    """A line of the table for each arm, those that failed too."""
    table = []
    failures = study.cache.failures
    for arm in study.arms:
        results, difference = study.results(arm), study.difference(arm)
        parameters, flops = size((*arm.overrides, *study.common))
        line: dict[str, Any] = {"group": arm.group, "arm": arm.name, "parameters": parameters, "FLOPs": flops}
        line["examples/s"] = _mean(results, "examples_per_second")
        line["dense lr"] = study.rate(arm) or "as configured"
        line["validation AUC"] = _digits(max(study.auc(arm, "validation") or [math.nan]))
        test = study.auc(arm, "test")
        if test:
            line["test AUC"] = f"{statistics.mean(test):.5f} ± {statistics.stdev(test) if len(test) > 1 else 0:.5f}"
        if difference:
            line |= {"against the base, 95 %": str(difference), "claim": difference.claim}
        if arm.group == "moe":
            line |= {"active ratio": _mean(results, "active_ratio"), "dead experts": _mean(results, "dead_experts")}
        runs = [*study.screening(arm), *study.final(arm)]
        broken = [failures[run] for run in runs if run in failures]
        line["note"] = f"failed: {broken[0].splitlines()[-1]}" if broken else "" if results else "not run"
        table.append(line)
    return table + [{"arm": name, "note": f"not built: {error}"} for name, error in study.errors.items()]


def summary(study: Study) -> dict[str, Any]:
    """The figures of the last line. A gap is the base's AUC less that of the served path: positive is a loss."""
    means = {arm.name: statistics.mean(auc) for arm in study.arms if (auc := study.auc(arm, "test"))}
    others = {name for name in means if name.partition(",")[0] in TORCHREC}  # "dcn, dim 32" is torchrec's too
    ours = {arm.name for arm in study.arms if arm.group != "ablations"} & means.keys() - others
    best = functools.partial(max, key=lambda name: means[name])
    result: dict[str, Any] = {"seeds": len(study.seeds), "rankmixer_auc": means[BASE], "best_ours": best(ours)}
    result["best_ours_auc"] = means[result["best_ours"]]
    result["best_other"] = best(others) if others else None
    result["best_other_auc"] = means[best(others)] if others else None
    for routing in ROUTINGS:
        quarter = means.get(moe_name(routing, 0.25))
        result[f"{routing}_quarter_gap"] = None if quarter is None else means[BASE] - quarter
        arm = study.named(moe_name(routing, 0.25))
        result[f"{routing}_quarter_active_ratio"] = _mean(study.results(arm), "active_ratio") if arm else None
    result["auc"] = means
    claims = {arm.name: difference for arm in study.arms if (difference := study.difference(arm))}
    result["difference"] = {name: [d.mean, d.low, d.high, d.claim] for name, d in claims.items()}
    return _rounded(result)


def _mean(results: Sequence[Result], key: str) -> float | None:
    values = [result[key] for result in results if result.get(key) is not None]
    return statistics.mean(values) if values else None


def _digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.5f}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
