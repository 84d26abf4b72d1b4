"""This process among the others: ranks, device, process groups, and what memory the planner may count on."""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist

from rankmixer.embeddings.sharding import Cluster
from rankmixer.launch.config.config import Config, PlanConfig, check_world
from rankmixer.launch.ranks.agreement import check_agreement, settings
from rankmixer.launch.ranks.preemption import Preemption
from rankmixer.launch.ranks.roll_call import RollCall, why
from rankmixer.launch.ranks.torchrun import end_with_launcher
from rankmixer.launch.ranks.world import saying_who_is_waited_for, world_from_environment
from rankmixer.pipeline.base.collective import on_rank_0
from rankmixer.pipeline.base.errors import Preempted


@dataclass(frozen=True)
class Ranks:
    """One process of the job.

    Args:
        rank: of W.
        world_size: W.
        local_rank: on this node.
        local_world_size: ranks on this node.
        device: what this rank computes on.
        control: a gloo group over all ranks for flags and counts: on CUDA it stalls no stream.
        roll_call: finds out which rank is missing when a collective fails; None with one rank.
        store: where the ranks' threads can leave each other messages; None with one rank.
        preemption: knows whether this rank was told to leave.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    control: dist.ProcessGroup
    roll_call: RollCall | None = None
    store: dist.Store | None = None
    preemption: Preemption = field(default_factory=Preemption)

    @property
    def is_first(self) -> bool:
        """True on the rank that writes and prints."""
        return self.rank == 0


def check_world_here(config: Config) -> None:
    """Does the configuration fit the job's ranks, of which no process group need exist?

    Raises:
        ValueError: no, and says what does; or the environment is not a launcher's.
    """
    _, world_size, _, local_world_size = world_from_environment()
    check_world(config, world_size, local_world_size)


@contextmanager
def process_group(config: Config, **arguments: Any) -> Iterator[Ranks]:
    """Join the job's process group, if all ranks run the same job, and leave it at the end.

    Args:
        config: the run; `run.timeout_seconds` is the limit on every collective.
        arguments: of the command, which must be the same on all ranks.

    Raises:
        ValueError: the ranks do not run the same job, or some do not come.
        JobFailed: inside, because another rank ended, stopped or came late; says which.
    """
    end_with_launcher()
    rank, world_size, local_rank, local_world_size = world_from_environment()
    seconds = config.run.timeout_seconds
    timeout = timedelta(seconds=seconds)
    on_cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = config.model.tf32
    else:
        keep_freed_memory()
    with saying_who_is_waited_for(seconds):
        store = job_store(rank, seconds)
        hosts = check_agreement(store, rank, world_size, seconds, settings(config, device.type, arguments))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if on_cuda else None,
    )
    roll_call = None
    try:
        # A name that an earlier attempt at the same store has not used.
        attempt = on_rank_0("cannot name this attempt", lambda: secrets.token_hex(4))
        messages = None
        if world_size > 1:
            messages = dist.PrefixStore(f"messages {attempt}", store)
            roll_call = RollCall(dist.PrefixStore(f"roll call {attempt}", store), hosts, rank, seconds)
        control = dist.new_group(backend="gloo", timeout=timeout)
        yield Ranks(rank, world_size, local_rank, local_world_size, device, control, roll_call, messages)
        if roll_call:
            roll_call.leave()
    except Preempted:
        if roll_call:
            roll_call.leave()
        raise
    except Exception as error:
        reason = roll_call and why(error, roll_call)
        if reason:
            raise reason from None
        raise
    finally:
        dist.destroy_process_group()


def job_store(rank: int, seconds: float) -> dist.Store:
    """The store that the ranks of a job meet at: torchrun's, or rank 0's; without torchrun one of this process.

    Raises:
        ValueError: nobody answers there within `seconds`.
    """
    if "MASTER_ADDR" not in os.environ:
        return dist.HashStore()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return dist.TCPStore(
            host,
            port,
            is_master=rank == 0 and not is_torchruns,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        )
    except dist.DistError as error:
        raise ValueError(
            f"rank 0 has not joined the job after {seconds:g} s (run.timeout_seconds): nobody answers at {host}:{port} "
            f"(MASTER_ADDR and MASTER_PORT of the environment; {str(error).partition(chr(10))[0]})"
        ) from None


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of returning each to the system.

    Activations lie above its threshold: a step of `small` maps, faults in and unmaps over 70,000 pages, 15 % of the
    CPU time; with this about 3,000. Peak memory grows by 10 to 24 % (docs/lab_log.md). Does nothing without glibc.
    """
    m_mmap_threshold, m_trim_threshold, no_limit = -3, -1, 2**31 - 1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, no_limit)
        mallopt(m_trim_threshold, no_limit)


def cluster_here(ranks: Ranks, plan: PlanConfig) -> Cluster:
    """The cluster this job runs on: the least memory any rank has, so that all ranks compute one plan. Collective."""
    hbm = torch.cuda.get_device_properties(ranks.device).total_memory if ranks.device.type == "cuda" else 0
    ddr = psutil.virtual_memory().total // ranks.local_world_size
    bytes_here = torch.tensor([_bytes(plan.hbm_gb, hbm), _bytes(plan.ddr_gb, ddr)], dtype=torch.int64)
    dist.all_reduce(bytes_here, dist.ReduceOp.MIN, group=ranks.control)
    hbm_bytes, ddr_bytes = bytes_here.tolist()
    return Cluster(ranks.device.type, ranks.world_size, ranks.local_world_size, hbm_bytes, ddr_bytes)


def _bytes(gigabytes: float | None, found: int) -> int:
    return found if gigabytes is None else int(gigabytes * 2**30)
