"""Logs of runs as training writes them, for tests of what is made of them."""

import json
from pathlib import Path
from typing import Any

START: dict[str, Any] = {
    "resumed_from": None,
    "total_steps": 100,
    "world_size": 2,
    "hosts": "node-0, node-1",
    "dense_parameters": 5000,
    "table_parameters": 70_000,
    "flops_per_example": 900,
    "training_flops_per_example": 2700,
    "peak_tflops": 2.0,
    "versions": {"rankmixer": "0.1.0", "torch": "2.13.0", "torchrec": "1.8.0"},
}
SHARD = {"sharding": "row_wise", "kernel": "fused", "offset": [0, 0], "size": [50, 8], "bytes": 1600}


def config(tasks: list[str], **changes: Any) -> dict[str, Any]:
    features = {"user": {"kind": "id", "range": 100, "dim": 8}, "price": {"kind": "number"}}
    tree = {
        "feature_schema": {"features": features, "labels": {task: {} for task in tasks}},
        "model": {"layers": 2, "moe": {"active_ratio": 0.25}},
        "metrics": {"select": "auc", "group": "user"},
        "run": {"directory": "runs/a", "checkpoints": None},
    }
    return {**tree, **changes}


def metrics(task: str, auc: float | None) -> dict[str, float | None]:
    prefix = f"{task}/" if task else ""
    return {f"{prefix}{name}": auc for name in ("auc", "gauc", "logloss", "ne", "calibration")}


def write(directory: Path, records: list[dict[str, Any]], end: str = "\n") -> str:
    """A run's log of these records, a second between two that have no time; returns the run's directory."""
    directory.mkdir(exist_ok=True)
    lines = [
        json.dumps({"kind": record["kind"], "step": 0, "time": 1000.0 + number, **record})
        for number, record in enumerate(records)
    ]
    (directory / "log.jsonl").write_text("\n".join(lines) + end)
    return str(directory)


def a_run(tasks: list[str], name: str = "user") -> list[dict[str, Any]]:
    """Records of two ranks with a Sparse-MoE: two evaluations, a restart, the finish. `name` is the user's."""
    plan = {
        "shards": [{**SHARD, "table": name, "rank": rank} for rank in range(2)],
        "memory": [{"tables": 1600, "states": 1600, "head": 100_000}] * 2,
    }
    start = {"kind": "start", **START, "plan": plan, "config": config(tasks)}
    prefixes = tasks if len(tasks) > 1 else [""]
    records: list[dict[str, Any]] = [start]
    for step in range(10, 110, 10):
        train = {"kind": "train", "step": step, "epoch": 0, "loss": 1 / step, "examples_per_second": 100.0 + step}
        records.append({**train, "data_wait_share": 0.25, "mfu": 0.5})
        if step in (40, 80):
            values: dict[str, Any] = {
                key: value for prefix in prefixes for key, value in metrics(prefix, 1 - step / 200).items()
            }
            bins: list[dict[str, Any]] = [{"prediction": 0.1, "observed": 0.2, "weight": 9.0, "rows": 9}] * 3
            bins.append({"prediction": None, "observed": 0.5, "weight": 2.0, "rows": 2})
            slices: dict[str, Any] = {
                name: {"values": [{"value": name, "rows": 7, **values}, {"value": None, "rows": 3, **values}]}
            }
            slices[name]["other"] = {"rows": 1, **dict.fromkeys(values)}
            records.append(
                {
                    "kind": "evaluate",
                    "step": step,
                    **values,
                    "rows": 20.0,
                    "reliability": {task: bins for task in tasks},
                    "slices": slices,
                }
            )
            ranks = {"0": {"rss_bytes": 2**30}, "1": {"rss_bytes": 2**31}}
            records.append({"kind": "memory", "step": step, "ranks": ranks})
            load = [[[0.0, 0.5, 0.25]] * 4] * 2
            shares = {"active_ratio/layer_0": 0.25, "active_ratio/layer_1": 0.25}
            records.append({"kind": "experts", "step": step, "load_LTE": load, **shares})
            records.append({"kind": "warning", "step": step, "message": f"dead expert of <{name}>"})
            records.append({"kind": "checkpoint", "step": step, "name": f"step-{step:08d}"})
        if step == 50:
            records.append({**start, "step": 40, "resumed_from": "step-00000040"})
    records.append({"kind": "mended", "step": 100, "price: null -> default": 4})
    test = {f"test_{key}": value for prefix in prefixes for key, value in metrics(prefix, 0.625).items()}
    records.append({"kind": "finish", "step": 100, "steps": 100, "checkpoint": "step-00000040", **test})
    return records
