"""A checkpoint of a token group is one of the head: torch.distributed.checkpoint reshapes it to any other group."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, Shard

from tests.helpers.ranks import run_ranks
from tests.helpers.token_group import Training, build

VARIANTS = ["moe_dtsi_split", "tokenmixer_large_per_group"]


def saved(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Three steps, a checkpoint, and what then came: for groups of 4 ranks, and for two groups of 2."""
    found = {}
    for variant in VARIANTS:
        for ranks in (4, 2):
            training = Training(build(variant), ranks, "adamw")
            for step in range(3):
                training.step(step)
            model, optimizer = get_state_dict(training.head, training.optimizer)
            dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=f"{folder}/{variant}-{ranks}")
            states: Any = optimizer["state"]
            moments = [state["exp_avg"] for state in states.values()]
            sharded = [m for m in moments if isinstance(m, DTensor) and m.placements[-1] == Shard(0)]
            found[f"{variant}-{ranks}"] = outcome(training)
            assert len(sharded) == sum(isinstance(p, DTensor) for p in training.head.parameters()) > 0
    return found


def loaded(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """What comes after each of the checkpoints, read into a head with other weights."""
    found = {}
    for path in sorted(Path(folder).iterdir()):
        head = build(path.name.rsplit("-", 1)[0])
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(1.0)
        training = Training(head, world_size, "adamw")
        model, optimizer = get_state_dict(training.head, training.optimizer)  # makes the optimizer's state, too
        dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=str(path))
        set_state_dict(training.head, training.optimizer, model_state_dict=model, optim_state_dict=optimizer)
        found[path.name] = outcome(training)
    return found


def outcome(training: Training) -> dict[str, Any]:
    """Weights, logits of the next evaluation, losses of the next steps."""
    weights, logits = training.whole(), training.logits()
    return {"weights": weights, "logits": logits, "losses": [training.step(step) for step in (3, 4)]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # so it is: one process
def test_a_checkpoint_of_four_ranks_is_read_by_two_and_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    expected = run_ranks(4, saved, tmp_path, str(folder))[0]
    results = [*run_ranks(2, loaded, tmp_path, str(folder)), loaded(0, 1, str(folder))]
    for result in results:
        assert result.keys() == expected.keys()
        for name, got in result.items():
            for parameter, weight in expected[name]["weights"].items():
                assert torch.equal(got["weights"][parameter], weight), f"{name}: {parameter}"
            torch.testing.assert_close(got["logits"], expected[name]["logits"], rtol=1e-9, atol=1e-11)
            assert got["losses"] == pytest.approx(expected[name]["losses"], rel=1e-10), name
