"""Which routing of a Sparse-MoE serves best on a planted task? `python -m benchmarks.routings`.

Labels are drawn from a random network of the input, so what can be reached is known: its AUC is the ceiling. Every
routing trains the same head on the same batches, each seen once, and is judged on rows it has not seen: along the path
that serves, with the budget it then opens, and along the path that training uses. The largest entry of any gradient
shows a division by almost nothing.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import arguments, report
from rankmixer.pipeline.metrics.metrics import Metrics
from rankmixer_head import Activity, MoEConfig, RankMixer, RankMixerConfig
from rankmixer_head.config import Routing

BATCH, IN_WIDTH, JUDGED = 256, 24, 4096


class Trained(NamedTuple):
    """A head after its training, and rows that it has not seen, with what is true of them."""

    model: RankMixer
    x_BI: Tensor
    labels_BK: Tensor
    logits_BK: Tensor
    largest_gradient: float


def planted(routing: Routing, active_ratio: float, steps: int, seed: int = 0, experts: int = 8) -> Trained:
    """Train a small Sparse-MoE for some steps on labels with a planted truth."""
    generator = torch.Generator().manual_seed(10 + seed)
    truth = nn.Sequential(nn.Linear(IN_WIDTH, 16), nn.Tanh(), nn.Linear(16, 1))
    for parameter in truth.parameters():
        nn.init.normal_(parameter, generator=generator)
    x_BI = torch.randn(BATCH * steps + JUDGED, IN_WIDTH, generator=generator)
    with torch.no_grad():
        logits_BK = truth(x_BI)
        labels_BK = torch.bernoulli(logits_BK.sigmoid(), generator=generator)
    torch.manual_seed(11 + seed)
    config = RankMixerConfig(tokens=4, width=16, layers=2, expansion=1, moe=MoEConfig(experts, active_ratio, routing))
    model = RankMixer(config, in_widths=[IN_WIDTH], num_tasks=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    largest = torch.zeros(())
    for step in range(steps):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        logits_2BK = model(x_BI[rows]).unflatten(0, (-1, BATCH))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits_2BK, labels_BK[rows].expand_as(logits_2BK)).backward()
        gradients = [parameter.grad.abs().max() for parameter in model.parameters() if parameter.grad is not None]
        largest = torch.stack([largest, *gradients]).max()
        optimizer.step()
        model.adapt_penalty()
    return Trained(model, x_BI[-JUDGED:], labels_BK[-JUDGED:], logits_BK[-JUDGED:], largest.item())


@torch.no_grad()
def judge(trained: Trained) -> dict[str, float]:
    """AUC of what is served, of the path of training and of the truth; experts open and dead; the largest gradient."""
    model, x_BI = trained.model, trained.x_BI
    activity = Activity(model.moes)
    served_BK = model.eval()(x_BI)
    activity.add()
    load_LTE = activity.load_LTE()
    return {
        "served AUC": auc(served_BK, trained.labels_BK),
        "trained AUC": auc(model.train()(x_BI)[: len(x_BI)], trained.labels_BK),
        "ceiling": auc(trained.logits_BK, trained.labels_BK),
        "open": load_LTE.mean().item(),
        "dead": float((load_LTE == 0).sum()),
        "largest gradient": trained.largest_gradient,
    }


def auc(logits_BK: Tensor, labels_BK: Tensor) -> float:
    """Of one task.

    >>> auc(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [0.0]]))
    0.5
    """
    metrics = Metrics(["task"])
    metrics.update(logits_BK, labels_BK, torch.ones(len(labels_BK)))
    return metrics.compute()["auc"]


def row(routing: Routing, found: list[dict[str, float]]) -> dict[str, Any]:
    """The seeds of one routing as a line of the table: means, with the served AUC of each; the largest gradient."""
    means = {name: statistics.mean(one[name] for one in found) for name in found[0]}
    each = ", ".join(f"{one['served AUC']:.4f}" for one in found)
    worst = max(one["largest gradient"] for one in found)
    return {"routing": routing, **means, "largest gradient": worst, "served AUC of each seed": each}


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], runs=3)
    parser.add_argument("--steps", type=int, default=400, help=f"of {BATCH} examples (default %(default)s)")
    parser.add_argument("--experts", type=int, default=8, help="of a token (default %(default)s)")
    parser.add_argument("--active-ratio", type=float, default=0.25, help="the budget (default %(default)s)")
    parser.add_argument("--routings", nargs="+", choices=get_args(Routing), default=get_args(Routing))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, result = [], {name: getattr(options, name) for name in ("steps", "experts", "active_ratio", "runs")}
    for routing in options.routings:
        started = time.process_time()
        found = [
            judge(planted(routing, options.active_ratio, options.steps, seed, options.experts))
            for seed in range(options.runs)
        ]
        seconds = (time.process_time() - started) / options.runs
        rows.append({**row(routing, found), "CPU s": seconds})
        result |= {f"{routing}.{name}": round(rows[-1][name], 4) for name in ("served AUC", "trained AUC", "open")}
    title = f"A planted task, {options.runs} seeds, {options.steps} steps, budget {options.active_ratio:g}"
    report(title, rows, result, record=options.record)


if __name__ == "__main__":
    main()
