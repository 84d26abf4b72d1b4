"""Sixty mutations of a checkpoint; and that the harness sees what it is there to see."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.checkpoint_mutations import mutate_checkpoints, mutations
from rankmixer.pipeline.checkpoint import checkpoint
from rankmixer.pipeline.checkpoint.files import CheckpointFiles


def test_sixty_mutations() -> None:
    outcomes = mutations(60, seed=1)
    assert [outcome for outcome in outcomes if outcome.verdict == "silent"] == []
    assert {outcome.file for outcome in outcomes} == {
        "manifest.json",
        "meta.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
        "tensors.json",
    }
    assert sum(outcome.verdict == "detected" for outcome in outcomes) > 50


def test_what_nobody_verifies_is_seen_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def trust(*_: Any) -> None:
        return None

    monkeypatch.setattr(checkpoint, "damage_of", trust)
    monkeypatch.setattr(CheckpointFiles, "damage_of_contents", trust)
    found = mutate_checkpoints(15, seed=1)
    assert found["tried"] == 15
    assert found["silent"] > 5
