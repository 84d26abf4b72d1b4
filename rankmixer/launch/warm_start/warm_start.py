"""`run.warm_start`: a new run begins with another model's weights, as far as they fit by name, and reports which do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from rankmixer.launch.config.config import Config
from rankmixer.launch.model.build import Build
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.rows.paths import find_source
from rankmixer.launch.warm_start.transfer import Transfer, flat
from rankmixer.pipeline.base.collective import on_rank_0, together
from rankmixer.pipeline.base.storage import open_storage, reading
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.parts import SavedTensors
from rankmixer.pipeline.journal.journal import Journal
from rankmixer.pipeline.schema.schema import Schema

REPORT = "warm_start.json"
Report = dict[str, Any]


def warm_start(config: Config, built: Build, ranks: Ranks) -> Report:
    """Take over what fits from the model that `run.warm_start` names; return the report. Collective.

    Weights come by name: tables row by row, as far as the ids mean the same (row_maps.py); the dense part tensor by
    tensor. A tensor's optimizer state comes with it if the optimizer is of the same kind. What is new keeps the values
    that it was initialised with. Sharding and number of ranks may be other than then.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or nothing of it fits.
    """
    asked = config.run.warm_start
    assert asked is not None
    root, name = on_rank_0("cannot warm-start", lambda: find_source(asked))
    checkpoints = Checkpoints(root)
    checkpoints.verify(name)
    meta = checkpoints.meta(name)
    _fresh_dense_state(built)
    state = built.state()
    transfer = Transfer(config, meta, _schema_of(root, meta), checkpoints.tensors(name), state)
    outcomes: dict[str, list[Any]] = {}
    for outcome in together(f"cannot warm-start from {root}/{name}", transfer.run):
        outcomes |= outcome  # a tensor may be here on some ranks only
    built.load_state(state)
    report = _report(f"{root}/{name}", outcomes, transfer.saved)
    if not report["taken"] and not report["mapped"]:
        new = "; ".join(f"{tensor}: {reason}" for tensor, reason in list(report["new"].items())[:5])
        raise ValueError(
            f"run.warm_start is {asked}: nothing of {root}/{name} fits this model ({new}); take another, or none"
        )
    if ranks.is_first:
        print(_summary(report), file=sys.stderr, flush=True)
    return report


def record_warm_start(journal: Journal | None, directory: str, report: Report | None) -> None:
    """Keep the report in the run's directory, and its numbers in the log."""
    if journal is None or report is None:
        return
    unfinished = Path(directory, f".{REPORT}.tmp")
    unfinished.write_text(json.dumps(report, indent=1))
    unfinished.replace(Path(directory, REPORT))
    counts = {key: len(report[key]) for key in ("taken", "mapped", "new", "left_over")}
    journal.event("warm_start", 0, source=report["source"], **counts, report=REPORT)


def _fresh_dense_state(built: Build) -> None:
    """Create the dense optimizer's state as if it had taken no step; `init_dense_state` takes one."""
    parameters = built.optimizer.dense.params
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    built.optimizer.init_dense_state()
    with torch.no_grad():
        states = built.optimizer.state_dict()["state"]
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
            for _, value in flat(states[name]):
                value.zero_()


def _schema_of(root: str, meta: dict[str, Any]) -> Schema:
    """The schema that the other model was trained with, its words too if they lie beside it."""
    filesystem, path = open_storage(f"{root}/schema/schema.yaml")
    with reading(root):
        stands = filesystem.exists(path)
    if stands:
        schema = Schema.load(f"{root}/schema/schema.yaml")
        if schema.digest() == meta["schema_digest"]:
            return schema
    # The paths of its vocabularies may by now be those of other words.
    context = {"vocabularies_to_be_written": True}
    return Schema.model_validate(meta["config"]["feature_schema"], context=context)


def _report(source: str, outcomes: dict[str, list[Any]], saved: SavedTensors) -> Report:
    report: Report = {"source": source, "taken": [], "mapped": {}, "new": {}}
    for tensor, (how, detail) in sorted(outcomes.items()):
        if how == "taken":
            report["taken"].append(tensor)
        else:
            report["new" if how == "new" else "mapped"][tensor] = detail
    used = {f"model.{tensor}" for tensor, (how, _) in outcomes.items() if how != "new"}
    left = [tensor for tensor in saved.tensors if tensor.startswith("model.") and tensor not in used]
    return report | {"left_over": sorted(tensor.removeprefix("model.") for tensor in left)}


def _summary(report: Report) -> str:
    lines = [f"warm start from {report['source']}: {len(report['taken'])} tensors taken"]
    lines += [f"  {tensor}: {rows}" for tensor, rows in report["mapped"].items()]
    lines += [f"  {tensor}: new ({reason})" for tensor, reason in report["new"].items()]
    lines += [f"  {tensor}: left over" for tensor in report["left_over"]]
    more = [f"  and {len(lines) - 20} more, in {REPORT}"] if len(lines) > 20 else []
    return "\n".join(lines[:20] + more)
