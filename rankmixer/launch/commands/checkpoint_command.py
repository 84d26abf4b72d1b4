"""`rankmixer checkpoint`: what is there, whether it is whole, what it holds, and what may go."""

from __future__ import annotations

import math
import posixpath
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from torch.distributed.checkpoint import TensorStorageMetadata

from rankmixer.launch.ranks.errors import JobFailed
from rankmixer.launch.ranks.run_lock import is_held
from rankmixer.launch.report.output import show
from rankmixer.pipeline.base.storage import check_storage, reading
from rankmixer.pipeline.checkpoint.files import META, NAME, CheckpointFiles, Damage, listed
from rankmixer.pipeline.checkpoint.load import damage_of
from rankmixer.pipeline.checkpoint.parts import SavedTensors
from rankmixer.pipeline.checkpoint.safetensors_storage import DTYPE_NAMES, TENSORS_FILE

MB = 10**6


def list_checkpoints(where: str, *, as_json: bool) -> None:
    """Print one line a checkpoint; sizes of files are compared with the manifest, their bytes are not read."""
    files, only = _opened(where)
    names = [only] if only else files.directories()
    found = [_entry(files, name) for name in names] + [
        {"name": name, "bytes": _bytes(files, name), "state": "set aside"} for name in ([] if only else files.aside())
    ]
    with_metric = [entry for entry in found if entry.get("metric") is not None]
    table = Table("checkpoint", "step", "metric", "MB", "age", "", "state")
    best, latest = files.by_metric()[:1], files.names()[-1:]
    for entry in found:
        entry["best"], entry["latest"] = [entry["name"]] == best, [entry["name"]] == latest
        marks = " ".join(mark for mark in ("best", "latest") if entry[mark])
        metric = f"{entry['metric']:.5g}" if entry in with_metric else ""
        table.add_row(
            entry["name"],
            str(entry.get("step", "")),
            metric,
            f"{entry['bytes'] / MB:,.1f}",
            _age(entry.get("age_seconds")),
            marks,
            entry["state"] + (f": {entry['found']}" if entry.get("found") else ""),
        )
    show({"directory": files.root, "checkpoints": found}, files.root, table, as_json=as_json)


def verify_checkpoints(where: str, *, as_json: bool) -> None:
    """Read every byte of all checkpoints, or of one.

    Raises:
        JobFailed: one is damaged; names its file.
    """
    files, only = _opened(where)
    found, damages = [], []
    table = Table("checkpoint", "MB", "state")
    for name in [only] if only else files.names():
        damage = damage_of(files, name)
        found.append({"name": name, "whole": damage is None, "bytes": _bytes(files, name)})
        if damage:
            damages.append(damage)
            found[-1] |= {"file": damage.file, "found": damage.found}
        table.add_row(name, f"{_bytes(files, name) / MB:,.1f}", "damaged" if damage else "whole")
    show({"directory": files.root, "checkpoints": found, "damaged": len(damages)}, files.root, table, as_json=as_json)
    if damages:
        raise JobFailed(
            f"{len(damages)} of {len(found)} checkpoints are damaged: {'; '.join(map(str, damages))}; a run that "
            "resumes takes the newest that is whole"
        )


def show_checkpoint(where: str, *, as_json: bool) -> None:
    """Print position, metrics, versions and tensors of a checkpoint; of a run that of the latest.

    Raises:
        ValueError: what says so is damaged.
    """
    files, only = _opened(where)
    name = only or next(reversed(files.names()), None)
    if name is None:
        raise ValueError(f"{files.root}: found no whole checkpoint, only what killed saves left; train first")
    damage = files.damage(name) or files.damage_of_contents(name, [META, TENSORS_FILE])
    if damage:
        raise files.error(name, damage)
    manifest, meta = files.manifest(name), files.read_json(name, META)
    assert isinstance(manifest, dict)
    tensors = {fqn: _tensor(saved) for fqn, saved in sorted(SavedTensors(files, name).tensors.items())}
    found = {
        "checkpoint": files.path(name),
        "step": manifest["step"],
        "metric": manifest["metric"],
        "bytes": _bytes(files, name),
        **{key: meta.get(key) for key in ("position", "evaluation", "world_size", "device", "versions")},
        "tensors": tensors,
    }
    facts = Table(show_header=False)
    for key, value in found.items():
        if key not in ("checkpoint", "tensors"):
            items = value.items() if isinstance(value, dict) else ()
            facts.add_row(key, ", ".join(f"{inner} {item}" for inner, item in items) if items else str(value))
    table = Table("tensor", "dtype", "shape", "MB", "pieces")
    for fqn, tensor in tensors.items():
        shape = " x ".join(map(str, tensor["shape"])) or "scalar"
        table.add_row(fqn, tensor["dtype"], shape, f"{tensor['bytes'] / MB:,.3f}", tensor["sharding"])
    show(found, files.path(name), facts, table, as_json=as_json)


def prune_checkpoints(where: str, keep: int, *, is_dry_run: bool, as_json: bool) -> None:
    """Remove all but the last `keep` checkpoints and the best, and what killed saves left.

    Raises:
        ValueError: a job trains there, or `where` is one checkpoint.
    """
    files, only = _opened(where)
    if only:
        raise ValueError(f"{where} is one checkpoint; name its run, and how many to keep")
    if keep < 1:
        raise ValueError(f"--keep is {keep}, expected at least 1")
    run = posixpath.dirname(files.root) if posixpath.basename(files.root) == "checkpoints" else files.root
    holders = [is_held(str(files.filesystem.unstrip_protocol(path))) for path in dict.fromkeys((run, files.root))]
    if holder := next(filter(None, holders), None):
        raise ValueError(f"{where} is in use by {holder}; it removes checkpoints itself (run.keep): wait for its end")
    removed = {name: _bytes(files, name) for name in files.surplus(keep)}
    for name in () if is_dry_run else removed:
        with reading(files.path(name)):
            files.remove(name)
    what = "would remove" if is_dry_run else "removed"
    size = sum(removed.values()) / MB
    line = (
        f"{what} {listed(removed, limit=20)}, {size:,.1f} MB"
        if removed
        else "nothing to remove: the best one stays too"
    )
    entries = [{"name": name, "bytes": size} for name, size in removed.items()]
    found = {"directory": files.root, "dry_run": is_dry_run, "removed": entries}
    show(found, f"{files.root}: {line}", as_json=as_json)


def _opened(where: str) -> tuple[CheckpointFiles, str | None]:
    """The directory of checkpoints behind a path or URL, and the one that it names."""
    check_storage(where)
    path = where.rstrip("/")
    root, name = posixpath.split(path)
    if re.fullmatch(NAME, name):
        files = CheckpointFiles(root or ".")
        if name in files.directories():
            return files, name
        raise ValueError(f"{where}: found {listed(files.names())}; name one of these")
    for root in (f"{path}/checkpoints", path):
        with reading(root):
            files = CheckpointFiles(root)
            if files.directories() or files.aside():
                return files, None
    raise ValueError(
        f"{where}: found no checkpoint; expected the directory of a run, of its checkpoints, or of one of them"
    )


def _entry(files: CheckpointFiles, name: str) -> dict[str, Any]:
    manifest = files.manifest(name)
    entry = {"name": name, "step": int(name[5:]), "bytes": _bytes(files, name)}
    if manifest is None:
        return entry | {"state": "cut short", "found": "no manifest, the next save removes it"}
    damage = files.damage(name)
    metric = None if isinstance(manifest, Damage) else manifest["metric"]
    entry |= {"metric": metric, "age_seconds": _age_seconds(files, name)}
    return entry | {"state": "damaged" if damage else "whole", "found": str(damage) if damage else None}


def _bytes(files: CheckpointFiles, name: str) -> int:
    with reading(files.path(name)):
        return int(files.filesystem.du(files.path(name)))


def _age_seconds(files: CheckpointFiles, name: str) -> float | None:
    with suppress(NotImplementedError, OSError, KeyError):
        modified: datetime = files.filesystem.modified(files.path(name, "manifest.json"))
        return (datetime.now(UTC) - modified.astimezone(UTC)).total_seconds()
    return None  # not every filesystem knows


def _age(seconds: float | None) -> str:
    """An age for people.

    >>> [_age(seconds) for seconds in (None, 5.0, 600.0, 7200.0, 200_000.0)]
    ['', '5 s', '10 min', '2 h', '2 d']
    """
    if seconds is None:
        return ""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _tensor(saved: TensorStorageMetadata) -> dict[str, Any]:
    dtype = saved.properties.dtype
    places = [list(chunk.offsets) for chunk in saved.chunks]
    cut = [dim for dim in range(len(saved.size)) if len({place[dim] for place in places}) > 1]
    how = {(): "whole", (0,): "by rows", (1,): "by columns"}.get(tuple(cut), "by rows and columns")
    return {
        "dtype": DTYPE_NAMES[dtype],
        "shape": list(saved.size),
        "bytes": math.prod(saved.size) * dtype.itemsize,
        "sharding": how if how == "whole" else f"{len(places)} {how}",
        "pieces": [{"offsets": list(chunk.offsets), "sizes": list(chunk.sizes)} for chunk in saved.chunks],
    }
