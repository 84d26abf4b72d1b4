"""Is the head right on another device? Every choice of its configuration, module by module."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from benchmarks import moe
from benchmarks.token_parallel.collectives import Collectives
from rankmixer_head import RankMixer, RankMixerConfig
from rankmixer_head.config import Ablation, MoEConfig, Routing
from rankmixer_head.token_group import TokenGroup
from rankmixer_head.token_parallel import share

T, B, D, K = 4, 256, 64, 2  # rows of 16 bytes in bfloat16 too, as grouped products want
IN_WIDTHS = [40, 24, 56, 8]  # one group a token
# Relative to the largest value of the tensor. ReLU gates and top-k see the difference of two devices, so gradients
# may differ by more than their rounding.
OUTPUTS, GRADIENTS = 1e-4, 1e-3
HALF_OUTPUTS, HALF_GRADIENTS = 0.05, 0.2  # of norms
Row = dict[str, Any]


def choices() -> dict[str, dict[str, Any]]:
    """By name, what is asked for beside the sizes."""
    return {
        "rankmixer": {},
        "per_group": {"tokenizer": "per_group"},
        "global_token": {"global_token": True},
        "head_hidden": {"head_hidden": (24,)},
        "recompute": {"recompute": True},
        "mixing_gain": {"mixing_gain": True},
        "xavier": {"initialisation": "xavier"},
        "tokenmixer_large": {"block": "tokenmixer_large", "global_token": True},
        **{name: {"ablation": name} for name in get_args(Ablation) if name != "none"},
        **{f"moe {routing}": {"moe": MoEConfig(4, 0.5, routing)} for routing in get_args(Routing)},
    }


def build(name: str) -> RankMixer:
    """A small head on the CPU."""
    torch.manual_seed(3)
    return RankMixer(RankMixerConfig(T, D, layers=2, expansion=2, **choices()[name]), IN_WIDTHS, K)


def inputs(device: torch.device) -> tuple[Tensor, Tensor]:
    """x_BI and labels_BK, the same on every device."""
    generator = torch.Generator().manual_seed(4)
    x_BI = torch.randn(B, sum(IN_WIDTHS), generator=generator)
    return x_BI.to(device), torch.randint(0, 2, (B, K), generator=generator).float().to(device)


def parity(name: str, device: torch.device) -> Row:
    """Outputs of every module, trained and served, and all gradients, on the CPU and on the device."""
    model = build(name)
    cpu, other = (_observe(copy.deepcopy(model).to(where), where) for where in (torch.device("cpu"), device))
    assert cpu.keys() == other.keys()
    errors = {key: _error(other[key], cpu[key]) for key in cpu if not key.startswith("gradient")}
    gradients = _gradient_errors(cpu, other)
    worst, worst_gradient = max(errors, key=lambda key: errors[key]), max(gradients, key=lambda key: gradients[key])
    return {
        "outputs": errors[worst],
        "gradients": gradients[worst_gradient],
        "worst": f"{worst}, {worst_gradient}",
        "within": {"outputs": OUTPUTS, "gradients": GRADIENTS},
    }


def half(name: str, device: torch.device) -> Row:
    """Logits and gradients under bfloat16 autocast against float32: the norm of the difference over the norm."""
    model = build(name).to(device)
    exact = _observe(model, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        rounded = _observe(model, device)
    assert rounded["served "].dtype == torch.float32, "logits must be float32"
    # One number for all gradients together: single ones may be nearly 0.
    joined = [
        torch.cat([found[key].flatten() for key in exact if key.startswith("grad")]) for found in (rounded, exact)
    ]
    return {
        "outputs": _distance(rounded["served "], exact["served "]),
        "gradients": _distance(*joined),
        "within": {"outputs": HALF_OUTPUTS, "gradients": HALF_GRADIENTS},
    }


def compiled(name: str, device: torch.device) -> Row:
    """One graph without a break against eager: served logits, and gradients."""
    torch.compiler.reset()
    model = build(name).to(device)
    eager = _gradients_and_logits(model, model, device)
    fused = _gradients_and_logits(cast(nn.Module, torch.compile(model, fullgraph=True)), model, device)
    return {
        "outputs": _error(fused["served "], eager["served "]),
        "gradients": max(_gradient_errors(eager, fused).values()),
        "within": {"outputs": OUTPUTS, "gradients": GRADIENTS},
    }


def token_parallel(name: str, device: torch.device, compile: bool) -> Row:
    """Tokens shared in a group of one rank, exchanges and all, against the head as it is: served logits, gradients."""
    torch.compiler.reset()
    model = build(name).to(device)
    shared = copy.deepcopy(model)
    with _group_of_one(device) as mesh:
        share(shared, mesh, TokenGroup(mesh, T))
        run = cast(nn.Module, torch.compile(shared, fullgraph=True)) if compile else shared
        # What counts the exchanges is not to be compiled.
        with nullcontext() if compile else Collectives() as collectives:
            found = _gradients_and_logits(run, shared, device)
    expected = _gradients_and_logits(model, model, device)
    found = {key: value.to_local() if isinstance(value, DTensor) else value for key, value in found.items()}
    return {
        "outputs": _error(found["served "], expected["served "]),
        "gradients": max(_gradient_errors(expected, found).values()),
        **({"exchanges": len(collectives.seen)} if collectives else {}),
        "within": {"outputs": OUTPUTS, "gradients": GRADIENTS},
    }


@contextmanager
def _group_of_one(device: torch.device) -> Iterator[DeviceMesh]:
    on_cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
        device_id=device if on_cuda else None,
    )
    try:
        yield init_device_mesh(device.type, (1,), mesh_dim_names=("token",))
    finally:
        dist.destroy_process_group()


def grouped(dtype: torch.dtype, device: torch.device) -> Row:
    """The open experts, an eighth of them, against all: the error and the speedup."""
    torch.manual_seed(5)
    given = tuple(tensor.to(dtype) for tensor in moe.experts(8, 2048, 128, 512, 8, device.type))
    gates_TBE = moe.gates(8, 2048, 8, 1, "skewed").to(device)
    options = Namespace(dense_above=0.9, runs=5, measurements=5)
    speedup, error, _ = moe.measure(given, gates_TBE, options)
    limit = 1e-5 if dtype == torch.float32 else 0.03
    return {"outputs": error, "speedup": str(speedup), "within": {"outputs": limit}}


def _observe(model: RankMixer, device: torch.device) -> dict[str, Tensor]:
    """Gradients, and every module's outputs in training and in serving."""
    seen: dict[str, Tensor] = {}
    mode = "trained"

    def hook(name: str) -> Any:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen[f"{mode} {name}"] = output.detach()

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    gradients = _gradients(model, model, device)
    mode = "served"
    _serve(model, device)
    for handle in handles:
        handle.remove()
    return {**seen, **gradients}


def _gradients_and_logits(run: nn.Module, model: RankMixer, device: torch.device) -> dict[str, Tensor]:
    gradients = _gradients(run, model, device)
    return {**gradients, "served ": _serve(run, device)}


def _gradients(run: nn.Module, model: RankMixer, device: torch.device) -> dict[str, Tensor]:
    x_BI, labels_BK = inputs(device)
    run.train()
    logits_NK = run(x_BI.requires_grad_())
    # A training with two paths hands back the batch twice.
    loss = F.binary_cross_entropy_with_logits(logits_NK, labels_BK.repeat(len(logits_NK) // B, 1))
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, [x_BI, *parameters], allow_unused=True)
    return {
        f"gradient {name}": gradient
        for name, gradient in zip(("input", *names), found, strict=True)
        if gradient is not None
    }


@torch.no_grad()
def _serve(run: nn.Module, device: torch.device) -> Tensor:
    run.eval()
    return run(inputs(device)[0])


def _gradient_errors(expected: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    names = [name for name in expected if name.startswith("gradient")]
    floor = 1e-3 * max(expected[name].abs().max().item() for name in names)
    return {name: _error(found[name], expected[name], floor) for name in names}


def _error(found: Tensor, expected: Tensor, floor: float = 1e-12) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=floor)).item()


def _distance(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()
