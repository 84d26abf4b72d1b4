"""What is said of weights that are no longer numbers."""

import math

import pytest
import torch
from torch import nn

from launch.health import are_finite, layer_statistics


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_bad_weight_is_found_and_counted(dtype: torch.dtype, bad: float) -> None:
    model = nn.Linear(7, 5, dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(-3.0)
        model.bias.zero_()
        assert are_finite(model.parameters())
        assert layer_statistics(model) == {"weight": "up to 3", "bias": "up to 0"}
        model.weight[2, 4] = bad
    assert not are_finite(model.parameters())
    assert layer_statistics(model) == {"weight": "1 of 35 not finite", "bias": "up to 0"}


def test_a_table_without_rows_on_this_rank_is_finite() -> None:
    empty = nn.Parameter(torch.empty(0, 4))
    assert are_finite([empty])
    assert layer_statistics(nn.ParameterDict({"table": empty})) == {"table": "up to 0"}
