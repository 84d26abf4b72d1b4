"""What is said of weights that are no longer numbers."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from rankmixer.launch.health.health import largest_weight, layer_statistics
from rankmixer_head import RankMixer
from rankmixer_head.token_parallel import shard_tokens
from tests.helpers.ranks import run_ranks
from tests.helpers.token_group import build, token_mesh


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_bad_weight_is_found_and_counted(dtype: torch.dtype, bad: float) -> None:
    model = nn.Linear(7, 5, dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(-3.0)
        model.bias.zero_()
        assert largest_weight(model) == 3.0
        assert layer_statistics(model) == {"weight": "up to 3", "bias": "up to 0"}
        model.weight[2, 4] = bad
    assert math.isinf(largest_weight(model))
    assert layer_statistics(model) == {"weight": "1 of 35 not finite", "bias": "up to 0"}


def test_a_table_without_rows_on_this_rank_is_finite() -> None:
    empty = nn.Parameter(torch.empty(0, 4))
    assert largest_weight(nn.ParameterDict({"table": empty})) == 0.0
    assert layer_statistics(nn.ParameterDict({"table": empty})) == {"table": "up to 0"}


def sick_head() -> RankMixer:
    """Weights of the last token that are not finite, and a replicated one."""
    head = build("plain", torch.float32)
    with torch.no_grad():
        head.get_parameter("blocks.0.ffn.up_TDM")[3, 0, :2] = torch.nan
        head.get_parameter("blocks.1.mixing_norm.weight")[0] = torch.inf
    return head


def statistics(rank: int, world_size: int, token_ranks: int) -> dict[str, str]:
    head = sick_head()
    shard_tokens(head, token_mesh(token_ranks))
    return layer_statistics(nn.ModuleDict({"head": head}))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "token_ranks"), [(2, 2), (2, 1), (4, 2)])
def test_a_token_group_sees_the_layers_of_all_tokens(ranks: int, token_ranks: int, tmp_path: Path) -> None:
    expected = layer_statistics(nn.ModuleDict({"head": sick_head()}))
    assert expected["head.blocks.0.ffn"].startswith("2 of ")
    assert expected["head.blocks.1.mixing_norm"] == "1 of 32 not finite"
    for found in run_ranks(ranks, statistics, tmp_path, token_ranks):
        assert found == expected
