import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import nn

from rankmixer_head import (
    MoEConfig,
    PerTokenFFN,
    PerTokenMoE,
    PerTokenSwiGLU,
    RankMixer,
    RankMixerBlock,
    RankMixerConfig,
)
from rankmixer_head.initialise import initialise
from tests.helpers.head_variants import VARIANTS, in_widths

CONFIG = RankMixerConfig(tokens=4, width=12, layers=2, expansion=2.5, head_hidden=(7,))


def filled_with_nan(config: RankMixerConfig) -> RankMixer:
    model = RankMixer(config, in_widths(config), num_tasks=2, device="meta").to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        nn.init.constant_(tensor, math.nan)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_parameter_or_buffer_keeps_its_memory_after_a_reset(variant: str) -> None:
    model = filled_with_nan(VARIANTS[variant])
    model.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_module_that_owns_parameters_or_buffers_resets_itself(variant: str) -> None:
    """TorchRec's DistributedModelParallel calls reset_parameters of each owner of meta parameters, not of the root."""
    model = filled_with_nan(VARIANTS[variant])
    for module in model.modules():
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            cast(nn.LayerNorm, module).reset_parameters()
    assert all(tensor.isfinite().all() for tensor in (*model.parameters(), *model.buffers()))


def test_the_maps_of_an_expert_have_their_own_fan_in_though_they_lie_transposed() -> None:
    torch.manual_seed(5)
    moe = PerTokenMoE(tokens=3, width=64, hidden=192, config=MoEConfig(4))
    for weight_TEMD, fan_in in ((moe.up_TEMD, 64), (moe.down_TEMD, 192)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.99 * bound < weight_TEMD.abs().max() <= bound
        assert not torch.equal(weight_TEMD[0, 0], weight_TEMD[0, 1])


def test_xavier_counts_both_fans_of_each_map() -> None:
    torch.manual_seed(5)
    config = replace(CONFIG, width=64, expansion=3, initialisation="xavier")
    model = RankMixer(config, [64], num_tasks=1)
    bound = math.sqrt(6 / (64 + 192))
    ffn = cast(PerTokenFFN, cast(RankMixerBlock, model.blocks[0]).ffn)
    for _ in range(2):
        for weight_TIO in (ffn.up_TDM, ffn.down_TMD):
            assert 0.99 * bound < weight_TIO.abs().max() <= bound
        ffn.reset_parameters()  # alone too


def test_the_down_maps_of_tokenmixer_large_start_at_a_hundredth() -> None:
    swiglu = PerTokenSwiGLU(tokens=4, width=64, hidden=192)
    assert 0.0099 / math.sqrt(192) < swiglu.small_down_TMD.abs().max() <= 0.01 / math.sqrt(192)


def test_each_map_of_a_stack_has_its_own_fan_in() -> None:
    torch.manual_seed(5)
    ffn = PerTokenFFN(tokens=8, width=64, hidden=192)
    for weight_TIO, fan_in in ((ffn.up_TDM, 64), (ffn.down_TMD, 192)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.99 * bound < weight_TIO.abs().max() <= bound
        torch.testing.assert_close(
            weight_TIO.std(dim=(1, 2)), torch.full((8,), bound / math.sqrt(3)), rtol=0.03, atol=0
        )
    assert ffn.up_bias_TM.count_nonzero() + ffn.down_bias_TD.count_nonzero() == 0


def test_tokenizer_maps_have_the_fan_in_of_their_piece() -> None:
    torch.manual_seed(6)
    config = RankMixerConfig(tokens=4, width=1024, layers=1, expansion=1, tokenizer="per_group")
    tokenizer = RankMixer(config, in_widths=[64, 4, 16, 1], num_tasks=1).tokenizer
    for rows_ID, fan_in in zip(tokenizer.tokens_ID.split(64), [64, 4, 16, 1], strict=True):
        weight_ID = rows_ID[:fan_in]
        assert rows_ID[fan_in:].count_nonzero() == 0
        assert 0.98 / math.sqrt(fan_in) < weight_ID.abs().max() <= 1 / math.sqrt(fan_in)


def test_layer_norms_start_as_the_identity_after_the_normalisation() -> None:
    model = RankMixer(CONFIG, in_widths=[18], num_tasks=2)
    for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
        assert torch.equal(norm.weight, torch.ones(12))
        assert torch.equal(norm.bias, torch.zeros(12))


def test_the_seed_decides() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(RankMixer(CONFIG, in_widths=[18], num_tasks=2).parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(1), strict=True))
    assert not any(
        torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True) if a.count_nonzero() and a.std()
    )


def test_a_token_starts_the_same_however_many_follow_it() -> None:
    torch.manual_seed(7)
    few = PerTokenFFN(tokens=3, width=12, hidden=30)
    torch.manual_seed(7)
    many = PerTokenFFN(tokens=6, width=12, hidden=30)
    assert torch.equal(few.up_TDM, many.up_TDM[:3])
    assert torch.equal(few.down_TMD, many.down_TMD[:3])
    assert not torch.equal(many.up_TDM[0], many.up_TDM[1])
    assert not torch.equal(many.up_TDM[3], many.up_TDM[4])


def test_a_parameter_without_a_rule_is_refused() -> None:
    class Extended(PerTokenFFN):
        def __init__(self) -> None:
            super().__init__(tokens=4, width=12, hidden=30)
            self.gate_TE = nn.Parameter(torch.zeros(4, 2))

    with pytest.raises(LookupError, match=r"Extended.gate_TE has no rule in rankmixer_head/initialise.py: add one"):
        initialise(nn.Sequential(Extended()))
