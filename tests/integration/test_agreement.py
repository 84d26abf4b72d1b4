"""Ranks that do not run the same job are told so before anything can hang."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from rankmixer.launch.config.config import Config
from rankmixer.launch.ranks import agreement
from rankmixer.launch.ranks.agreement import check_agreement, settings
from rankmixer.launch.ranks.roll_call import RollCall
from tests.embeddings.test_sharding import config as tiny_config


def ranks(world_size: int, call: Callable[[dist.Store, int], Any]) -> list[Any]:
    """What `call(store, rank)` returns or raises, each rank a thread with a connection of its own."""
    master = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    outcomes: list[Any] = [None] * world_size

    def run(rank: int, store: dist.Store) -> None:
        try:
            outcomes[rank] = call(store, rank)
        except ValueError as error:
            outcomes[rank] = str(error)

    stores = [dist.TCPStore("localhost", master.port, wait_for_workers=False) for _ in range(world_size)]
    threads = [threading.Thread(target=run, args=(rank, store)) for rank, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def config(**changes: Any) -> Config:
    """A small configuration, sections changed: `config(data={"batch_size": 24})`."""
    tree = tiny_config("planner").model_dump()
    for section, values in changes.items():
        tree[section] |= values
    return Config.model_validate(tree)


def outcomes(*configs: Config, **arguments: list[Any]) -> list[Any]:
    def call(store: dist.Store, rank: int) -> Any:
        own = {name: values[rank] for name, values in arguments.items()}
        return check_agreement(store, rank, len(configs), 20, settings(configs[rank], "cpu", own))

    return ranks(len(configs), call)


def test_the_same_job_is_let_through_and_hosts_are_known() -> None:
    found = outcomes(config(), config(), config())
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3
    assert ", pid " in found[0][0]


def test_another_configuration_is_refused_on_all_ranks_with_key_values_and_ranks() -> None:
    found = outcomes(config(), config(), config(data={"batch_size": 48}), config())
    assert len(set(found)) == 1
    assert "  configuration data.batch_size: " in found[0]
    assert " on ranks 0-1, 3 (" in found[0]
    assert "; 48 on rank 2 (" in found[0]
    assert found[0].count("\n  ") == 1
    assert "Give all ranks one configuration" in found[0]


def test_arguments_count_and_what_hosts_may_choose_does_not() -> None:
    own_host = config(
        data={"train": "/mnt/b/train", "threads": 7}, run={"directory": "/mnt/b/run"}, plan={"ddr_gb": 3.0}
    )
    assert not isinstance(outcomes(config(), own_host, checkpoint=["best", "best"])[0], str)
    found = outcomes(config(), config(), checkpoint=["best", "latest"])
    assert '  argument checkpoint: "best" on rank 0 ' in found[1]
    found = outcomes(config(), config(data={"evaluate": "rows"}))
    assert "configuration data.evaluate: none on rank 0 " in found[0], "one would evaluate, and the other not"


def test_other_packages_and_other_source_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = settings(config(), "cpu", {})
    assert mine["source rankmixer/pipeline/train/loop.py"].startswith("version ")
    assert {"package torch", "package torchrec", "package python", "package rankmixer"} <= mine.keys()
    theirs = {**mine, "package torch": "2.12.1", "source rankmixer/pipeline/train/loop.py": "version 0"}
    del theirs["source rankmixer/launch/cli.py"]
    found = ranks(2, lambda store, rank: check_agreement(store, rank, 2, 20, theirs if rank else mine))
    for part in (
        "package torch: 2",
        "2.12.1 on rank 1",
        "source rankmixer/pipeline/train/loop.py: version",
        "source rankmixer/launch/cli.py: ve",
    ):
        assert part in found[0], found[0]
    assert "none on rank 1" in found[0]


def test_many_differences_are_counted() -> None:
    text = agreement.describe([({f"package {n}": "1" for n in range(30)}, [0]), ({}, [1])], ["a", "b"])
    assert len(text.splitlines()) == agreement.SHOWN + 3
    assert "and 18 more" in text


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "HEARING_SECONDS", 3.0)
    mine = settings(config(), "cpu", {})

    def call(store: dist.Store, rank: int) -> Any:
        return None if rank in (1, 2) else check_agreement(store, rank, 4, 0.5, mine)

    found = ranks(4, call)
    assert found[0] == found[3]
    assert found[0].startswith("ranks 1-2 have not joined the job after 0.5 s (run.timeout_seconds)")


def test_rank_0_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "HEARING_SECONDS", 0.1)
    mine = settings(config(), "cpu", {})
    found = ranks(2, lambda store, rank: check_agreement(store, rank, 2, 0.3, mine) if rank else None)
    assert found[1].startswith("rank 0 has not joined the job after 0.3 s")


def test_nobody_is_called_when_all_goes_well() -> None:
    def call(store: dist.Store, rank: int) -> int:
        roll_call = RollCall(store, ["a, pid 1", "b, pid 2"], rank, 5.0)
        roll_call.leave()
        return store.add("callers", 0)

    assert ranks(2, call) == [0, 0]
