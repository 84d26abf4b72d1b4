"""The pure parts of the suite of heads: hashes, intervals, matching, estimates, and resuming with a runner made up."""

import random
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from benchmarks.paired import paired_difference
from benchmarks.quality.arms import CONFIG, Arm, match, size
from benchmarks.quality.head import finalists, run_stage, stages
from benchmarks.quality.plots import draw
from benchmarks.quality.run_cache import (
    Cache,
    Result,
    Run,
    RunFailed,
    affordable,
    estimate_seconds,
    logged,
    metrics,
    run_missing,
)
from benchmarks.quality.tables import Study, rows, summary

BASE = Arm("architectures", "rankmixer", (), (1e-3, 2e-3))
WIDE = Arm("extras", "wide", ("model.expansion=5",), final=False)
DEEP = Arm("extras", "deep", ("model.layers=3",), final=False)


def run(*overrides: str, seed: int = 0, part: str = "validation") -> Run:
    return Run(CONFIG, overrides, seed, part)


class Runner:
    """Results by configuration: an AUC that says what it was made of. `fails`: overrides whose runs end badly."""

    def __init__(self, fails: str = "never") -> None:
        self.executed: list[Run] = []
        self.fails = fails

    def __call__(self, run: Run) -> Result:
        self.executed.append(run)
        if self.fails in run.overrides:
            raise RunFailed("ValueError: it had to be")
        auc = 0.8 + 0.01 * ("optimizer.dense.lr=0.002" in run.overrides) + 0.001 * run.seed
        auc += 0.02 * ("model.layers=3" in run.overrides) + 0.0001 * run.seed * ("model.expansion=5" in run.overrides)
        return {"auc": auc, "seconds": 40.0, "examples_per_second": 1e4}


def study(directory: Path, seeds: int = 3, **others: Any) -> Study:
    return Study([BASE, WIDE, DEEP], Cache(directory), range(seeds), (), {}, **others)


def run_all(made: Study, runner: Runner, seconds: float = 1e6) -> None:
    for name, runs in stages(made):
        run_stage(name, runs(), made, runner, seconds, 2)


def test_key_is_of_the_resolved_configuration_not_of_how_it_was_said_or_where_it_lies() -> None:
    keys = [
        run().key(),
        run("optimizer.dense.lr=0.002").key(),  # what the file says
        run("run.directory=elsewhere", "data.train=/somewhere/else").key(),
    ]
    assert len(set(keys)) == 1
    others = [run("model.layers=3"), run(seed=1), run(part="test"), run("data.batch_size=512")]
    assert len({keys[0], *(other.key() for other in others), run().key("other rows")}) == 6


def test_interval_is_that_of_scipy() -> None:
    random.seed(1)
    first, second = ([random.gauss(0.9, 0.001) for _ in range(5)] for _ in range(2))
    interval = ttest_1samp([a - b for a, b in zip(first, second, strict=True)], 0).confidence_interval(0.95)
    found = paired_difference(first, second)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_claims_need_an_interval_that_excludes_zero() -> None:
    base = [0.80, 0.82, 0.81]
    assert paired_difference([0.81, 0.831, 0.82], base).claim == "better"
    assert paired_difference([0.79, 0.809, 0.80], base).claim == "worse"
    assert paired_difference([0.81, 0.815, 0.81], base).claim == "no difference shown"
    assert paired_difference([0.90], [0.80]).claim == "no difference shown"


def test_matching_finds_the_nearest_and_refuses_what_is_too_far() -> None:
    target = size(())[0]
    found = match(target, [(f"model.expansion={k}",) for k in (1, 3.9, 6)], lambda overrides: size(overrides)[0])
    assert found == ("model.expansion=3.9",)
    with pytest.raises(ValueError, match="widen the search"):
        match(target, [("model.expansion=3",)], lambda overrides: size(overrides)[0])


def test_estimate_and_what_fits() -> None:
    runs = [run(seed=seed) for seed in range(5)]
    assert estimate_seconds(5, 10, workers=2) == 30
    assert affordable(runs, 25, 10, workers=2) == runs[:4]
    assert affordable(runs, -1, 10, workers=2) == []


def test_what_has_run_is_not_run_again_and_half_a_file_does_not_count(tmp_path: Path) -> None:
    cache, runner = Cache(tmp_path), Runner()
    run_missing([run(), run("optimizer.dense.lr=0.002"), run(seed=1)], cache, runner, workers=2)
    assert len(runner.executed) == 2  # two of them are the same run
    (tmp_path / f"{run(seed=2).key()}.1.tmp").write_text('{"result": {"au')
    run_missing([run(), run(seed=1), run(seed=2)], Cache(tmp_path), runner, workers=2)
    assert [done.seed for done in runner.executed[2:]] == [2]
    assert cache.seconds_per_run() == 40


def test_rows_of_other_data_are_other_runs(tmp_path: Path) -> None:
    Cache(tmp_path, "a").put(run(), {"auc": 0.8, "seconds": 1.0})
    assert Cache(tmp_path, "b").get(run()) is None


def test_a_failure_is_reported_and_does_not_stop_the_others(tmp_path: Path) -> None:
    made = study(tmp_path)
    run_all(made, Runner(fails="model.expansion=5"))
    notes = {row["arm"]: row["note"] for row in rows(made)}
    assert notes == {"rankmixer": "", "wide": "failed: ValueError: it had to be", "deep": ""}
    assert "wide" not in summary(made)["auc"]


def test_the_chosen_rate_goes_to_the_finals_and_to_the_arms_without_rates(tmp_path: Path) -> None:
    made, runner = study(tmp_path), Runner()
    run_all(made, runner)
    assert made.rate(BASE) == made.rate(WIDE) == 2e-3
    rates = {
        override for done in runner.executed if done.part == "test" for override in done.overrides if ".lr=" in override
    }
    assert rates == {"optimizer.dense.lr=0.002"}
    assert [arm.name for arm in finalists(made)] == ["rankmixer", "wide", "deep"]
    result = summary(made)
    assert result["rankmixer_auc"] == pytest.approx(0.811)
    assert (result["best_ours"], result["difference"]["deep"][3]) == ("deep", "better")
    assert result["difference"]["wide"][3] == "no difference shown"


def test_pictures_are_drawn_of_what_has_run(tmp_path: Path) -> None:
    made = study(tmp_path)
    run_all(made, Runner())
    assert [path.name for path in draw(made, tmp_path)] == ["quality_head_auc.png"]
    made.arms.append(Arm("moe", "dtsi 1/4", ("model.layers=1",)))
    run_all(made, Runner())
    pictures = draw(made, tmp_path)
    assert [path.name for path in pictures] == ["quality_head_auc.png", "quality_head_moe.png"]
    assert all(0 < path.stat().st_size < 100_000 for path in pictures)


def test_beyond_the_budget_nothing_starts_and_the_screening_comes_first(tmp_path: Path) -> None:
    made, runner = study(tmp_path), Runner()
    left = 140.0  # two rounds of two at the 70 s that are assumed before any has been measured
    for name, runs in stages(made):
        left -= run_stage(name, runs(), made, runner, left, 2)
    assert {done.part for done in runner.executed} == {"validation"}
    assert len(runner.executed) == 4
    assert made.auc(BASE, "test") is None


def test_a_run_is_told_by_its_test_metrics_and_its_log() -> None:
    start = {"kind": "start", "dense_parameters": 10, "flops_per_example": 20}
    steps = [{"kind": "train", "examples_per_second": rate} for rate in (1.0, 3.0, 5.0)]
    assert logged([start, *steps]) == {"dense_parameters": 10, "flops_per_example": 20, "examples_per_second": 3.0}
    assert metrics({"steps": 3, "test_auc": 0.75, "test_active_ratio": 0.25}) == {"auc": 0.75, "active_ratio": 0.25}
