"""What does token parallelism send, hold and take? `python -m benchmarks.token_parallel`.

On 1, 2 and 4 gloo ranks of this machine, all of them one token group. Collectives are counted on the head's own group
as it calls them; bytes stand against the formula of docs/token_parallelism.md, against DDP's gradients, and against one
dispatch and one combine in each layer: without what the tokenizer adds to those, though it is in ours, and with it. The
input is as wide as all tokens together; a narrower one sends less.

Step times are compared with DDP's on two ranks, one thread each, same batch, same optimizer. Communication is what a
step takes more than its optimizer and the same step with nothing exchanged: what is waited for, not what is hidden.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Ratio, arguments, paired_ratio, report
from benchmarks.token_parallel.ranks import COUNTED_BATCH, count, start_ranks, time_steps
from rankmixer_head import RankMixerConfig

TIMED_RANKS = 2


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="100m", help="default %(default)s")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="default 1 2 4")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[2, 8], help="for which bytes are counted; default 2 8"
    )
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 64, 128, 256], help="of a rank, timed")
    parser.add_argument("--in-width", type=int, help="I; default: T*D, as wide as all tokens together")
    parser.add_argument("--measurements", type=int, default=2, help="a run is the fastest of so many")
    options = parser.parse_args()
    config = RankMixerConfig.preset(options.preset)
    options.in_width = options.in_width or config.tokens * config.width

    counted = {world: start_ranks(count, world, options) for world in options.ranks}
    rows, result = count_rows(counted, config)
    timed = start_ranks(time_steps, TIMED_RANKS, options) if options.batches else []
    step_rows, step_result = time_rows(timed[0], options.batches) if timed else ([], {})
    sizes = f"{options.preset}: T = {config.tokens}, D = {config.width}, M = {config.hidden}, I = {options.in_width}"
    report(
        f"Sent by a rank, forward, and held ({sizes}, float32)",
        rows,
        result | step_result,
        record=options.record,
        further={f"A step on {TIMED_RANKS} ranks, L = {config.layers}, AdamW, ms": step_rows} if timed else None,
    )


def count_rows(
    counted: dict[int, list[dict[str, Any]]], config: RankMixerConfig
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The first table and its part of the result."""
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    extra: set[int] = set()  # collectives beside those of the layers
    T, D, B = config.tokens, config.width, COUNTED_BATCH
    for P, ranks in counted.items():
        held_mean = statistics.mean(one["held"] for one in ranks)
        row: dict[str, Any] = {"P": P, "L": config.layers, "held, MB": held_mean / 1e6}
        if 1 in counted:
            row["held / one rank's"] = held_mean / counted[1][0]["held"]
            result[f"memory_ratio_p{P}"] = round(row["held / one rank's"], 4)
        if not ranks[0]["sent"]:
            rows.append(row)
        for L, found in ((int(layers), [one["sent"][layers] for one in ranks]) for layers in ranks[0]["sent"]):
            ours, theirs = (statistics.mean(sum(one[way]) for one in found) for way in ("ours", "theirs"))
            of_layers = statistics.mean(sum(one["theirs"][2:]) for one in found)  # without the tokenizer's two
            formula = 4 * (P - 1) / P * B * (found[0]["pieces"] + L * T * D) + 4 * (P - 1) * B * D
            extra |= {len(one["ours"]) - L for one in found}
            result["collectives_forward_minus_L"] = worst = max(extra, key=lambda n: abs(n - 2))
            rows.append(
                {
                    **(row if config.layers == L else {"P": P}),
                    "L": L,
                    "collectives": worst + L,
                    "sent, kB an example": ours / B / 1e3,
                    "of the formula": ours / formula,
                    "of dispatch + combine": ours / of_layers,
                    "with its tokenizer": ours / theirs,
                    "DDP's gradients, MB": 2 * (P - 1) / P * 4 * found[0]["parameters"] / 1e6,
                }
            )
            result[f"bytes_ratio_formula_p{P}_L{L}"] = round(ours / formula, 4)
            if max(counted) == P:
                result[f"bytes_ratio_dispatch_L{L}"] = round(ours / of_layers, 4)
    return rows, result


def time_rows(
    seconds: dict[str, dict[str, list[float]]], batches: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The second table and its part of the result."""
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    steps: dict[str, list[float]] = {"DDP": [], "tokens": []}
    for B in batches:
        arms = seconds[str(B)]
        ratio: Ratio = paired_ratio(arms["tokens step"], arms["DDP step"])
        row: dict[str, Any] = {"B": B}
        for way in steps:
            step, compute, optimizer = (min(arms[f"{way} {arm}"]) * 1e3 for arm in ("step", "compute", "optimizer"))
            steps[way].append(step)
            parts = {"step": step, "compute": compute, "communication": step - compute - optimizer}
            row |= {f"{way}: {part}": value for part, value in {**parts, "optimizer": optimizer}.items()}
        rows.append({**row, "tokens / DDP, median [min-max]": ratio})
        result |= {f"step_time_ratio_ddp_b{B}": ratio, f"step_time_ratio_ddp_b{B}_unstable": ratio.unstable}
    crossing = crossover(batches, steps["tokens"], steps["DDP"])
    measured = crossing is not None and crossing <= max(batches)
    result["crossover_batch" if measured or crossing is None else "crossover_batch_extrapolated"] = crossing
    return rows, result


def crossover(batches: Sequence[int], ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The batch from which we would be the slower, by a straight line through the differences; None: there is none.

    >>> crossover([1, 2, 3], [2.0, 4.0, 6.0], [9.0, 10.0, 11.0])
    8.0
    >>> crossover([1, 2, 3], [2.0, 3.0, 4.0], [9.0, 10.0, 11.0])
    """
    if len(batches) < 2:
        return None
    slope, start = statistics.linear_regression(batches, [a - b for a, b in zip(ours, theirs, strict=True)])
    return round(max(0.0, -start / slope), 1) if slope > 0 else None


if __name__ == "__main__":
    main()
