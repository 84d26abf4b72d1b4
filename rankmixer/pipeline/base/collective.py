"""Steps that all ranks take together: results reach every rank, and so does an error on any of them.

Results travel as JSON in CPU tensors of the default process group (gloo, or `cpu:gloo,cuda:nccl`), because the object
collectives of torch.distributed pickle. Without a process group the one process is rank 0 of 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from rankmixer.pipeline.base.errors import SystemFailure


class ElsewhereError(ValueError):
    """A ValueError of another rank, which raises it too."""


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def together(what: str, step: Callable[[], Any]) -> list[Any]:
    """Run `step` on every rank and return all results, rank 0's first; they must be JSON. Collective.

    Raises:
        ValueError: `step` raised one on some rank. Every rank raises it, with `what` in front and, unless all ranks
            failed, which did.
        RuntimeError: the same for any other exception; a SystemFailure for an OSError.

    >>> together("cannot count", lambda: 1 + 1)
    [2]
    >>> together("cannot read the plan", lambda: int("one"))
    Traceback (most recent call last):
    ValueError: cannot read the plan: invalid literal for int() with base 10: 'one'
    """
    failure = None
    try:
        mine = {"result": step()}
    except Exception as error:
        failure = error
        is_value_error = isinstance(error, ValueError)
        mine = {"error": str(error) if is_value_error else f"{type(error).__name__}: {error}", "value": is_value_error}
        if isinstance(error, OSError) and not is_value_error:
            mine["errno"] = error.errno
    outcomes = all_gather(mine)
    failed = [index for index, outcome in enumerate(outcomes) if "error" in outcome]
    if failed:
        first = outcomes[failed[0]]
        where = "" if len(failed) == len(outcomes) else f" (rank {', '.join(map(str, failed))})"
        message = f"{what}{where}: {first['error']}"
        if "errno" in first:
            raise SystemFailure(message, first["errno"]) from failure
        raise (RuntimeError if not first["value"] else ValueError if failure else ElsewhereError)(message) from failure
    return [outcome["result"] for outcome in outcomes]


def on_rank_0(what: str, step: Callable[[], Any]) -> Any:
    """Run `step` on rank 0 and return its result (JSON) on every rank. Collective; raises as `together` does."""
    return together(what, lambda: step() if rank() == 0 else None)[0]


def all_gather(value: Any) -> list[Any]:
    """The values (JSON) of all ranks, rank 0's first, on every rank. Collective."""
    if not dist.is_initialized():
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(data)]))
    longest = max(int(size) for size in sizes)
    padded = torch.nn.functional.pad(data, (0, longest - len(data)))
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return [json.loads(row[: int(size)].numpy().tobytes()) for row, size in zip(gathered, sizes, strict=True)]
