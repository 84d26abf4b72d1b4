"""Does all of it run on a GPU, and is it right and fast there? `make test-gpu DEVICE=cuda`, under ten minutes on one.

CPU against CUDA for every module of the head, forward and gradients; bfloat16 against float32; compiled against eager;
tokens shared in a group of one rank against the whole head; the open experts in grouped products against all of them;
training with pinned batches, from files to metrics; the model FLOPs utilisation of the presets.
Writes benchmarks/results/gpu.md. Without a CUDA device it says that it did not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.checks import choices, compiled, grouped, half, parity, token_parallel
from benchmarks.gpu.speed import PRESETS, pipeline, utilisation
from benchmarks.harness import arguments, report
from rankmixer.launch.ranks.leave import leave

Row = dict[str, Any]
# One block of each kind; a Sparse-MoE's weights of examples travel along.
SHARED = ("rankmixer", "tokenmixer_large", "moe dtsi")


def main() -> None:
    arguments(__doc__.partition("\n")[0]).parse_args()
    if not torch.cuda.is_available():
        print("not run: no CUDA device")
        return
    device = torch.device("cuda", 0)
    rows = [outcome(name, check) for name, check in checks(device)]
    failed = [row["check"] for row in rows if row["outcome"] == "FAILED"]
    speeds = [outcome(f"MFU, {preset}", partial(utilisation, preset, device)) for preset in PRESETS]
    rates = {f"{row['check'].split()[-1]}.mfu": row["MFU"] for row in speeds if "MFU" in row}
    result = {"checks": len(rows), "failed": failed, **{key: round(rate, 4) for key, rate in rates.items()}}
    further = {"Model FLOPs utilisation: training of the head, bfloat16, against the measured peak": speeds}
    report("The head on a GPU", rows, result, record=True, further=further)
    leave(1 if failed else 0)  # groups of one rank were made here


def checks(device: torch.device) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every check by name."""
    for name in choices():
        yield f"CPU and {device.type}, float32: {name}", partial(parity, name, device)
    for name in choices():
        yield f"bfloat16 and float32: {name}", partial(half, name, device)
    for name in ("rankmixer", "mixing_gain", "tokenmixer_large", "moe dtsi"):
        yield f"compiled and eager: {name}", partial(compiled, name, device)
    for name in SHARED:
        for compile in (False, True):
            how = "compiled" if compile else "eager"
            yield f"tokens shared in a group of one rank, {how}: {name}", partial(token_parallel, name, device, compile)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield f"open experts and all experts: {name}", partial(grouped, dtype, device)
    moe = ["model.moe={experts: 4, active_ratio: 0.25}"]
    for overrides, on_cpu in (([], []), (moe, moe), (["model.compile=true"], [])):
        yield f"rankmixer train, pinned batches {' '.join(overrides)}".strip(), partial(pipeline, overrides, on_cpu)


def outcome(name: str, check: Callable[[], Row]) -> Row:
    """A line of the table. A check returns figures, and says with "within" what each must not exceed.

    >>> outcome("a", lambda: {"error": 0.5, "within": {"error": 1.0}})
    {'check': 'a', 'outcome': 'ok', 'error': 0.5, 'limits': 'error 1'}
    >>> outcome("b", lambda: {"error": float("nan"), "within": {"error": 1.0}})["outcome"]
    'FAILED'
    """
    try:
        row = check()
    except Exception as error:
        return {"check": name, "outcome": "FAILED", "why": f"{type(error).__name__}: {error}"[:400].replace("\n", " ")}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    limits = row.pop("within", {})
    # A figure that is not a number is within nothing.
    passed = all(row[key] <= limit for key, limit in limits.items())
    said = ", ".join(f"{key} {limit:g}" for key, limit in limits.items())
    return {"check": name, "outcome": "ok" if passed else "FAILED", **row, "limits": said}


if __name__ == "__main__":
    main()
