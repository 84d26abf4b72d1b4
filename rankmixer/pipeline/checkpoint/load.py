"""Reading a checkpoint into a state that is there, whatever its sharding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rankmixer.pipeline.base.collective import on_rank_0, rank, together, world_size
from rankmixer.pipeline.base.storage import reading
from rankmixer.pipeline.checkpoint.files import META, CheckpointFiles, Damage, listed
from rankmixer.pipeline.checkpoint.plan import ReshardingLoadPlanner, check_tensors
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsReader


def damage_of(files: CheckpointFiles, name: str) -> Damage | None:
    """Compare every byte of a checkpoint with its manifest; the first damage found. Collective: all ranks agree.

    Raises:
        ValueError: there is no such checkpoint, or a file cannot be read.
    """
    what = f"cannot load {files.path(name)}"

    def first(look: Callable[[], Damage | None]) -> Damage | None:
        """What any rank has found."""
        everywhere = together(what, lambda: asdict(damage) if (damage := look()) else None)
        return next((Damage(**damage) for damage in everywhere if damage), None)

    def contents() -> Damage | None:
        manifest = files.manifest(name)
        listed_files = sorted(manifest["files"]) if isinstance(manifest, dict) else []
        return files.damage_of_contents(name, listed_files[rank() :: world_size()])  # every byte by one rank

    return first(lambda: files.damage(name) if rank() == 0 else None) or first(contents)


def load(files: CheckpointFiles, name: str, state: dict[str, Any]) -> dict[str, Any]:
    """Read a whole checkpoint into the tensors of `state`, in place; return its meta. Collective: Checkpoints.load."""
    what = f"cannot load {files.path(name)}"
    reader = SafetensorsReader(files.filesystem, on_rank_0(what, lambda: files.folder(name)))
    planner = ReshardingLoadPlanner()

    def plan() -> list[str]:
        """Plan this rank's reads; return the saved tensors that it does not take."""
        check_tensors(state)
        with reading(files.path(name)):
            metadata = reader.read_metadata()
        reader.set_up_storage_reader(metadata, is_coordinator=rank() == 0)
        planner.set_up_planner(state, metadata, is_coordinator=rank() == 0)
        planner.create_local_plan()
        below = tuple(f"{key}." for key in state)
        return [fqn for fqn in metadata.state_dict_metadata if fqn.startswith(below) and fqn not in planner.state_dict]

    def read() -> None:
        if unused:
            raise ValueError(
                f"nothing here takes {listed(unused)} of the checkpoint: was a feature removed, or does the "
                "optimizer need init_state() before its state_dict()?"
            )
        with reading(files.path(name)):
            reader.read_data(planner.finish_plan(planner.plan), planner).wait()

    unused = set.intersection(*map(set, together(what, plan)))
    together(what, read)
    return dict(on_rank_0(what, lambda: files.read_json(name, META)))
