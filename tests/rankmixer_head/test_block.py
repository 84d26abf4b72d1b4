"""The per-token FFN and the block against twins in loops over tokens and examples."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankmixer_head import PerTokenFFN, RankMixerBlock, RankMixerConfig, mix_tokens

B, T, D, M = 5, 4, 12, 30
CONFIG = RankMixerConfig(tokens=T, width=D, layers=1, expansion=M / D)


def naive_ffn(ffn: PerTokenFFN, s_TBD: Tensor) -> Tensor:
    rows = [
        F.gelu(s_TBD[t, b] @ ffn.up_TDM[t] + ffn.up_bias_TM[t]) @ ffn.down_TMD[t] + ffn.down_bias_TD[t]
        for t in range(T)
        for b in range(B)
    ]
    return torch.stack(rows).view(T, B, D)


def naive_norm(norm: torch.nn.LayerNorm, x_D: Tensor) -> Tensor:
    centred = x_D - x_D.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def naive_block(block: Any, x_TBD: Tensor) -> Tensor:
    C = D // T
    mixed = [
        torch.cat([x_TBD[t, b, h * C : (h + 1) * C] for t in range(T)]) + x_TBD[h, b]
        for h in range(T)
        for b in range(B)
    ]
    s_TBD = torch.stack([naive_norm(block.mixing_norm, row) for row in mixed]).view(T, B, D)
    summed = (naive_ffn(block.ffn, s_TBD) + s_TBD).view(T * B, D)
    return torch.stack([naive_norm(block.ffn_norm, row) for row in summed]).view(T, B, D)


def random_block() -> Any:
    torch.manual_seed(2)
    block = RankMixerBlock(CONFIG).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


@pytest.mark.parametrize("part", ["ffn", "block"])
def test_equals_the_naive_twin_forward_and_backward(part: str) -> None:
    block = random_block()
    module = block.ffn if part == "ffn" else block
    x_TBD = torch.randn(T, B, D, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(T, B, D, dtype=torch.double)
    inputs = [x_TBD, *module.parameters()]
    got, expected = module(x_TBD), naive_ffn(block.ffn, x_TBD) if part == "ffn" else naive_block(block, x_TBD)
    torch.testing.assert_close(got, expected)
    for got_grad, expected_grad in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got_grad, expected_grad)


def test_without_gradient_the_output_is_the_same_and_the_input_untouched() -> None:
    block = random_block()
    x_TBD = torch.randn(T, B, D, dtype=torch.double)
    before = x_TBD.clone()
    with torch.no_grad():
        served_TBD = block(x_TBD)
    assert torch.equal(x_TBD, before)
    assert torch.equal(served_TBD, block(x_TBD))


def test_frozen_weights_let_gradients_through() -> None:
    block = random_block().requires_grad_(False)
    x_TBD = torch.randn(T, B, D, dtype=torch.double, requires_grad=True)
    (grad_TBD,) = torch.autograd.grad(block(x_TBD).square().sum(), x_TBD)
    (expected_TBD,) = torch.autograd.grad(naive_block(block, x_TBD).square().sum(), x_TBD)
    torch.testing.assert_close(grad_TBD, expected_TBD)


def test_tokens_share_no_ffn_weight() -> None:
    block = random_block()
    before = block.ffn(torch.ones(T, B, D, dtype=torch.double))
    with torch.no_grad():
        block.ffn.up_TDM[2] += 1.0
    changed = (block.ffn(torch.ones(T, B, D, dtype=torch.double)) != before).any(2).any(1)
    assert changed.tolist() == [False, False, True, False]


def test_norm_comes_after_the_residual() -> None:
    """Post-LN: tokens leave the block normalised, and scaling the input changes nothing, unlike in Pre-LN."""
    torch.manual_seed(3)
    block = RankMixerBlock(CONFIG).double()
    x_TBD = torch.randn(T, B, D, dtype=torch.double)

    def pre_norm(x_TBD: Tensor) -> Tensor:
        s_TBD = mix_tokens(block.mixing_norm(x_TBD)) + x_TBD
        return block.ffn(block.ffn_norm(s_TBD)) + s_TBD

    def is_normalised(x_TBD: Tensor) -> bool:
        deviations = x_TBD.std(2, unbiased=False)
        return torch.allclose(x_TBD.mean(2), torch.zeros(1).double(), atol=1e-6) and torch.allclose(
            deviations, torch.ones(1).double(), atol=1e-3
        )

    assert is_normalised(block(x_TBD))
    assert not is_normalised(pre_norm(x_TBD))
    torch.testing.assert_close(block(100 * x_TBD), block(x_TBD), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(pre_norm(100 * x_TBD), pre_norm(x_TBD), rtol=1e-3, atol=1e-3)
