"""docs/scaling.md says what its script computes, and the script counts bytes as token parallelism is tested to send."""

import math
from pathlib import Path

import pytest

from benchmarks.scaling import (
    ACTIVATION,
    HELD,
    NETWORK_BYTES,
    NVLINK_BYTES,
    PEAK_FLOPS,
    Model,
    Sent,
    Step,
    all_reduce,
    all_to_all,
    tables,
)
from rankmixer_head import MoEConfig, RankMixerConfig

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
T, D, L, I = 32, 64, 3, 50  # noqa: E741
CONFIG = RankMixerConfig(tokens=T, width=D, layers=L, expansion=2)
SUM_D = 64  # 32 pieces of 2


def test_the_page_has_the_tables_that_the_script_prints() -> None:
    page = PAGE.read_text()
    for heading, table in tables().items():
        assert f"## {heading}\n\n{table}\n" in page, (
            "put what `python -m benchmarks.scaling` prints into docs/scaling.md"
        )


@pytest.mark.parametrize("moe", [None, MoEConfig(experts=2), MoEConfig(experts=2, routing="single")])
@pytest.mark.parametrize("P", [8, 32])
def test_bytes_are_those_of_the_formula(P: int, moe: MoEConfig | None) -> None:
    model = Model(RankMixerConfig(tokens=T, width=D, layers=L, expansion=2, moe=moe), I)
    weights, paths = 4 * (P - 1) * (moe is not None), 2 if moe is not None and moe.routing == "dtsi" else 1
    ours = ACTIVATION * (P - 1) / P * (SUM_D + paths * L * T * D) + paths * ACTIVATION * (P - 1) * D + weights
    theirs = ACTIVATION * (P - 1) / P * (SUM_D + T * D + paths * 2 * L * T * D) + weights
    for step, forward in ((model.token_parallel(64, P), ours), (model.dispatch_and_combine(64, P), theirs)):
        assert step.exchanged.nvlink + step.exchanged.network == pytest.approx(2 * forward)
        assert step.exchanged.nvlink / step.exchanged.network == pytest.approx(7 / (P - 8)) if P > 8 else True
        rest = model.parameters - model.per_token
        assert step.held == pytest.approx(HELD * (model.per_token / P + rest))


def test_all_reduce_sends_what_a_ring_sends() -> None:
    for ranks, near in ((8, 8), (64, 8), (64, 1)):
        sent = all_reduce(1.0, ranks, near)
        assert sent.nvlink + sent.network == pytest.approx(2 * (ranks - 1) / ranks)
    assert all_reduce(1.0, 8, 8).network == 0
    assert all_to_all(8.0, 8) == Sent(7.0, 0.0)
    assert all_to_all(32.0, 32) == Sent(7.0, 24.0)


def test_replicas_reduce_their_share_of_the_gradients() -> None:
    model = Model(CONFIG, I)
    whole, shared = model.data_parallel(64).reduced, model.token_parallel(64, 8).reduced
    assert whole.network == pytest.approx(shared.network)  # a node sends every gradient once, either way
    rest = all_reduce(4 * (model.parameters - model.per_token), 64, 8)
    assert shared.nvlink == rest.nvlink


def test_arithmetic_and_communication_are_even_at_the_even_batch() -> None:
    step = Step(held=0, flops=int(PEAK_FLOPS), exchanged=Sent(NVLINK_BYTES / 2, 0), reduced=Sent(0, 10 * NETWORK_BYTES))
    assert step.even_batch() == pytest.approx(20)
    assert step.ratio(20) == pytest.approx(1)
    assert math.isinf(Step(0, 0, Sent(1, 0), Sent(0, 1)).even_batch())
