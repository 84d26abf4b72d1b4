"""Do all ranks run the same job? Compared over the job's store, before any process group exists that could hang."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rankmixer.launch.config.config import Config, dump_config, leaves
from rankmixer.launch.ranks.versions import versions

PACKAGES = ("rankmixer", "rankmixer_head")
# Hosts may have their own paths to the same files, their own memory and their own number of cores.
PATHS = {"data.train", "data.evaluate", "data.test", "run.directory", "run.checkpoints", "run.warm_start"}
MAY_DIFFER = {"data.threads", "plan.hbm_gb", "plan.ddr_gb", "train.peak_tflops", "train.log_seconds"}
# Starts jobs, takes no part in them.
LAUNCHERS = {"torchx"}
# Time in which the others must have heard what rank 0 has found before it may end, and its store with it.
HEARING_SECONDS = 5.0
SHOWN = 12


def settings(config: Config, device: str, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Everything that must be the same on all ranks, by a name for the user; a file of the source by its digest.

    Args:
        config: the run.
        device: kind of device that the rank computes on.
        arguments: of the command.
    """
    root = Path(__file__).parents[3]
    found = {"device": device, **{f"argument {name}": _text(value) for name, value in arguments.items()}}
    found["feature schema"] = f"digest {config.feature_schema.digest()[:8]}"  # with the words of vocabularies
    for key, value in leaves(dump_config(config)).items():
        if key in PATHS:
            found[f"configuration {key}"] = "none" if value is None else "given"
        elif key not in MAY_DIFFER and not key.endswith(".vocabulary"):
            found[f"configuration {key}"] = _text(value)
    found |= {f"package {name}": version for name, version in versions().items() if name not in LAUNCHERS}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest = hashlib.blake2b(file.read_bytes(), digest_size=4).hexdigest()
            found[f"source {file.relative_to(root)}"] = f"version {digest}"
    return found


def check_agreement(store: dist.Store, rank: int, world_size: int, seconds: float, mine: dict[str, str]) -> list[str]:
    """Meet all ranks at `store`, and refuse to go on if they do not run the same job. Collective.

    Returns:
        `host, pid` of all ranks, rank 0's first.

    Raises:
        ValueError: on all ranks that came; names the ranks that did not within `seconds`, or what differs on which.
    """
    content = json.dumps(mine, sort_keys=True)
    host = f"{socket.gethostname()}, pid {os.getpid()}"
    store.set(f"settings/{rank}", content)
    store.set(f"digest/{rank}", json.dumps([hashlib.blake2b(content.encode(), digest_size=16).hexdigest(), host]))
    if rank == 0:
        finding = _finding(store, world_size, seconds)
        store.set("finding", finding)
        if finding:
            deadline = time.monotonic() + HEARING_SECONDS
            while store.add("heard", 0) < world_size - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
    else:
        try:
            store.wait(["finding"], timedelta(seconds=seconds + HEARING_SECONDS))
        except dist.DistError:
            raise ValueError(_late([0], seconds)) from None
        finding = store.get("finding").decode()
        store.add("heard", 1)
    store.delete_key(f"settings/{rank}")
    if finding:
        raise ValueError(finding)
    return [json.loads(content)[1] for content in store.multi_get([f"digest/{rank}" for rank in range(world_size)])]


def _finding(store: dist.Store, world_size: int, seconds: float) -> str:
    """What is wrong; empty if nothing is."""
    deadline = time.monotonic() + seconds
    missing = []
    for rank in range(world_size):
        try:
            store.wait([f"digest/{rank}"], timedelta(seconds=max(0.01, deadline - time.monotonic())))
        except dist.DistError:
            missing.append(rank)
    if missing:
        return _late(missing, seconds)
    digests = [json.loads(store.get(f"digest/{rank}")) for rank in range(world_size)]
    kinds: dict[str, list[int]] = {}
    for rank, (digest, _) in enumerate(digests):
        kinds.setdefault(digest, []).append(rank)
    if len(kinds) == 1:
        return ""
    found = [(json.loads(store.get(f"settings/{ranks[0]}")), ranks) for ranks in kinds.values()]
    return describe(found, [host.partition(",")[0] for _, host in digests])


def describe(found: list[tuple[dict[str, str], list[int]]], hosts: list[str]) -> str:
    """What differs, one line for each setting.

    Args:
        found: settings, and the ranks that have them.
        hosts: of all ranks.

    >>> print(describe([({"package torch": "2.13.0", "a": "1"}, [0, 1, 2]), ({"a": "1"}, [3])], ["x", "x", "y", "y"]))
    the ranks of this job do not run the same thing:
      package torch: 2.13.0 on ranks 0-2 (x, y); none on rank 3 (y)
    Give all ranks one configuration and one command line, and all hosts one environment and one state of the code
    """
    names = sorted({name for one, _ in found for name in one}, key=lambda name: (name.startswith("source"), name))
    lines = []
    for name in names:
        values: dict[str, list[int]] = {}
        for one, ranks in found:
            values.setdefault(one.get(name, "none"), []).extend(ranks)
        if len(values) > 1:
            sides = [f"{value} on {ranks_and_hosts(ranks, hosts)}" for value, ranks in values.items()]
            lines.append(f"  {name}: {'; '.join(sides)}")
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(
        [
            "the ranks of this job do not run the same thing:",
            *lines[:SHOWN],
            *more,
            "Give all ranks one configuration and one command line, and all hosts one environment and one state of "
            "the code",
        ]
    )


def ranks_and_hosts(ranks: list[int], hosts: list[str]) -> str:
    """Ranks as ranges, with the hosts that they are on.

    >>> ranks_and_hosts([0, 1, 2, 5], ["a", "a", "b", "c", "c", "c"])
    'ranks 0-2, 5 (a, b, c)'
    """
    names = list(dict.fromkeys(hosts[rank] for rank in ranks))
    more = f", and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{named(ranks)} ({', '.join(names[:4])}{more})"


def named(ranks: list[int]) -> str:
    """`rank 3`, `ranks 0-2, 5`.

    >>> named([3]), named([0, 1, 2, 5])
    ('rank 3', 'ranks 0-2, 5')
    """
    ranges: list[list[int]] = []
    for rank in sorted(ranks):
        if ranges and ranges[-1][1] == rank - 1:
            ranges[-1][1] = rank
        else:
            ranges.append([rank, rank])
    text = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"


def _late(ranks: list[int], seconds: float) -> str:
    has = "has" if len(ranks) == 1 else "have"
    return (
        f"{named(ranks)} {has} not joined the job after {seconds:g} s (run.timeout_seconds); look at what "
        f"{'it says' if len(ranks) == 1 else 'they say'} there, or whether the host can be reached"
    )


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({hashlib.blake2b(text.encode(), digest_size=4).hexdigest()})"
