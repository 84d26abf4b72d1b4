"""Every ablation and every block beyond the paper computes what it says, against twins in loops over the examples."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankmixer_head import RankMixerBlock, RankMixerConfig, TokenMixerLargeBlock, mix_tokens

B, T, D, M = 3, 4, 12, 30
C = D // T


def random_block(**choices: Any) -> Any:
    torch.manual_seed(4)
    block = RankMixerBlock(RankMixerConfig(tokens=T, width=D, layers=1, expansion=M / D, **choices)).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


def affine_pair(x_I: Tensor, up_IM: Tensor, up_bias_M: Tensor, down_MO: Tensor, down_bias_O: Tensor) -> Tensor:
    return F.gelu(x_I @ up_IM + up_bias_M) @ down_MO + down_bias_O


def token_ffns(block: Any, s_TD: Tensor) -> Tensor:
    ffn = block.ffn
    return torch.stack(
        [affine_pair(s_TD[t], ffn.up_TDM[t], ffn.up_bias_TM[t], ffn.down_TMD[t], ffn.down_bias_TD[t]) for t in range(T)]
    )


def shared_ffn(block: Any, s_TD: Tensor) -> Tensor:
    ffn = block.ffn
    assert ffn.up_TDM.shape == (1, D, M)
    weights = ffn.up_TDM[0], ffn.up_bias_TM[0], ffn.down_TMD[0], ffn.down_bias_TD[0]
    return torch.stack([affine_pair(token_D, *weights) for token_D in s_TD])


def all_share_ffns(block: Any, s_TD: Tensor) -> Tensor:
    ffn = block.ffn
    everything = torch.cat(list(s_TD))
    return torch.stack(
        [
            affine_pair(everything, ffn.up_TDM[t], ffn.up_bias_TM[t], ffn.down_TMD[t], ffn.down_bias_TD[t])
            for t in range(T)
        ]
    )


def mixed(x_TD: Tensor) -> Tensor:
    return torch.stack([torch.cat([x_TD[t, h * C : (h + 1) * C] for t in range(T)]) for h in range(T)])


def attended(block: Any, x_TD: Tensor) -> Tensor:
    query_DD, key_DD, value_DD = block.mixing.query_key_value_3DD
    query_TD, key_TD, value_TD = x_TD @ query_DD, x_TD @ key_DD, x_TD @ value_DD
    heads = []
    for h in range(T):
        slice_ = slice(h * C, (h + 1) * C)
        scores_TT = query_TD[:, slice_] @ key_TD[:, slice_].T / C**0.5
        heads.append(scores_TT.softmax(1) @ value_TD[:, slice_])
    return torch.cat(heads, dim=1) @ block.mixing.out_DD


def all_concat(block: Any, x_TD: Tensor) -> Tensor:
    mlp = block.mixing
    return affine_pair(torch.cat(list(x_TD)), mlp.up_IM, mlp.up_bias_M, mlp.down_MO, mlp.down_bias_O).view(T, D)


# choice -> (what the first norm reads, what the FFN adds, whether it is added to S)
TWINS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], bool]] = {
    "none": (lambda block, x_TD: mixed(x_TD) + x_TD, token_ffns, True),
    "no_skip": (lambda block, x_TD: mixed(x_TD), token_ffns, False),
    "no_mixing": (lambda block, x_TD: x_TD, token_ffns, True),
    "no_layer_norm": (lambda block, x_TD: mixed(x_TD) + x_TD, token_ffns, True),
    "shared_ffn": (lambda block, x_TD: mixed(x_TD) + x_TD, shared_ffn, True),
    "all_concat": (lambda block, x_TD: all_concat(block, x_TD) + x_TD, token_ffns, True),
    "all_share": (lambda block, x_TD: x_TD, all_share_ffns, True),
    "self_attention": (lambda block, x_TD: attended(block, x_TD) + x_TD, token_ffns, True),
}


@pytest.mark.parametrize("ablation", TWINS)
def test_an_ablation_equals_its_naive_twin_forward_and_backward(ablation: str) -> None:
    block = random_block(ablation=ablation)
    first, ffn, has_skip = TWINS[ablation]
    x_TBD = torch.randn(T, B, D, dtype=torch.double, requires_grad=True)

    def norm(layer: Any, x_TD: Tensor) -> Tensor:
        if ablation == "no_layer_norm":
            return x_TD
        return F.layer_norm(x_TD, (D,), layer.weight, layer.bias)

    def twin(x_TD: Tensor) -> Tensor:
        s_TD = norm(block.mixing_norm, first(block, x_TD))
        v_TD = ffn(block, s_TD)
        return norm(block.ffn_norm, v_TD + s_TD if has_skip else v_TD)

    got_TBD, expected_TBD = block(x_TBD), torch.stack([twin(x_TBD[:, b]) for b in range(B)], dim=1)
    torch.testing.assert_close(got_TBD, expected_TBD)
    upstream, inputs = torch.randn_like(got_TBD), [x_TBD, *block.parameters()]
    got, expected = (torch.autograd.grad(out, inputs, upstream) for out in (got_TBD, expected_TBD))
    for got_grad, expected_grad in zip(got, expected, strict=True):
        torch.testing.assert_close(got_grad, expected_grad)
    with torch.no_grad():
        torch.testing.assert_close(block(x_TBD), got_TBD)


def test_i_plus_mix_is_singular_and_a_gain_restores_full_rank() -> None:
    def rank(block: Any) -> int:
        inputs = torch.eye(T * D, dtype=torch.double).view(T * D, T, D).transpose(0, 1)
        return int(torch.linalg.matrix_rank(block.mixing(inputs).transpose(0, 1).flatten(1)))

    assert rank(random_block()) == (T + 1) * D // 2
    gained = random_block(mixing_gain=True)
    torch.nn.init.constant_(gained.mixing.gain_D, 0.5)
    assert rank(gained) == T * D
    torch.nn.init.constant_(gained.mixing.gain_D, 1.0)
    x_TBD = torch.randn(T, B, D, dtype=torch.double)
    torch.testing.assert_close(gained.mixing(x_TBD), random_block().mixing(x_TBD))


def test_gain_is_one_for_each_channel_of_the_mixing_branch() -> None:
    block = random_block(mixing_gain=True)
    x_TBD = torch.randn(T, B, D, dtype=torch.double)
    expected = [
        torch.stack([mixed(x_TBD[:, b])[t] * block.mixing.gain_D + x_TBD[t, b] for b in range(B)]) for t in range(T)
    ]
    torch.testing.assert_close(block.mixing(x_TBD), torch.stack(expected))


def test_tokenmixer_large_block_equals_its_naive_twin() -> None:
    torch.manual_seed(5)
    config = RankMixerConfig(tokens=T, width=D, layers=1, expansion=M / D, block="tokenmixer_large")
    block = TokenMixerLargeBlock(config).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)

    def norm(layer: torch.nn.RMSNorm, x_D: Tensor) -> Tensor:
        return x_D / (x_D.square().mean() + torch.finfo(x_D.dtype).eps).sqrt() * layer.weight

    def swiglu(layer: Any, t: int, s_D: Tensor) -> Tensor:
        gate_M, up_M = s_D @ layer.gate_TDM[t], s_D @ layer.up_TDM[t]
        return (gate_M * gate_M.sigmoid() * up_M) @ layer.small_down_TMD[t]

    def twin(x_TD: Tensor) -> Tensor:
        h_TD = torch.stack([swiglu(block.mixed_swiglu, t, norm(block.mixed_norm, mixed(x_TD)[t])) for t in range(T)])
        x_TD = x_TD + mixed(h_TD)  # mixing undoes itself
        return x_TD + torch.stack([swiglu(block.token_swiglu, t, norm(block.token_norm, x_TD[t])) for t in range(T)])

    x_TBD = torch.randn(T, B, D, dtype=torch.double)
    torch.testing.assert_close(mix_tokens(mix_tokens(x_TBD)), x_TBD)
    torch.testing.assert_close(block(x_TBD), torch.stack([twin(x_TBD[:, b]) for b in range(B)], dim=1))


def test_a_new_tokenmixer_large_block_hardly_changes_its_input() -> None:
    config = RankMixerConfig(tokens=T, width=D, layers=1, expansion=M / D, block="tokenmixer_large")
    x_TBD = torch.randn(T, B, D)
    change = (TokenMixerLargeBlock(config)(x_TBD) - x_TBD).norm() / x_TBD.norm()
    assert 0 < change < 0.02
