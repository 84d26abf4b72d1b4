import pytest
import torch

from benchmarks.moe import gates


@pytest.mark.parametrize("kind", ["even", "skewed"])
@pytest.mark.parametrize("open_count", [1, 2, 4, 8])
def test_gates_are_open_for_exactly_so_many_experts(kind: str, open_count: int) -> None:
    gates_TBE = gates(3, 40, 8, open_count, kind)
    assert (gates_TBE >= 0).all()
    assert ((gates_TBE > 0).sum(2) == open_count).all()


def test_even_gates_load_all_experts_alike_and_skewed_gates_do_not() -> None:
    even_E, skewed_E = ((gates(1, 40, 8, 1, kind) > 0).sum((0, 1)) for kind in ("even", "skewed"))
    assert even_E.tolist() == [5] * 8
    assert torch.equal(skewed_E, skewed_E.sort(descending=True).values)
    assert skewed_E[0] > 20
