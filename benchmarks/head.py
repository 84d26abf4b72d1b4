"""How much of the time of the head is matrix products: `python -m benchmarks.head`.

The reference is bare torch.bmm on the shapes of the per-token FFN, two products a layer forward and six in training.
The head is all of RankMixer: tokenizer, blocks, pooling, one task; in training the gradient of the input too.
A ratio of 1 would mean that everything besides those products is free. Compiled arms are the same head through
torch.compile. A second table (roofline.py) says where the rest of the time goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import arguments, interleave, paired_ratio, report
from benchmarks.roofline import roofline
from rankmixer_head import RankMixer, RankMixerConfig

IN_WIDTH = 1024


@dataclass(frozen=True)
class Case:
    """A preset, the batch it is measured at, and of how many measurements a run is the fastest."""

    preset: str
    batch: int
    measurements: int

    @property
    def config(self) -> RankMixerConfig:
        return RankMixerConfig.preset(self.preset)

    def memory(self) -> int:
        """Bytes that training takes: weights, gradients, the two moments of AdamW, activations."""
        weights = sum(p.numel() for p in RankMixer(self.config, [IN_WIDTH], 1, device="meta").parameters())
        config = self.config
        activations = 6 * config.layers * config.tokens * self.batch * (config.hidden + 2 * config.width)
        return 4 * (4 * weights + activations)


CASES = [Case("tiny", 4096, 25), Case("small", 512, 8), Case("100m", 128, 2), Case("1b", 32, 1)]


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0])
    presets = [case.preset for case in CASES]
    parser.add_argument("--presets", nargs="+", choices=presets, default=presets, help="default: all that fit")
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    limits: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for case in CASES:
        if case.preset not in options.presets:
            continue
        needed, available = case.memory() / 2**30, available_memory() / 2**30
        if needed > available / 2:
            reason = f"skipped: training takes {needed:.1f} GiB, more than half of the {available:.1f} GiB available"
            rows.append({"preset": case.preset, "B": case.batch, "pass": reason})
        else:
            best = measure(case, options.runs, rows, result)
            limits += roofline(case.preset, case.config, case.batch, IN_WIDTH, best, options.runs * case.measurements)
    title = f"RankMixer head against bare torch.bmm (float32, input width {IN_WIDTH}, one task)"
    further = {"What every operation takes, and at least must": limits}
    report(title, rows, result, record=options.record, further=further if limits else None)


def measure(case: Case, runs: int, rows: list[dict[str, Any]], result: dict[str, Any]) -> tuple[float, float]:
    """Measure one preset: two rows of the table, and what they say in the result; seconds of forward and training."""
    torch.manual_seed(0)
    model = RankMixer(case.config, [IN_WIDTH], num_tasks=1)
    compiled = cast(nn.Module, torch.compile(model))
    x_BI = torch.randn(case.batch, IN_WIDTH, requires_grad=True)
    bare = BareProducts(model, case.batch)
    arms = {
        "bare forward": bare.forward,
        "head forward": lambda: head_forward(model, x_BI),
        "compiled forward": lambda: head_forward(compiled, x_BI),
        "bare training": bare.training,
        "head training": lambda: head_training(model, x_BI),
        "compiled training": lambda: head_training(compiled, x_BI),
    }
    seconds = interleave({name: timer(arm) for name, arm in arms.items()}, runs, case.measurements, reduce=min)
    best = {name: min(values) for name, values in seconds.items()}
    flops = {"forward": model.flops_per_example(), "training": model.training_flops_per_example()}
    for kind, key in (("forward", "forward"), ("training", "train")):
        row = {"preset": case.preset, "B": case.batch, "pass": kind, "bare bmm, ms": best[f"bare {kind}"] * 1e3}
        for arm, suffix in (("head", ""), ("compiled", "_compiled")):
            ratio = paired_ratio(seconds[f"bare {kind}"], seconds[f"{arm} {kind}"])
            name = f"{case.preset}.{key}_ratio{suffix}"
            spread = {f"{name}_low": round(ratio.low, 4), f"{name}_high": round(ratio.high, 4)}
            result |= {name: ratio, **spread, f"{name}_unstable": ratio.unstable}
            row |= {f"{arm}, ms": best[f"{arm} {kind}"] * 1e3, f"bare / {arm}, median [min-max]": str(ratio)}
        fastest = min(best[f"head {kind}"], best[f"compiled {kind}"])
        row["GFLOP/s"] = flops[kind] * case.batch / fastest / 1e9
        row["examples/s"] = case.batch / fastest
        rows.append(row)
    return best["head forward"], best["head training"]


class BareProducts:
    """The matrix products of the per-token FFNs of a model, and nothing else."""

    def __init__(self, model: RankMixer, batch: int) -> None:
        self.x_TBD = torch.randn(model.config.tokens, batch, model.config.width)
        weights = dict(model.named_parameters())
        self.weights = [
            (weights[f"blocks.{layer}.ffn.up_TDM"].detach(), weights[f"blocks.{layer}.ffn.down_TMD"].detach())
            for layer in range(model.config.layers)
        ]

    def forward(self) -> Tensor:
        """Two products a layer."""
        x_TBD = self.x_TBD
        for up_TDM, down_TMD in self.weights:
            x_TBD = torch.bmm(torch.bmm(x_TBD, up_TDM), down_TMD)
        return x_TBD

    def training(self) -> list[tuple[Tensor, Tensor]]:
        """Six products a layer; the inputs of a product are kept for its gradients, and these are returned."""
        x_TBD, kept = self.x_TBD, []
        for up_TDM, down_TMD in self.weights:
            hidden_TBM = torch.bmm(x_TBD, up_TDM)
            kept.append((x_TBD, hidden_TBM))
            x_TBD = torch.bmm(hidden_TBM, down_TMD)
        gradients = []
        grad_TBD = x_TBD
        for (up_TDM, down_TMD), (in_TBD, hidden_TBM) in zip(reversed(self.weights), reversed(kept), strict=True):
            grad_TMD = torch.bmm(hidden_TBM.mT, grad_TBD)
            grad_TBM = torch.bmm(grad_TBD, down_TMD.mT)
            gradients.append((torch.bmm(in_TBD.mT, grad_TBM), grad_TMD))
            grad_TBD = torch.bmm(grad_TBM, up_TDM.mT)
        return gradients


@torch.no_grad()
def head_forward(model: Callable[[Tensor], Tensor], x_BI: Tensor) -> Tensor:
    """Logits, as they are served."""
    return model(x_BI)


def head_training(model: nn.Module, x_BI: Tensor) -> None:
    """Forward, loss and backward, the input's gradient included; both arms take memory for gradients and free it."""
    logits_BK = model(x_BI)
    F.binary_cross_entropy_with_logits(logits_BK, torch.zeros_like(logits_BK)).backward()
    model.zero_grad(set_to_none=True)
    x_BI.grad = None


def timer(arm: Callable[[], object]) -> Callable[[], float]:
    """Seconds of one call."""

    def seconds() -> float:
        start = time.perf_counter()
        arm()
        return time.perf_counter() - start

    return seconds


def available_memory() -> int:
    """Bytes that can be had without swapping, as Linux estimates."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


if __name__ == "__main__":
    main()
