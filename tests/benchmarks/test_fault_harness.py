"""A slice of the fault harness: six kills on forked ranks, and the pieces that the harness is made of."""

import itertools
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.faults import configurations as fault_configurations
from benchmarks.faults.kills import Forked, disturb, faults
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.points import Fault
from benchmarks.faults.runs import MOE, RUNS, WIDE, Run, command, prepare, write_configuration, write_data
from benchmarks.faults.server import ForkServer, Hung
from rankmixer.pipeline.journal.journal import read_log


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_data(folder)
    write_configuration(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ForkServer]:
    with ForkServer(folder) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "kills"),
    [(Run("four ranks", (4,), WIDE), 3), (Run("Sparse-MoE", (2,), (MOE, "data.sample.keep=0.7")), 3)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_run_that_is_killed_ends_as_its_undisturbed_twin(
    folder: Path, server: ForkServer, run: Run, kills: int
) -> None:
    """With four ranks the sums of the first steps of a process would be rounded otherwise: see model/settle.py."""
    short = replace(run, overrides=(*run.overrides, "train.epochs=1"))
    result = disturb(short, kills, 1, folder / "run.yaml", folder / "runs", Forked(server))
    assert (result.kills, result.lost, result.different) == (kills, [], [])
    assert result.rounds > 0


def test_a_portion_of_a_stream_that_a_kill_kept_from_being_judged_is_judged(folder: Path, server: ForkServer) -> None:
    (run,) = (run for run in RUNS if run.name.startswith("stream"))
    configuration, outcomes = folder / "run.yaml", []
    judging = 5 + 5 + 3  # the third batch of that, after five of the evaluations at steps 8 and 10
    faults = [Fault("evaluate", judging - 1, sleep=1.0), Fault("evaluate", judging)]  # the checkpoint is whole by then
    for name, some in (("judged", []), ("unjudged", faults)):
        prepare(run, configuration, folder / name)
        arguments = command(run, configuration, folder / name)
        if some:
            assert server.run(1, arguments, seconds=120, faults=some) == {0: -signal.SIGKILL}
        assert server.run(1, arguments, seconds=120) == {0: 0}
        outcomes.append(Outcome(folder / name))
    assert "arrival 10" in outcomes[0].told
    assert outcomes[0].differences(outcomes[1]) == []
    starts = [line["resumed_from"] for line in read_log(folder / "unjudged") if line["kind"] == "start"]
    assert starts == [None, "step-00000010"]


@pytest.mark.long
@pytest.mark.slow
def test_what_does_not_end_is_ended_with_its_stacks(folder: Path, server: ForkServer) -> None:
    arguments = command(Run("", (1,)), folder / "run.yaml", folder / "hung")
    with pytest.raises(Hung, match=r"not ended after 60 s") as hung:
        server.run(1, arguments, seconds=60, faults=[Fault("step", 3, sleep=600)])
    assert "fault_points.py" in str(hung.value)
    assert "_train" in str(hung.value)


def test_differences_are_found(folder: Path, server: ForkServer) -> None:
    once = ("train.epochs=1", "train.max_steps=4")
    for name, more in (("one", ()), ("other", ("optimizer.dense.lr=0.00100001",))):
        arguments = command(Run("", (1,), (*once, *more)), folder / "run.yaml", folder / name)
        assert server.run(1, arguments, seconds=120) == {0: 0}
    one, other = Outcome(folder / "one"), Outcome(folder / "other")
    assert one.differences(one) == []
    assert one.distances(one) == {"losses": 0.0, "weights": 0.0}
    found = one.differences(other)
    assert any(line.startswith("train 2: ") for line in found)
    assert "tensors" in found[-1]
    assert 0 < one.distances(other)["weights"] < 1e-4
    assert any(torch.is_floating_point(tensor) for tensor in one.weights.values())


def test_faults_are_those_of_their_seed_and_of_every_kind(tmp_path: Path) -> None:
    run = Run("some", (4,))
    some, again, others = (list(itertools.islice(faults(seed, run, tmp_path), 100)) for seed in ("0", "0", "1"))
    assert some == again != others
    assert {fault.point for fault in some} == {"file", "step", "evaluate", "clock"}
    assert {fault.rank for fault in some} == {0, 1, 2, 3}
    assert {fault.victims for fault in some} == {"one", "all"}
    cold = itertools.islice(faults("0", replace(run, cold=True), tmp_path), 100)
    assert {fault.victims for fault in cold} == {"one", "all", "launcher", "everything"}
    assert Fault(**json.loads(some[0].as_json())) == some[0]


def test_the_server_has_one_thread_when_it_forks(server: ForkServer) -> None:
    assert server._process is not None
    tasks = Path(f"/proc/{server._process.pid}/task").glob("*/comm")
    # pyarrow's allocator has a thread of its own, which it stops and starts around a fork.
    assert [name for task in tasks if (name := task.read_text().strip()) != "jemalloc_bg_thd"] == ["python"]
    assert os.getpgid(server._process.pid) == os.getpgid(0), "a signal from the terminal reaches it"
    assert signal.Signals(Fault("step").signal) is signal.SIGKILL


def test_a_configuration_is_mutated_in_one_place(folder: Path) -> None:
    tree = yaml.safe_load((folder / "run.yaml").read_text())
    some = list(fault_configurations.mutations(tree, 60, seed=0))
    assert some == list(fault_configurations.mutations(tree, 60, seed=0))
    assert all(mutated != tree for _, mutated in some)
    assert {what.split(": ")[1].split(",")[0] for what, _ in some} == {"strange", "gone", "renamed", "swapped", "moved"}


def test_a_wrong_configuration_is_a_clear_error(folder: Path, server: ForkServer) -> None:
    tree = yaml.safe_load((folder / "run.yaml").read_text())
    tree["model"]["layers"] = "two"
    assert fault_configurations.judge(tree, folder, server) == ("error", "")
    tree["model"] = {"width": 10**9}  # torch cannot even count the bytes
    assert fault_configurations.judge(tree, folder, server) == ("error", "")
    assert "a tensor would be larger than any memory" in server.said(0)


@pytest.mark.long
@pytest.mark.slow
def test_fifty_steps_on_four_two_one_and_four_ranks_are_those_on_four(folder: Path, server: ForkServer) -> None:
    run = Run("resized", (4, 2, 1, 4), ("train.epochs=3", "train.max_steps=50"))
    undisturbed, resized = folder / "four", folder / "resized"
    assert not any(server.run(4, command(run, folder / "run.yaml", undisturbed), seconds=240).values())
    for ranks, step in ((4, 14), (2, 13), (1, 12)):
        statuses = server.run(
            ranks, command(run, folder / "run.yaml", resized), seconds=240, faults=[Fault("step", step, victims="all")]
        )
        assert set(statuses.values()) == {-signal.SIGKILL}
    assert not any(server.run(4, command(run, folder / "run.yaml", resized), seconds=240).values())
    one, other = Outcome(undisturbed), Outcome(resized)
    starts = [line for line in read_log(resized) if line["kind"] == "start"]
    assert [line["world_size"] for line in starts] == [4, 2, 1, 4]
    assert 0 == starts[0]["step"] < starts[1]["step"] < starts[2]["step"] < starts[3]["step"] < 40
    assert max(line["step"] for line in read_log(resized) if line["kind"] == "train") == 50
    apart = one.distances(other)
    assert apart["losses"] <= 1e-5
    assert 0 < apart["weights"] <= 1e-5
