"""Run a function in several gloo processes, for tests."""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rankmixer.launch.ranks.leave import call_and_leave


def run_ranks(world_size: int, function: Callable[..., Any], tmp_path: Path, *args: Any) -> list[Any]:
    """Call `function(rank, world_size, *args)` in `world_size` spawned gloo processes.

    `function` must be importable (module level) and `args` picklable. A `file://` rendezvous has no ports to clash.
    Returns what each rank returned, rank 0 first; raises if any rank raised.
    """
    # One folder a call: a rendezvous file must never be used twice.
    folder = tmp_path / f"ranks-{sum(1 for _ in tmp_path.glob('ranks-*'))}"
    folder.mkdir()
    try:
        mp.start_processes(_run, (world_size, function, str(folder), args), world_size, start_method="spawn")
    except mp.ProcessExitedException:  # a rank's traceback; or, by a signal, what C and C++ said before
        for file in sorted(folder.glob("*.stderr")):
            print(f"{file.stem} of {function.__name__} said:\n{file.read_text()[-5000:]}", file=sys.stderr)
        raise
    return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def _run(rank: int, world_size: int, function: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size)
    )
    words = os.open(f"{folder}/{rank}.stderr", os.O_WRONLY | os.O_CREAT)
    os.dup2(words, 2)
    faulthandler.enable()
    torch.set_num_threads(1)

    def in_a_group() -> None:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        result = function(rank, world_size, *args)
        Path(folder, f"{rank}.result").write_bytes(pickle.dumps(result))
        dist.barrier()
        dist.destroy_process_group()

    call_and_leave(in_a_group)
