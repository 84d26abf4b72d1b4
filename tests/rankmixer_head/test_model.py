from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_head import RankMixer, RankMixerConfig
from tests.helpers.head_variants import VARIANTS, in_widths

B, I, K = 7, 18, 2  # noqa: E741
CONFIG = RankMixerConfig(tokens=4, width=12, layers=3, expansion=2.5)


def build(config: RankMixerConfig = CONFIG) -> RankMixer:
    torch.manual_seed(8)
    return RankMixer(config, in_widths=[10, 8], num_tasks=K)


def train(steps: int) -> tuple[list[float], RankMixer]:
    model = build()
    generator = torch.Generator().manual_seed(9)
    x_BI = torch.randn(B, I, generator=generator)
    labels_BK = torch.randint(0, 2, (B, K), generator=generator).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(model(x_BI), labels_BK)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def test_golden_losses() -> None:
    losses, _ = train(6)
    assert losses == pytest.approx([0.639781, 0.608377, 0.577457, 0.545147, 0.510470, 0.473091], rel=1e-5)


def test_two_runs_are_bitwise_equal() -> None:
    (losses_a, model_a), (losses_b, model_b) = train(4), train(4)
    assert losses_a == losses_b
    for a, b in zip(model_a.parameters(), model_b.parameters(), strict=True):
        assert torch.equal(a, b)


def test_heads_read_the_mean_of_the_tokens() -> None:
    model = build()
    x_BI = torch.randn(B, I)
    x_TBD = model.tokenizer(x_BI)
    for block in model.blocks:
        x_TBD = block(x_TBD)
    pooled_BD = sum(x_TBD[t] for t in range(4)) / 4
    torch.testing.assert_close(model(x_BI), model.heads(pooled_BD))


def test_examples_do_not_see_each_other() -> None:
    model = build()
    x_BI = torch.randn(B, I)
    torch.testing.assert_close(model(x_BI)[2:5], model(x_BI[2:5]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_and_the_input_get_a_gradient(variant: str) -> None:
    config = VARIANTS[variant]
    torch.manual_seed(8)
    model = RankMixer(config, in_widths(config), num_tasks=K)
    x_BI = torch.randn(B, I, requires_grad=True)
    model(x_BI).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name
    assert x_BI.grad is not None
    assert x_BI.grad.count_nonzero() == B * I


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_are_those_that_torch_counts(variant: str) -> None:
    """A Sparse-MoE in evaluation with gradients computes all experts, and no router of training."""
    config = VARIANTS[variant]
    model = RankMixer(config, in_widths(config), num_tasks=K).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
        model(torch.randn(B, I))
    assert counter.get_total_flops() == B * model.flops_per_example(active_ratio=1.0)


def test_a_sparse_moe_is_counted_by_its_budget() -> None:
    config = VARIANTS["moe_single"]
    assert config.moe is not None
    model = RankMixer(config, [I], num_tasks=K)
    experts = config.layers * config.tokens * config.moe.experts * 4 * config.width * config.hidden
    assert model.flops_per_example(1.0) - model.flops_per_example() == experts * (1 - config.moe.active_ratio)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_of_training_are_those_that_torch_counts(variant: str, recompute: bool) -> None:
    config = replace(VARIANTS[variant], recompute=recompute)
    model = RankMixer(config, in_widths(config), num_tasks=K)
    for input_gradient in (True, False):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.randn(B, I, requires_grad=input_gradient)).sum().backward()
        assert counter.get_total_flops() == B * model.training_flops_per_example(input_gradient)
    kept = RankMixer(VARIANTS[variant], in_widths(config), num_tasks=K)
    assert model.training_flops_per_example(recompute=False) == kept.training_flops_per_example()
    assert (model.training_flops_per_example() > kept.training_flops_per_example()) == recompute


@pytest.mark.parametrize("preset", ["tiny", "small", "100m", "1b"])
def test_training_a_dense_head_takes_three_times_the_flops_of_the_forward(preset: str) -> None:
    model = RankMixer(RankMixerConfig.preset(preset), in_widths=[100, 33], num_tasks=K, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(B, 133, device="meta", requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == B * model.training_flops_per_example() == 3 * B * model.flops_per_example()


def test_runs_on_the_meta_device() -> None:
    model = RankMixer(CONFIG, in_widths=[I], num_tasks=K, device="meta")
    assert model(torch.empty(B, I, device="meta")).shape == (B, K)
