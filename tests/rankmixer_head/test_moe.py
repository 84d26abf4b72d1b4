"""The Sparse-MoE: gates, experts, penalty and statistics, against twins in loops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library

from rankmixer_head import Activity, MoEConfig, PerTokenMoE, RankMixer, RankMixerConfig
from rankmixer_head.config import Routing
from rankmixer_head.moe.experts import _add_all_groups, all_experts, open_experts, serve_experts
from rankmixer_head.moe.routing import START, RoutingController

B, T, D, M, E = 5, 4, 12, 30, 6
ROUTINGS: list[Routing] = ["dtsi", "dtsi_split", "dtsi_distill", "single", "top_k"]


def random_moe(routing: Routing = "single", active_ratio: float = 0.5) -> PerTokenMoE:
    torch.manual_seed(6)
    moe = PerTokenMoE(T, D, M, MoEConfig(E, active_ratio, routing)).double()
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return moe


def examples(moe: PerTokenMoE, weight_B: Tensor | None = None, penalty: float = 0.0) -> Any:
    controller = RoutingController(moe.config).double().train(moe.training)
    controller.log_penalty.fill_(penalty / START).log_()
    return controller.examples(torch.ones(B, dtype=torch.double) if weight_B is None else weight_B)


def naive_gates(s_D: Tensor, router_DE: Tensor, bias_E: Tensor, config: MoEConfig) -> Tensor:
    logits_E = s_D @ router_DE + bias_E
    if config.routing != "top_k":
        return logits_E.clamp(min=0)
    shares_E = logits_E.exp() / logits_E.exp().sum()
    best = sorted(range(E), key=lambda j: -shares_E[j].item())[: config.top_k]
    return torch.stack([shares_E[j] if j in best else shares_E[j] * 0 for j in range(E)])


def naive_moe(moe: PerTokenMoE, s_TBD: Tensor, router: str = "router") -> Tensor:
    router_TDE, bias_TE = getattr(moe, f"{router}_TDE"), getattr(moe, f"{router}_bias_TE")
    out = torch.zeros_like(s_TBD)
    for t in range(T):
        for b in range(B):
            gates_E = naive_gates(s_TBD[t, b], router_TDE[t], bias_TE[t], moe.config)
            for j in range(E):
                hidden_M = F.gelu(moe.up_TEMD[t, j] @ s_TBD[t, b] + moe.up_bias_TEM[t, j])
                expert_D = hidden_M @ moe.down_TEMD[t, j] + moe.down_bias_TED[t, j]
                out[t, b] = out[t, b] + gates_E[j] * expert_D
    return out


@pytest.mark.parametrize("routing", ["single", "top_k"])
def test_equals_the_naive_twin_forward_and_backward(routing: Routing) -> None:
    moe = random_moe(routing)
    s_TBD = torch.randn(T, B, D, dtype=torch.double, requires_grad=True)
    got, expected = moe(s_TBD), naive_moe(moe, s_TBD)
    torch.testing.assert_close(got, expected)
    upstream, inputs = torch.randn_like(got), [s_TBD, *moe.parameters()]
    for got_grad, expected_grad in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got_grad, expected_grad)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("dense_above", [0.0, 1.0])
def test_serving_uses_the_router_that_serves(routing: Routing, dense_above: float) -> None:
    moe = random_moe(routing).eval()
    object.__setattr__(moe.config, "dense_above", dense_above)
    s_TBD = torch.randn(T, B, D, dtype=torch.double)
    before = s_TBD.clone()
    with torch.no_grad():
        torch.testing.assert_close(moe(s_TBD), naive_moe(moe, s_TBD))
    assert torch.equal(s_TBD, before)
    torch.testing.assert_close(moe(s_TBD), naive_moe(moe, s_TBD))  # with gradients: all experts


def test_training_with_two_routers_uses_the_path_of_each_example() -> None:
    moe, s_TBD = random_moe("dtsi_split"), torch.randn(T, B, D, dtype=torch.double)
    served, trained = naive_moe(moe, s_TBD), naive_moe(moe, s_TBD, "train_router")
    got = moe(s_TBD, examples(moe))
    for b in range(B):
        torch.testing.assert_close(got[:, b], served[:, b] if b % 2 == 0 else trained[:, b])
    torch.testing.assert_close(moe(s_TBD), trained)


def open_gates(share: int) -> Tensor:
    """Gates of which each example opens E/share, other ones for each example; and a token that opens none."""
    gates_TBE = torch.rand(T, B, E) + 0.1
    closed = (torch.arange(E) + torch.arange(B).view(B, 1)) % share != 0
    return gates_TBE.masked_fill(closed, 0.0) * (torch.arange(T) != 2).view(T, 1, 1)


@pytest.mark.parametrize("share", [1, 2, 6])
def test_open_experts_are_all_that_is_computed_and_enough(share: int) -> None:
    moe = random_moe().float()
    s_TBD, gates_TBE = torch.randn(T, B, D), open_gates(share)
    weights = [moe.up_TEMD, moe.up_bias_TEM, moe.down_TEMD, moe.down_bias_TED]
    with torch.no_grad():
        expected = all_experts(s_TBD, gates_TBE, *weights)
        torch.testing.assert_close(open_experts(s_TBD, gates_TBE, *weights), expected)
        # An expert that nobody opens is not computed: NaN in its weights reaches no output of sparse evaluation.
        gates_TBE[1, :, 3] = 0.0
        expected = all_experts(s_TBD, gates_TBE, *weights)
        for weight in weights[:3]:
            weight[1, 3] = torch.nan
        torch.testing.assert_close(open_experts(s_TBD, gates_TBE, *weights), expected)
        assert all_experts(s_TBD, gates_TBE, *weights).isnan().any()
        no_gates = torch.zeros_like(gates_TBE)
        assert open_experts(s_TBD, no_gates, *weights).count_nonzero() == 0


@pytest.mark.parametrize("share", [1, 2, 6])
def test_what_a_gpu_computes_in_grouped_products_is_the_same(share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankmixer_head.moe.experts._add_group_by_group", _add_all_groups)
    s_TBD, gates_TBE = torch.randn(T, B, 16), open_gates(share)
    weights = torch.randn(T, E, 24, 16), torch.randn(T, E, 24), torch.randn(T, E, 24, 16), torch.randn(T, E, 16)
    with torch.no_grad():
        expected = all_experts(s_TBD, gates_TBE, *weights)
        torch.testing.assert_close(open_experts(s_TBD, gates_TBE, *weights), expected, rtol=1e-5, atol=1e-4)
        assert open_experts(s_TBD, torch.zeros_like(gates_TBE), *weights).count_nonzero() == 0


def test_evaluation_turns_dense_above_the_measured_activity() -> None:
    moe = random_moe().float()
    s_TBD, gates_TBE = torch.randn(T, B, D), open_gates(2)
    weights = [moe.up_TEMD, moe.up_bias_TEM, moe.down_TEMD, moe.down_bias_TED]
    with torch.no_grad():
        activity = (gates_TBE > 0).float().mean().item()
        gates_TBE[1, :, 3] = 0.0
        moe.up_TEMD[1, 3] = torch.nan  # betrays who computes it
        assert not serve_experts(s_TBD, gates_TBE, *weights, activity).isnan().any()
        assert serve_experts(s_TBD, gates_TBE, *weights, activity / 2).isnan().any()


@pytest.mark.parametrize("dense_above", [0.0, 1.0])
def test_the_compiler_is_told_the_truth_about_serving(dense_above: float) -> None:
    moe = random_moe().requires_grad_(False)
    s_TBD = torch.randn(B, T, D, dtype=torch.double).transpose(0, 1)  # what is returned does not lie like this
    weights = [moe.up_TEMD, moe.up_bias_TEM, moe.down_TEMD, moe.down_bias_TED]
    library.opcheck(serve_experts, (s_TBD, open_gates(2).double(), *weights, dense_above))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_no_examples_give_no_logits(routing: Routing, training: bool) -> None:
    model = RankMixer(RankMixerConfig(T, D, 2, 2.5, moe=MoEConfig(E, 0.5, routing)), in_widths=[18], num_tasks=2)
    with torch.set_grad_enabled(training):
        assert model.train(training)(torch.empty(0, 18)).shape == (0, 2)
    model.adapt_penalty()


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_penalty_presses_only_the_router_that_serves(routing: Routing) -> None:
    moe = random_moe(routing)
    s_TBD = torch.randn(T, B, D, dtype=torch.double)
    weight_B = torch.tensor([0.5, 0.0, 0.25, 1.0, 0.125], dtype=torch.double)
    if routing == "dtsi":
        s_TBD = torch.cat([s_TBD, s_TBD], dim=1)
    moe.load_TE.copy_(torch.rand(T, E))
    if routing == "dtsi_distill":  # nothing to imitate: the served path is that of training already
        for name in ("router_TDE", "router_bias_TE"):
            getattr(moe, name).data.copy_(getattr(moe, f"train_{name}"))
    # The outputs' gradient is zero, so all that remains comes from the penalty.
    (moe(s_TBD, examples(moe, weight_B, penalty=0.3)) * 0.0).sum().backward()
    got = {name: parameter.grad.clone() for name, parameter in moe.named_parameters() if parameter.grad is not None}
    moe.zero_grad()

    u_TE = moe.load_TE / moe.load_TE.mean()
    penalty = torch.zeros((), dtype=torch.double)
    for b in range(B):
        if routing == "dtsi_split" and b % 2:
            continue
        for t in range(T):
            pressed_E = naive_gates(s_TBD[t, b], moe.router_TDE[t], moe.router_bias_TE[t], moe.config)
            if routing == "top_k":
                pressed_E = (s_TBD[t, b] @ moe.router_TDE[t] + moe.router_bias_TE[t]).softmax(0)
            penalty = penalty + weight_B[b] * (u_TE[t] * pressed_E).sum() / T
    scale = {"top_k": 0.01, "dtsi_split": 0.6}.get(routing, 0.3)
    (scale * penalty).backward()
    for name, parameter in moe.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_distillation_teaches_the_serving_router_and_nothing_else() -> None:
    moe = random_moe("dtsi_distill")
    s_TBD = torch.randn(T, B, D, dtype=torch.double, requires_grad=True)
    (moe(s_TBD, examples(moe, penalty=0.0)) * 0.0).sum().backward()
    taught = {name for name, parameter in moe.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert taught == {"router_TDE", "router_bias_TE"}
    assert s_TBD.grad is not None
    assert s_TBD.grad.count_nonzero() == 0


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("training", [True, False])
def test_counts_are_those_of_the_last_forward_without_padding(routing: Routing, training: bool) -> None:
    moe = random_moe(routing).train(training)
    s_TBD = torch.randn(T, B, D, dtype=torch.double)
    weight_B = torch.tensor([0.5, 0.0, 0.25, 1.0, 0.125], dtype=torch.double)
    counted = [0, 2, 4] if training and routing == "dtsi_split" else [0, 2, 3, 4]
    for _ in range(2):
        doubled = training and routing == "dtsi"
        moe(torch.cat([s_TBD, s_TBD], dim=1) if doubled else s_TBD, examples(moe, weight_B))
    expected_TE = torch.zeros(T, E, dtype=torch.double)
    for t in range(T):
        for b in counted:
            gates_E = naive_gates(s_TBD[t, b], moe.router_TDE[t], moe.router_bias_TE[t], moe.config)
            expected_TE[t] += gates_E > 0
    assert torch.equal(moe.open_TE, expected_TE)
    assert moe.seen.item() == len(counted)
    activity = Activity([moe])
    activity.add()
    activity.add()
    torch.testing.assert_close(activity.load_LTE(), expected_TE.unsqueeze(0) / len(counted))
    torch.testing.assert_close(activity.load_LTE(lambda counts: counts.mul_(3)), expected_TE[None] / len(counted))


def test_lambda_grows_above_the_budget_and_shrinks_below_it_on_all_ranks_together() -> None:
    config = MoEConfig(E, active_ratio=0.5)

    def adapted(open_share: float, other_rank: float) -> tuple[float, float]:
        moe, controller = PerTokenMoE(T, D, M, config), RoutingController(config)
        moe.open_TE.fill_(open_share * B)
        moe.seen.fill_(B)
        other = torch.full((T * E + 1,), other_rank * B)
        other[-1] = B
        before = controller.log_penalty.item()
        controller.adapt([moe], lambda counts: counts.add_(other))
        return controller.log_penalty.item() - before, moe.load_TE.mean().item()

    assert adapted(1.0, 1.0)[0] > 0 > adapted(0.0, 0.0)[0]
    assert adapted(1.0, 0.0)[0] == pytest.approx(0.0, abs=1e-6)
    assert adapted(1.0, 0.0)[1] == pytest.approx(0.5)
    assert adapted(0.25, 0.75) == adapted(0.75, 0.25)


def test_an_expert_that_hardly_any_example_opens_is_brought_back() -> None:
    config = MoEConfig(E, active_ratio=0.25, routing="single")
    moe, controller = PerTokenMoE(T, D, M, config), RoutingController(config)
    moe.router_bias_TE.data[1, 2] = -3.0
    for _ in range(600):
        moe(torch.randn(T, 32, D), controller.examples(torch.ones(32)))
        controller.adapt([moe])
    assert moe.load_TE[1, 2] > 0
    assert (moe.router_bias_TE != 0).sum() == 1, "the others are left alone"


def test_a_batch_of_padding_alone_changes_no_state() -> None:
    config = MoEConfig(E, active_ratio=0.25, routing="single")
    moe, controller = PerTokenMoE(T, D, M, config), RoutingController(config)
    before = moe.load_TE.clone(), controller.log_penalty.clone()
    moe(torch.randn(T, B, D), controller.examples(torch.zeros(B)))
    controller.adapt([moe])
    assert torch.equal(moe.load_TE, before[0])
    assert torch.equal(controller.log_penalty, before[1])


def planted(routing: Routing, active_ratio: float, steps: int) -> tuple[RankMixer, Tensor, Tensor]:
    """A model trained for some steps on labels with a planted truth, and examples it has not seen."""
    generator = torch.Generator().manual_seed(10)
    truth = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    for parameter in truth.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x_BI = torch.randn(256 * steps + 4096, 24, generator=generator)
    with torch.no_grad():
        labels_BK = torch.bernoulli(truth(x_BI).sigmoid(), generator=generator)
    torch.manual_seed(11)
    config = RankMixerConfig(tokens=4, width=16, layers=2, expansion=1, moe=MoEConfig(8, active_ratio, routing))
    model = RankMixer(config, in_widths=[24], num_tasks=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        rows = slice(step * 256, step * 256 + 256)
        logits_2BK = model(x_BI[rows]).unflatten(0, (-1, 256))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits_2BK, labels_BK[rows].expand_as(logits_2BK)).backward()
        optimizer.step()
        model.adapt_penalty()
    return model, x_BI[-4096:], labels_BK[-4096:]


@pytest.mark.parametrize(
    ("routing", "active_ratio"), [("dtsi", 0.25), ("dtsi_split", 0.25), ("single", 0.25), ("single", 0.75)]
)
def test_what_is_served_is_what_was_trained_within_the_budget_and_no_expert_dies(
    routing: Routing, active_ratio: float
) -> None:
    model, x_BI, labels_BK = planted(routing, active_ratio, steps=400)
    activity = Activity(model.moes)

    def loss(logits_BK: Tensor) -> float:
        return F.binary_cross_entropy_with_logits(logits_BK, labels_BK).item()

    with torch.no_grad():
        served = loss(model.eval()(x_BI))
        activity.add()
        trained = loss(model.train()(x_BI)[: len(x_BI)])
    load_LTE = activity.load_LTE()
    assert served < trained + 0.01
    assert load_LTE.mean().item() == pytest.approx(active_ratio, rel=0.1)
    assert load_LTE.min() > 0
    assert served < loss(labels_BK.mean().logit().expand_as(labels_BK)) - 0.08


@pytest.mark.parametrize("routing", ROUTINGS)
def test_recomputing_changes_neither_gradients_nor_statistics(routing: Routing) -> None:
    def run(recompute: bool) -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(12)
        config = RankMixerConfig(4, 12, 2, 2.5, moe=MoEConfig(E, 0.5, routing), recompute=recompute)
        model = RankMixer(config, in_widths=[18], num_tasks=2)
        model(torch.randn(B, 18)).square().sum().backward()
        model.adapt_penalty()
        return [p.grad for p in model.parameters() if p.grad is not None], list(model.buffers())

    for kept, again in zip(run(False), run(True), strict=True):
        for a, b in zip(kept, again, strict=True):
            torch.testing.assert_close(a, b)
