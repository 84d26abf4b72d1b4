"""What do checkpoints cost a job, and how fast are they saved and loaded? `python -m benchmarks.checkpoint`.

A job of two tables and a small head trains on this machine's CPU, on one gloo rank and on two, of one thread each. An
arm is a number of steps, without a checkpoint or with one after a quarter of them, which is whole at their end. What
the one takes more than the other is the cost of a checkpoint, and a share of a minute: `overhead` is 1 + that / 60 s.
With --seconds 60 the steps take a minute, and nothing is scaled.

Saving (at once, all ranks, planned, checksummed, fsynced) stands against writing as many bytes from memory with one
fsync; loading (every byte verified) against reading them into memory, with files in the page cache and without. Ratios
are seconds plainly / seconds of ours; the keys are the worst of all rows.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.checkpoint.ranks import measure
from benchmarks.harness import Ratio, arguments, paired_ratio, report
from benchmarks.token_parallel.ranks import start_ranks

MINUTE = 60.0


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="default 1 2")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of state, all ranks (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of steps a measurement (default %(default)s)")
    parser.add_argument("--folder", help="where to write; default: a temporary one")
    options = parser.parse_args()
    cost_rows, speed_rows = [], []
    overheads: list[Ratio] = []
    ratios: dict[str, list[Ratio]] = {"save": [], "load": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        options.folder = folder
        for world in options.ranks:
            Path(folder, str(world)).mkdir()
            found = start_ranks(measure, world, options)
            row, overhead = cost(found)
            overheads.append(overhead)
            cost_rows.append({"ranks": world, **row})
            for what, plain in (("save", "write"), ("load, cold", "read, cold"), ("load, warm", "read, warm")):
                row, ratio = speed(found, what, plain)
                ratios[what[:4]].append(ratio)
                speed_rows.append({"ranks": world, **row})
    result: dict[str, Any] = {"overhead": max(overheads, key=lambda ratio: ratio.median)}
    for what, all_of_it in ratios.items():
        worst = min(all_of_it, key=lambda ratio: ratio.median)
        result |= {f"{what}_bandwidth_ratio": worst, f"{what}_bandwidth_ratio_unstable": worst.unstable}
    report(
        f"A checkpoint a minute of {options.gigabytes:g} GB, against none",
        cost_rows,
        result,
        record=options.record,
        further={"Bytes on their way, and plainly": speed_rows},
    )


def cost(found: list[dict[str, Any]]) -> tuple[dict[str, Any], Ratio]:
    """What a checkpoint adds to the steps it is written during."""
    first = found[0]
    with_one, without = first["stepping"]["with"], first["stepping"]["without"]
    added = [a - b for a, b in zip(with_one, without, strict=True)]
    overhead = Ratio(*(1 + seconds / MINUTE for seconds in (statistics.median(added), min(added), max(added))))
    blocked = max(statistics.median(rank["blocked"]) for rank in found)
    return {
        "steps": first["steps"],
        "without, s": statistics.median(without),
        "with, s": statistics.median(with_one),
        "added, s": f"{statistics.median(added):.2f} [{min(added):.2f}-{max(added):.2f}]",
        "of them while steps wait, s": blocked,
        "copied, GB/s": first["bytes_here"] / blocked / 1e9,
        "one a minute / none": overhead,
    }, overhead


def speed(found: list[dict[str, Any]], what: str, plain: str) -> tuple[dict[str, Any], Ratio]:
    """GB/s of all ranks together."""
    seconds = found[0]["moving"]
    ratio = paired_ratio(seconds[plain], seconds[what])
    ours, theirs = (found[0]["bytes"] / statistics.median(seconds[arm]) / 1e9 for arm in (what, plain))
    return {
        "what": what,
        "GB": found[0]["bytes"] / 1e9,
        "GB/s": ours,
        "plainly": theirs,
        "ours / plainly": ratio,
    }, ratio


if __name__ == "__main__":
    main()
