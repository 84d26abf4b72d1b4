"""Reading a checkpoint into a state that is there, whatever its sharding."""

from __future__ import annotations

from typing import Any

from pipeline.checkpoint_files import META, CheckpointFiles, listed
from pipeline.checkpoint_plan import ReshardingLoadPlanner, check_tensors
from pipeline.collective import on_rank_0, rank, together, world_size
from pipeline.safetensors_storage import SafetensorsReader


def load(files: CheckpointFiles, name: str, state: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint into the tensors of `state`, in place; return its meta. Collective; see Checkpoints.load."""
    what = f"cannot load {files.path(name)}"
    reader = SafetensorsReader(files.filesystem, files.path(name))
    planner = ReshardingLoadPlanner()

    def plan() -> list[str]:
        """Plan this rank's reads; return the saved tensors that it does not take."""
        check_tensors(state)
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
        reader.read_data(planner.finish_plan(planner.plan), planner).wait()

    on_rank_0(what, lambda: files.verify(name))
    # Every byte is read once more, but by one rank only.
    contents = sorted((files.manifest(name) or {"files": {}})["files"])
    together(what, lambda: files.verify_contents(name, contents[rank() :: world_size()]))
    unused = set.intersection(*map(set, together(what, plan)))
    together(what, read)
    return dict(on_rank_0(what, lambda: files.read_json(name, META)))
