"""What the ranks of benchmarks/token_parallel/__main__.py do: count what they send and hold, and time steps."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness import interleave
from benchmarks.token_parallel.collectives import Collectives
from benchmarks.token_parallel.dispatch_combine import DispatchAndCombine
from rankmixer.launch.ranks.distributed import keep_freed_memory
from rankmixer.launch.ranks.leave import call_and_leave
from rankmixer_head import RankMixer, RankMixerConfig, token_group
from rankmixer_head.token_parallel import shard_tokens

COUNTED_BATCH = 8  # of a rank, where bytes and memory are counted


def start_ranks(function: Callable[..., Any], world: int, options: argparse.Namespace) -> list[Any]:
    """`function(options)` in `world` gloo processes of one thread; what it returns must be JSON. Rank 0's first."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (world, folder, function, options), world, start_method="spawn")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, function: Callable[..., Any], options: argparse.Namespace) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    keep_freed_memory()  # as a rank of a job does
    limit = timedelta(minutes=5)
    rendezvous = f"file://{folder}/rendezvous"

    def in_a_group() -> None:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=limit)
        Path(folder, f"{rank}.json").write_text(json.dumps(function(options)))
        dist.barrier()
        dist.destroy_process_group()

    call_and_leave(in_a_group)


def count(options: argparse.Namespace) -> dict[str, Any]:
    """What this rank sends in a forward, for each number of layers, and holds after a step, for the preset's own."""
    config, world = RankMixerConfig.preset(options.preset), dist.get_world_size()
    found: dict[str, Any] = {"held": held(Training(config, options.in_width, world)), "sent": {}}
    for layers in options.layers if world > 1 else []:
        head = Training(replace(config, layers=layers), options.in_width, world).head
        x_BI = torch.randn(COUNTED_BATCH, options.in_width)
        with torch.no_grad():
            ours, logits_BK = sent(head, head, x_BI)
            theirs, same_BK = sent(DispatchAndCombine(head), head, x_BI)
        torch.testing.assert_close(logits_BK, same_BK, rtol=1e-4, atol=1e-5)
        found["sent"][str(layers)] = {
            "ours": ours,
            "theirs": theirs,
            "parameters": sum(parameter.numel() for parameter in head.parameters()),  # all shards together
            "pieces": sum(head.tokenizer.cut_widths),
        }
    return found


def sent(forward: Callable[[Tensor], Tensor], head: RankMixer, x_BI: Tensor) -> tuple[list[int], Tensor]:
    """Bytes of each collective of one forward, and its logits."""
    assert isinstance(head.token_group, token_group.TokenGroup)
    with Collectives() as collectives:
        logits_BK = forward(x_BI)
    own = head.token_group.process_group.group_name
    assert {group for _, group, _ in collectives.seen} == {own}, "the head has used another group than its own"
    return [bytes_sent for _, _, bytes_sent in collectives.seen], logits_BK


def held(training: Training) -> int:
    """Bytes of parameters, gradients and optimizer state of this rank, after a step."""
    training.forward_backward(training.batch(COUNTED_BATCH))
    training.optimizer.step()
    parameters = list(training.head.parameters())
    states = [value for state in training.optimizer.state.values() for value in state.values()]
    tensors = [*parameters, *(p.grad for p in parameters), *states]
    return sum(local(tensor).nbytes for tensor in tensors if isinstance(tensor, Tensor))


def local(tensor: Tensor) -> Tensor:
    """What this rank has of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Training:
    """A head under DDP, its tokens shared by groups of `group` ranks, and AdamW.

    Args:
        config: of the head.
        in_width: I.
        group: P.
    """

    def __init__(self, config: RankMixerConfig, in_width: int, group: int) -> None:
        torch.manual_seed(0)
        self.head = RankMixer(config, [in_width], num_tasks=1, device="meta")
        mesh = init_device_mesh("cpu", (dist.get_world_size() // group, group), mesh_dim_names=("replica", "token"))
        ignored = shard_tokens(self.head, mesh, check_batches=False)
        if not ignored:  # data parallelism: shard_tokens has changed nothing
            self.head.to_empty(device="cpu").reset_parameters()
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.head, ignored)
        self.model = DistributedDataParallel(self.head, gradient_as_bucket_view=True)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=1e-4)
        self.in_width = in_width

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Input and labels of a rank."""
        return torch.randn(size, self.in_width), torch.randint(2, (size, 1)).float()

    def forward_backward(self, batch: tuple[Tensor, Tensor]) -> None:
        """Leaves gradients, all ranks' mean."""
        self.optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(self.model(batch[0]), batch[1]).backward()

    def arms(self, batch: tuple[Tensor, Tensor]) -> dict[str, Callable[[], float]]:
        """Seconds of a whole step, of its arithmetic with nothing exchanged, and of its optimizer."""

        def whole() -> None:
            self.forward_backward(batch)
            self.optimizer.step()

        def compute() -> None:
            with nothing_exchanged(), self.model.no_sync():
                self.forward_backward(batch)

        return {"step": clock(whole), "compute": clock(compute), "optimizer": clock(self.optimizer.step)}


@contextmanager
def nothing_exchanged() -> Iterator[None]:
    """The head's exchanges become copies of what this rank would have sent."""

    def copy(sent: Tensor, received_sizes: list[int], sent_sizes: list[int], group: Any) -> Tensor:
        size = sum(received_sizes)
        return sent.repeat(-(-size // sent.numel()))[:size]

    with mock.patch.object(token_group, "_exchange", copy):
        yield


def clock(call: Callable[[], object]) -> Callable[[], float]:
    """Seconds of a call that all ranks begin together, of the slowest."""

    def seconds() -> float:
        dist.barrier()
        start = time.perf_counter()
        call()
        taken = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        return taken.item()

    return seconds


def time_steps(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """By batch and by arm, seconds of each run."""
    config, world = RankMixerConfig.preset(options.preset), dist.get_world_size()
    trainings = {"DDP": Training(config, options.in_width, 1), "tokens": Training(config, options.in_width, world)}
    found = {}
    for size in options.batches:
        batch = trainings["DDP"].batch(size)
        arms = {f"{way} {arm}": run for way, one in trainings.items() for arm, run in one.arms(batch).items()}
        found[str(size)] = interleave(arms, options.runs, options.measurements, reduce=min)
    return found
