"""Files that cannot be read: all ranks read the same others, and the run's directory says which and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rankmixer.launch.config.config import Config
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.rows.paths import opening
from rankmixer.pipeline.base.collective import on_rank_0, together
from rankmixer.pipeline.journal.journal import Journal
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader

REPORT = "bad_files.jsonl"
Entry = dict[str, Any]  # file, row_group (null: the whole file), reason


def open_together(
    config: Config,
    ranks: Ranks,
    paths: str | list[str],
    *,
    keys: Sequence[str] = (),
    labels: bool = True,
    located: bool = False,
    set_aside: Mapping[str, str] | None = None,
) -> ParquetDataset:
    """Open files on every rank; those that `data.on_bad_file: skip` sets aside are rank 0's choice. Collective.

    Args:
        set_aside: what an earlier attempt set aside, which stays so.

    Raises:
        ValueError: on all ranks, what is wrong on one of them, or that they do not see the same rows.
    """
    open_here = partial(
        ParquetDataset, paths, config.feature_schema, keys=keys, labels=labels, located=located, **opening(config)
    )
    if config.data.on_bad_file == "skip" and ranks.world_size > 1:
        set_aside = on_rank_0("cannot open the files", lambda: open_here(set_aside=set_aside).files.bad)
    opened: list[ParquetDataset] = []

    def layout() -> list[Any]:
        opened.append(open_here(set_aside=set_aside))
        files = opened[0].files
        here_alone = [path for path in files.bad if path not in (set_aside or {})]
        return [files.layout, len(files.files), files.num_rows, here_alone[:1]]

    layouts = together("cannot open the files", layout)
    for rank, other in enumerate(layouts):
        if other[0] != layouts[0][0]:
            here, there = (f"{files} files with {rows} rows" for _, files, rows, _ in (layouts[0], other))
            bad = f", where {other[3][0]} cannot be read" if other[3] else ""
            raise ValueError(
                f"{paths}: found {here} on rank 0 and {there} on rank {rank}{bad}; expected the same row groups on "
                "all ranks. Give all nodes the same files, and start when they are written."
            )
    return opened[0]


def check_resumed(dataset: ParquetDataset, data: Mapping[str, Any], row: int) -> None:
    """Refuse to go on in the middle of an epoch with other rows: the position would mean something else.

    Args:
        dataset: the files as they are now.
        data: what `remembered` gave when the position was saved.
        row: of the position.

    Raises:
        ValueError: what has changed.
    """
    if not row or dataset.files.layout == data["layout"]:
        return
    for path, reason in dataset.files.bad.items():
        if path not in data["bad_files"]:
            raise ValueError(
                f"{reason} The run has read this file and stands in the middle of an epoch: put it back to resume, or "
                "give another run.directory."
            )
    raise ValueError(
        f"data.train: found {len(dataset.files.files)} files with {dataset.files.num_rows} rows, cut otherwise into "
        f"files and row groups than when the checkpoint was written ({data['files']} files, {data['rows']} rows); "
        f"expected the same, for the run stands at row {row} of an epoch. Put them back to resume (an older rankmixer "
        "orders rows in another way: go on with that one), or give another run.directory."
    )


def remembered(dataset: ParquetDataset) -> dict[str, Any]:
    """What a checkpoint keeps of the files its position counts in."""
    files = dataset.files
    return {"layout": files.layout, "files": len(files.files), "rows": files.num_rows, "bad_files": files.bad}


def found_bad(reader: BatchReader) -> list[Entry]:
    """The files set aside, and the row groups that any rank could not decode so far. Collective."""
    here = [[file, group, reason] for (file, group), reason in sorted(reader.damaged.items())]
    everywhere = together("cannot count bad files", lambda: here)
    groups = {(file, group): reason for damaged in everywhere for file, group, reason in damaged}
    whole = [{"file": file, "row_group": None, "reason": reason} for file, reason in reader.dataset.files.bad.items()]
    return whole + [
        {"file": file, "row_group": group, "reason": reason} for (file, group), reason in sorted(groups.items())
    ]


class BadFileReport:
    """What a run could not read: each in one line of its directory's report, their number in its log.

    Args:
        directory: of the run.
        journal: of rank 0; None on other ranks, which say nothing.
    """

    def __init__(self, directory: str, journal: Journal | None) -> None:
        self._path = Path(directory, REPORT)
        self._journal = journal
        self._told: dict[str, int] = {}

    def tell(self, step: int, data: str, entries: Sequence[Entry]) -> None:
        """Add what is new in `data`: train, evaluate or test."""
        if self._journal is None or len(entries) == self._told.get(data, 0):
            return
        self._told[data] = len(entries)
        self._journal.event("bad_files", step, data=data, count=len(entries), last=entries[-1]["reason"])
        try:
            self._add([{"data": data, **entry} for entry in entries])
        except (OSError, ValueError) as error:
            print(f"warning: {self._path}: {error}; the job goes on", file=sys.stderr)

    def _add(self, lines: list[Entry]) -> None:
        known = [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []
        with self._path.open("a") as report:
            report.writelines(json.dumps(line) + "\n" for line in lines if line not in known)


def warn_of_bad(data: str, entries: Sequence[Entry]) -> None:
    """Say on stderr what was not read."""
    for entry in entries[:5]:
        print(f"warning: {data}: set aside: {entry['reason']}", file=sys.stderr)
    if len(entries) > 5:
        print(f"warning: {data}: {len(entries)} files and row groups set aside in all", file=sys.stderr)
