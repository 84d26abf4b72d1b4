"""Which checkpoint a run goes on from, and how its weights come into the model."""

from __future__ import annotations

import sys
from typing import Any, Literal

import torch

from rankmixer.launch.config.config import Config, dump_config, leaves
from rankmixer.launch.job.job import random_state
from rankmixer.launch.model.build import Build
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.journal.journal import Journal


def choose_whole(
    checkpoints: Checkpoints, ranks: Ranks, which: Literal["latest", "best"]
) -> tuple[str | None, list[dict[str, Any]]]:
    """The latest or best checkpoint that is whole, None if there is none; and a record for the log of each damaged one.

    What is damaged is said on stderr at once. Collective.

    Raises:
        ValueError: there are checkpoints, and none is whole: a run must not start anew as if there were none.
    """
    name, damaged = checkpoints.whole(which)
    if name is None and damaged and which == "latest":
        found = "\n  ".join(str(damage) for damage in damaged.values())
        raise ValueError(
            f"{checkpoints.directory}: no checkpoint is whole:\n  {found}\nNothing was changed. Bring one back from a "
            "copy, or give another run.directory to start anew"
        )
    records = []
    for checkpoint, damage in damaged.items():
        kept = f"it is kept as {damage.aside}" if damage.aside else "it stays where it is"
        instead = f"{name} is used instead" if name else "the weights of the last step are used instead"
        if ranks.is_first:
            print(f"warning: {damage}; {checkpoint} is damaged, {instead}; {kept}", file=sys.stderr, flush=True)
        records.append(
            {"checkpoint": checkpoint, "file": damage.file, "found": damage.found, "used": name, "aside": damage.aside}
        )
    return name, records


def record_damaged(journal: Journal | None, step: int, records: list[dict[str, Any]]) -> None:
    """Put what `choose_whole` found into the log."""
    for record in records:
        if journal:
            journal.event("damaged", step, **record)


def restore(
    built: Build, ranks: Ranks, checkpoints: Checkpoints, name: str, config: Config, *, to_resume: bool = False
) -> None:
    """Load a checkpoint into a built model and its optimizers. Collective.

    Args:
        to_resume: take over the ids that wait for a row too, and the random state if it comes from as many ranks on
            the same kind of device.

    Raises:
        ValueError: the checkpoint belongs to another feature schema, or its tensors to another model.
    """
    meta = checkpoints.meta(name)
    found, expected = meta["schema_digest"], config.feature_schema.digest()
    if found != expected:
        raise ValueError(
            f"{checkpoints.directory}/{name} was trained with another feature schema (digest {found[:12]}, this one "
            f"is {expected[:12]}); use the schema it was trained with, or another run.directory"
        )
    # Lazy state must exist to be loaded into; creating it moves weights, so it comes first.
    built.optimizer.init_dense_state()
    state = built.state()
    if to_resume and (meta["world_size"], meta["device"]) == (ranks.world_size, ranks.device.type):
        state["random"] = random_state(ranks)
    if to_resume and meta.get("waiting"):
        state["waiting"] = {
            rank: {
                table: torch.empty(3, size, dtype=torch.int64, device=ranks.device) for table, size in tables.items()
            }
            for rank, tables in meta["waiting"].items()
        }
    try:
        checkpoints.load(name, state)
    except ValueError as error:
        there, here = (leaves(tree) for tree in (meta["config"], dump_config(config)))
        changed = [
            f"{key} = {there.get(key)} there, {here.get(key)} here"
            for key in sorted(there.keys() | here.keys())
            if key.startswith(("model.", "optimizer.", "plan.tables.")) and there.get(key) != here.get(key)
        ]
        raise ValueError(
            f"{error}\n  configuration: {'; '.join(changed) or 'as it was'}\nUse the configuration it was trained "
            "with, or another run.directory"
        ) from None
    built.load_state(state)
    if "random" in state:
        generators = state["random"][f"rank-{ranks.rank}"]
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"], ranks.device)
