import copy
import math

import pytest
import torch
from torch import nn
from torchrec.optim.keyed import KeyedOptimizerWrapper

from rankmixer.launch.config.optimizer import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from rankmixer.launch.model.muon import StackedMuon
from rankmixer.launch.model.optimizers import RankerOptimizer, dense_optimizer, fuse_sparse_optimizer, schedule_factor
from rankmixer_head import MoEConfig, RankMixer, RankMixerConfig


@pytest.mark.parametrize("stacked", [(3,), (3, 2)], ids=["tokens", "tokens and experts"])
def test_stacked_muon_is_torchs_muon_on_every_slice(stacked: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(*stacked, 4, 6))
    slices = [nn.Parameter(matrix.clone()) for matrix in stack.detach().flatten(0, -3)]
    ours = StackedMuon([stack], lr=0.1, weight_decay=0.01)
    theirs = torch.optim.Muon(slices, lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        stack.grad = torch.randn_like(stack)
        for matrix, grad in zip(slices, stack.grad.flatten(0, -3), strict=True):
            matrix.grad = grad.clone()
        ours.step()
        theirs.step()
        ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.05
    expected = torch.stack([matrix.detach() for matrix in slices]).view_as(stack)
    torch.testing.assert_close(stack.detach(), expected, rtol=0, atol=0)
    assert ours.state[stack]["momentum_buffer"].shape == stack.shape


def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_the_rest() -> None:
    config = RankMixerConfig(tokens=4, width=12, layers=2, expansion=2, moe=MoEConfig(experts=3))
    params = {f"head.{name}": p for name, p in RankMixer(config, [18], num_tasks=2).named_parameters()}
    optimizer = dense_optimizer(params, DenseOptimizerConfig(kind="muon"))
    for param in params.values():
        param.grad = torch.ones_like(param)
    optimizer.step()
    state = optimizer.state_dict()["state"]
    muons = {name for name, of_param in state.items() if set(of_param) == {"momentum_buffer"}}
    assert muons == {f"head.blocks.{layer}.ffn.{name}_TEMD" for layer in range(2) for name in ("up", "down")}
    assert all("exp_avg" in of_param for name, of_param in state.items() if name not in muons)


def test_schedule() -> None:
    cosine = ScheduleConfig(warmup_steps=4, decay="cosine", final=0.1)
    factors = [schedule_factor(cosine, step, total_steps=10) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[7] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert factors[10] == factors[11] == pytest.approx(0.1)
    assert schedule_factor(ScheduleConfig(), 7, total_steps=10) == 1.0


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 2])
@pytest.mark.parametrize("final", [0.0, 0.2, 1.0])
def test_final_is_what_the_decay_has_reached_when_the_last_step_is_done(
    decay: str, warmup_steps: int, final: float
) -> None:
    """As torch's own schedulers, so that with 0 the last step still learns; the doctest and the key say the same."""
    config, total = ScheduleConfig(warmup_steps=warmup_steps, decay=decay, final=final), 10 + warmup_steps
    factors = [schedule_factor(config, step, total) for step in range(total + 3)]
    assert factors[0] == (0.5 if warmup_steps else 1.0)
    assert factors[warmup_steps] == 1.0
    assert factors[warmup_steps + 5] == pytest.approx((1 + final) / 2)
    last = 0.1 if decay == "linear" else (1 + math.cos(0.9 * math.pi)) / 2
    assert factors[total - 1] == pytest.approx(final + (1 - final) * last)
    assert factors[total - 1] > 0
    assert factors[total:] == pytest.approx([final] * 3)

    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = (
        torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, final, total_iters=10)
        if decay == "linear"
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=final)
    )
    for factor in factors[warmup_steps : total + 1]:
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_clipping_clips_and_schedule_moves_every_group() -> None:
    table, weight = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(4))
    fused = KeyedOptimizerWrapper({"table": table}, lambda ps: torch.optim.SGD(ps, lr=0.2))
    dense = KeyedOptimizerWrapper({"weight": weight}, lambda ps: torch.optim.SGD(ps, lr=1.0))
    schedule = ScheduleConfig(warmup_steps=2)
    optimizer = RankerOptimizer(fused, dense, schedule, total_steps=10, clip_norm=1.0)
    optimizer.follow_schedule(0)
    assert optimizer.learning_rates == (0.1, 0.5)
    weight.grad, table.grad = torch.full((4,), 3.0), torch.full((5,), 3.0)
    optimizer.step()
    assert optimizer.grad_norm is not None
    assert optimizer.grad_norm.item() == pytest.approx(6.0)  # before clipping
    torch.testing.assert_close(weight.detach(), torch.full((4,), -0.25))  # 0.5 * 3 / 6
    torch.testing.assert_close(table.detach(), torch.full((5,), -0.3))  # tables are not clipped


def test_adam_on_cpu_tables_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer.sparse.kind is adam, .* CUDA only; on CPU use rowwise_adagrad"):
        fuse_sparse_optimizer(nn.Linear(2, 2), SparseOptimizerConfig(kind="adam"), torch.device("cpu"))


@pytest.mark.parametrize("kind", ["adamw", "rmsprop", "adagrad", "muon"])
def test_a_restored_dense_optimizer_takes_the_same_step(kind: str) -> None:
    def fresh() -> tuple[dict[str, nn.Parameter], RankerOptimizer]:
        torch.manual_seed(1)
        params = {"stack": nn.Parameter(torch.randn(2, 3, 4)), "bias": nn.Parameter(torch.randn(5))}
        table = nn.Parameter(torch.zeros(1))
        fused = KeyedOptimizerWrapper({"table": table}, lambda ps: torch.optim.SGD(ps, lr=0.2))
        dense = dense_optimizer(params, DenseOptimizerConfig(kind=kind, lr=0.1, weight_decay=0.01))
        return params, RankerOptimizer(fused, dense, ScheduleConfig(), total_steps=10, clip_norm=None)

    def step(params: dict[str, nn.Parameter], optimizer: RankerOptimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for param in params.values():
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()

    params, optimizer = fresh()
    for seed in range(3):
        step(params, optimizer, seed)
    weights = {name: param.detach().clone() for name, param in params.items()}
    state = copy.deepcopy(optimizer.state_dict())
    restored_params, restored = fresh()
    restored.init_dense_state()
    restored.load_state_dict(state)
    with torch.no_grad():
        for name, param in restored_params.items():
            param.copy_(weights[name])
    step(params, optimizer, seed=9)
    step(restored_params, restored, seed=9)
    for name, param in params.items():
        assert torch.equal(param, restored_params[name]), name
        assert not torch.equal(param, weights[name]), name
