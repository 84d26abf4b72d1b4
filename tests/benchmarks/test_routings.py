"""The planted task on which routings are compared."""

import pytest

from benchmarks.routings import judge, planted, row


def test_routings_are_judged_against_the_truth() -> None:
    found = judge(planted("dtsi_distill", 0.25, steps=40))
    assert 0.5 < found["served AUC"] < found["ceiling"] < 1
    assert 0.5 < found["trained AUC"] < found["ceiling"]
    assert 0 < found["open"] < 1
    assert found["largest gradient"] < 10, "a division by almost nothing"
    again = judge(planted("dtsi_distill", 0.25, steps=40))
    assert again == found
    other = judge(planted("dtsi_distill", 0.25, steps=40, seed=1))
    line = row("dtsi_distill", [found, other])
    assert line["served AUC"] == pytest.approx((found["served AUC"] + other["served AUC"]) / 2)
    assert line["served AUC of each seed"] == f"{found['served AUC']:.4f}, {other['served AUC']:.4f}"
