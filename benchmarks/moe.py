"""What does it save to compute only the open experts? `python -m benchmarks.moe`.

The reference computes all experts of every token and gates them, from the same weights and gates. The gates are given,
so that exactly 1, 1/2, 1/4, 1/8 of the experts of every example are open: "even", where every expert is open for as
many examples as any other, and "skewed", where the first experts are for most of them. A dense per-token FFN of the
hidden width E*M stands beside them: what all experts cost without any gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Ratio, arguments, interleave, paired_ratio, report
from rankmixer.launch.ranks.distributed import keep_freed_memory
from rankmixer_head.config import MoEConfig
from rankmixer_head.moe.experts import all_experts, serve_experts
from rankmixer_head.per_token_ffn import PerTokenFFN

OPEN = (8, 4, 2, 1)  # of E = 8


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0])
    sizes = {"tokens": 8, "batch": 4096, "width": 128, "hidden": 512, "experts": 8}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help="default %(default)s")
    parser.add_argument(
        "--dense-above", type=float, default=MoEConfig(8).dense_above, help="as in MoEConfig; default %(default)s"
    )
    parser.add_argument("--measurements", type=int, default=3, help="a run is the fastest of so many")
    parser.add_argument("--threads", type=int, default=1, help="default %(default)s, as torchrun gives a rank")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.experts % max(OPEN):
        parser.error(f"--experts {options.experts}: expected a multiple of {max(OPEN)}, so that 1/{max(OPEN)} is whole")

    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as a rank does
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {key: getattr(options, key) for key in (*sizes, "dense_above")}
    errors = []
    torch.manual_seed(0)
    inputs = experts(options.tokens, options.batch, options.width, options.hidden, options.experts, options.device)
    for of_eight in OPEN:
        for kind in ("even", "skewed"):
            gates_TBE = gates(options.tokens, options.batch, options.experts, options.experts * of_eight // 8, kind)
            speedup, error, row = measure(inputs, gates_TBE.to(options.device), options)
            rows.append({"open": f"{of_eight}/8", "gates": kind, **row})
            errors.append(error)
            key = {8: "1_1", 4: "1_2", 2: "1_4", 1: "1_8"}[of_eight] + ("" if kind == "even" else "_skewed")
            result[f"speedup_{key}"] = speedup
            result[f"speedup_{key}_unstable"] = speedup.unstable
    # What serving costs beyond the dense computation where every expert is open: 0.1 is 10 % slower.
    result["overhead_1_1"] = round(1 / result["speedup_1_1"].median - 1, 4)
    result["max_error"] = max(errors)
    shape = ", ".join(f"{key} = {result[name]}" for key, name in zip("TBDME", sizes, strict=True))
    report(
        f"Open experts against all experts ({shape}, float32, {options.device})", rows, result, record=options.record
    )


def experts(tokens: int, batch: int, width: int, hidden: int, count: int, device: str) -> tuple[Tensor, ...]:
    """Tokens s_TBD and the weights of their experts, as all_experts takes them, of the scale a network has."""
    return (
        torch.randn(tokens, batch, width, device=device),
        torch.randn(tokens, count, hidden, width, device=device) / width**0.5,
        torch.randn(tokens, count, hidden, device=device),
        torch.randn(tokens, count, hidden, width, device=device) / hidden**0.5,
        torch.randn(tokens, count, width, device=device),
    )


def gates(tokens: int, batch: int, count: int, open_count: int, kind: str) -> Tensor:
    """gates_TBE with exactly `open_count` positive ones for every token and example.

    >>> (gates(1, 4, 4, 2, "even") > 0).int()[0].tolist()
    [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]]
    >>> (gates(2, 64, 4, 1, "skewed") > 0).sum(1)[0].tolist()
    [39, 16, 6, 3]
    """
    if kind == "even":
        first_B = torch.arange(batch) % count
    else:  # expert e is the first of about a fraction 0.6 * 0.4**e of the examples
        shares_E = 0.4 ** torch.arange(count, dtype=torch.float64)
        ends_E = (shares_E.cumsum(0) / shares_E.sum() * batch).round()
        first_B = torch.bucketize(torch.arange(batch), ends_E, right=True)
    place_TBE = (torch.arange(count) - first_B.unsqueeze(1)) % count
    return ((place_TBE < open_count) * (0.5 + torch.rand(tokens, batch, count))).contiguous()


@torch.no_grad()
def measure(inputs: tuple[Tensor, ...], gates_TBE: Tensor, options: Any) -> tuple[Ratio, float, dict[str, Any]]:
    """Speedup of serving over all experts, its relative error, and a row of the table."""
    s_TBD, *weights = inputs
    T, _, D = s_TBD.shape
    ffn = PerTokenFFN(T, D, weights[1].flatten(1).shape[1], device=s_TBD.device).to(s_TBD.dtype)
    arms: dict[str, Callable[[], Tensor]] = {
        "all": lambda: all_experts(s_TBD, gates_TBE, *weights),
        "served": lambda: serve_experts(s_TBD, gates_TBE, *weights, options.dense_above),
        "FFN": lambda: ffn(s_TBD),
    }
    expected_TBD = arms["all"]()
    error = ((arms["served"]() - expected_TBD).abs().max() / expected_TBD.abs().max()).item()
    clocks = {name: timer(arm, s_TBD.device) for name, arm in arms.items()}
    seconds = interleave(clocks, options.runs, options.measurements, reduce=min)
    speedup = paired_ratio(seconds["all"], seconds["served"])
    row = {
        "dense FFN, ms": min(seconds["FFN"]) * 1e3,
        "all experts, ms": min(seconds["all"]) * 1e3,
        "served, ms": min(seconds["served"]) * 1e3,
        "FFN / all": paired_ratio(seconds["FFN"], seconds["all"]),
        "all / served, median [min-max]": speedup,
        "relative error": error,
    }
    return speedup, error, row


def timer(arm: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Seconds of one call, finished on its device."""

    def seconds() -> float:
        synchronise(device)
        start = time.perf_counter()
        arm()
        synchronise(device)
        return time.perf_counter() - start

    return seconds


def synchronise(device: torch.device) -> None:
    """Wait for the device, where it runs by itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
