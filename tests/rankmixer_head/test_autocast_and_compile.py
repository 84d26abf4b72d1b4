import shutil
from dataclasses import replace
from typing import cast

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from rankmixer_head import RankMixer
from tests.helpers.head_variants import PLAIN, VARIANTS, in_widths

B, I, K = 6, 18, 2  # noqa: E741


def gradients(model: torch.nn.Module, x_BI: torch.Tensor) -> list[torch.Tensor]:
    logits_NK = model(x_BI)
    loss = F.binary_cross_entropy_with_logits(logits_NK, torch.ones_like(logits_NK))
    return list(torch.autograd.grad(loss, [x_BI, *model.parameters()]))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo cannot trace the checks of annotations, which only tests have."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def model() -> RankMixer:
    torch.manual_seed(10)
    return RankMixer(PLAIN, in_widths=[I], num_tasks=K)


@pytest.fixture
def x_BI() -> torch.Tensor:
    torch.manual_seed(11)
    return torch.randn(B, I, requires_grad=True)


def test_bfloat16_keeps_norms_residuals_and_logits_in_float32(model: RankMixer, x_BI: torch.Tensor) -> None:
    types = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) or name.endswith("ffn"):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: types.update({name: (inputs[0].dtype, output.dtype)})
            )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BK = model(x_BI)
        got = gradients(model, x_BI)
    assert logits_BK.dtype == torch.float32
    for name, (in_type, out_type) in types.items():
        assert in_type == torch.float32
        assert out_type == (torch.bfloat16 if name.endswith("ffn") else torch.float32), name
    assert len(types) == 6
    torch.testing.assert_close(logits_BK, model(x_BI), rtol=0.05, atol=0.05)
    assert not torch.equal(logits_BK, logits_BK.bfloat16().float())
    for gradient, expected in zip(got, gradients(model, x_BI), strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_in_bfloat16_close_to_float32(variant: str, x_BI: torch.Tensor) -> None:
    config = VARIANTS[variant]
    torch.manual_seed(10)
    model = RankMixer(config, in_widths(config), num_tasks=K)
    for training in (True, False):
        model.train(training)
        with torch.set_grad_enabled(training):
            expected_NK = model(x_BI)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits_NK = model(x_BI)
        assert logits_NK.dtype == torch.float32
        torch.testing.assert_close(logits_NK, expected_NK, rtol=0.1, atol=0.1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_and_serving_are_captured_in_one_graph(variant: str, recompute: bool, x_BI: torch.Tensor) -> None:
    torch._dynamo.reset()
    torch.manual_seed(10)
    config = replace(VARIANTS[variant], recompute=recompute)
    model = RankMixer(config, in_widths(config), num_tasks=K)
    compiled = cast(RankMixer, torch.compile(model, fullgraph=True, backend="aot_eager"))
    for got, expected in zip(gradients(compiled, x_BI), gradients(model, x_BI), strict=True):
        torch.testing.assert_close(got, expected)
    counts = [moe.open_TE.clone() for moe in model.moes]
    model(x_BI)
    assert all(torch.equal(moe.open_TE, count) for moe, count in zip(model.moes, counts, strict=True))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x_BI), model(x_BI))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_the_same_gradients(model: RankMixer, x_BI: torch.Tensor) -> None:
    compiled = cast(RankMixer, torch.compile(model, fullgraph=True))
    for got, expected in zip(gradients(compiled, x_BI), gradients(model, x_BI), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
