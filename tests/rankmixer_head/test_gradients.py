"""No batch makes gradients explode: gates all shut, examples without weight, one example alone, in both precisions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankmixer_head import RankMixer
from rankmixer_head.moe.per_token_moe import imitation_loss
from tests.helpers.head_variants import VARIANTS, in_widths

B, I, K = 24, 18, 2  # noqa: E741
MOES = [name for name in VARIANTS if name.startswith("moe_")]
SHUT = ["one token's", "one layer's", "all"]
ROUTERS = ["router_bias_TE", "train_router_bias_TE"]


def build(variant: str) -> RankMixer:
    torch.manual_seed(3)
    return RankMixer(VARIANTS[variant], in_widths(VARIANTS[variant]), num_tasks=K)


def gradients(
    model: RankMixer, dtype: torch.dtype = torch.float32, batch: int = B, weight_B: Tensor | None = None
) -> dict[str, Tensor]:
    """Of every parameter and the input, for a mean over the examples, or the weighted sum; all of them finite."""
    generator = torch.Generator().manual_seed(4)
    x_BI = torch.randn(batch, I, generator=generator).requires_grad_()
    weight_B = torch.full((batch,), 1 / batch) if weight_B is None else weight_B
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits_2BK = model(x_BI, weight_B).unflatten(0, (-1, batch))
    labels_2BK = (x_BI.detach()[:, :K] > 0).float().expand_as(logits_2BK)
    losses_2BK = F.binary_cross_entropy_with_logits(logits_2BK, labels_2BK, reduction="none")
    model.zero_grad()
    (losses_2BK.mean((0, 2)) @ weight_B).backward()
    model.adapt_penalty()
    found = {name: parameter.grad for name, parameter in model.named_parameters()} | {"input": x_BI.grad}
    for name, grad in found.items():
        assert grad is not None, name
        assert grad.isfinite().all(), name
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def largest(found: dict[str, Tensor]) -> float:
    return max(grad.abs().max().item() for grad in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("router", [*ROUTERS, "both"])
@pytest.mark.parametrize("shut", SHUT)
@pytest.mark.parametrize("variant", MOES)
def test_shut_gates_make_no_gradient_large(variant: str, shut: str, router: str, dtype: torch.dtype) -> None:
    usual = largest(gradients(build("plain"), dtype))
    model = build(variant)
    biases = [name for name in (ROUTERS if router == "both" else [router]) if hasattr(model.moes[0], name)]
    with torch.no_grad():
        for moe in model.moes[: len(model.moes) if shut == "all" else 1]:
            for name in biases:
                getattr(moe, name)[: 1 if shut == "one token's" else None] = -1e3
    for _ in range(3):
        assert largest(gradients(model, dtype)) < 5 * usual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_example_alone_or_few_with_weight_have_gradients_of_the_usual_size(variant: str, dtype: torch.dtype) -> None:
    usual = largest(gradients(build("plain" if variant in MOES else variant), dtype))
    assert largest(gradients(build(variant), dtype, batch=1)) < 20 * usual
    weight_B = torch.zeros(B)
    weight_B[5] = 1.0
    assert largest(gradients(build(variant), dtype, weight_B=weight_B)) < 20 * usual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_examples_without_weight_have_no_gradient(variant: str, dtype: torch.dtype) -> None:
    """An input of zeros is what padding looks like: there every LayerNorm divides by the root of its epsilon."""
    model = build(variant)
    assert largest(gradients(model, dtype, weight_B=torch.zeros(B))) == 0.0
    x_BI = torch.zeros(B, I, requires_grad=True)
    logits_NK = model(x_BI, torch.zeros(B))
    (logits_NK.sum(1) @ torch.zeros(len(logits_NK))).backward()
    assert x_BI.grad is not None
    assert x_BI.grad.count_nonzero() == 0


def test_imitation_has_one_scale_whatever_is_taught() -> None:
    """Its gradient follows the distance alone, and is that of each example by itself."""
    served_TBD = torch.randn(4, B, 12).requires_grad_()
    weight_B = torch.rand(B)
    taught_TBD = served_TBD.detach() * 0
    (zero,) = torch.autograd.grad(imitation_loss(served_TBD, taught_TBD, weight_B), served_TBD)
    (far,) = torch.autograd.grad(imitation_loss(served_TBD + 1e4, taught_TBD + 1e4, weight_B), served_TBD)
    torch.testing.assert_close(zero, served_TBD.detach() * weight_B.view(B, 1) / 24)
    torch.testing.assert_close(far, zero, rtol=0, atol=2e-3)


def test_distillation_leaves_training_as_it_is_without_it() -> None:
    """Neither the imitation nor the penalty of the router that serves reaches a weight that training uses."""
    model = build("moe_dtsi_distill")
    assert model.controller is not None
    found = []
    for log_penalty in (-10.0, 14.0):
        model.controller.log_penalty.fill_(log_penalty)
        found.append(gradients(model))
    for name, grad in found[0].items():
        is_served = "router" in name and "train_router" not in name
        assert torch.equal(grad, found[1][name]) != is_served, name
