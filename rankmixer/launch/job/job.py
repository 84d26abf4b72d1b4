"""What training, evaluation and prediction share: readers, and passes over the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from rankmixer.embeddings.managed_tables import taken_rows, waiting_ids
from rankmixer.launch.config.config import Config
from rankmixer.launch.job.failed_evaluation import raise_first, raising
from rankmixer.launch.model.build import Build
from rankmixer.launch.model.ranker import Output
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.rows.bad_files import Entry, found_bad, open_together
from rankmixer.launch.rows.paths import key_columns
from rankmixer.pipeline.base.collective import together
from rankmixer.pipeline.encode.hashing import hash_integers, hash_strings
from rankmixer.pipeline.metrics.groups import group_values
from rankmixer.pipeline.metrics.metrics import Metrics
from rankmixer.pipeline.metrics.reliability import Reliability
from rankmixer.pipeline.metrics.slices import Slices
from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import SEGMENTS
from rankmixer.pipeline.train.rows_seen import Rows, RowsSeen
from rankmixer.pipeline.train.train_pipeline import AgreedPipeline
from rankmixer_head import Activity


def training_reader(
    config: Config,
    ranks: Ranks,
    set_aside: Mapping[str, str] | None = None,
    files: list[str] | None = None,
    *,
    located: bool = False,
) -> BatchReader:
    """This rank's shuffled training batches, without files that an earlier attempt has set aside. Collective.

    `files` are those of a portion of a stream, instead of all. With `located`, batches say where their rows lie.

    Raises:
        ValueError: data.sample would leave nothing out (a portion of a stream may well hold no negative).
    """
    reader = BatchReader(
        open_together(
            config, ranks, config.data.train if files is None else files, located=located, set_aside=set_aside
        ),
        batch_size=config.data.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=True,
        seed=config.train.seed,
        window_rows=config.data.window_rows,
        threads=config.data.threads,
        pin=ranks.device.type == "cuda",
        sampling=config.data.sample,
    )
    if files is None and not reader.sampling_matters:
        assert config.data.sample is not None
        raise ValueError(
            f"data.sample: in no row is {config.data.sample.negatives_of} 0, so that negatives_of leaves nothing out; "
            "remove data.sample"
        )
    return reader


def pass_reader(
    config: Config,
    ranks: Ranks,
    paths: str | list[str],
    *,
    keys: Sequence[str],
    labels: bool = True,
    located: bool = False,
) -> BatchReader:
    """This rank's part of one pass over `paths` in file order, with key columns or `located`. Collective."""
    return BatchReader(
        open_together(config, ranks, paths, keys=keys, labels=labels, located=located),
        batch_size=config.data.evaluate_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=False,
        threads=config.data.threads,
        pin=ranks.device.type == "cuda",
    )


def outputs(
    built: Build, ranks: Ranks, reader: BatchReader, failures: list[Exception] | None = None
) -> Iterator[Output]:
    """Run the model over every row once, in evaluation mode. Collective; every rank sees the same number of steps.

    What is put into `failures` on one rank is raised there, and ends the pass on all.
    """
    failures = [] if failures is None else failures
    pipeline = AgreedPipeline(
        built.model, built.optimizer, ranks.device, ranks.control, ranks.preemption.is_told_to_leave
    )
    built.model.eval()
    try:
        with torch.no_grad(), closing(reader.epoch(0)) as batches:
            rows = raising(batches, failures)
            for _ in range(reader.steps()):
                yield pipeline.progress(rows)
    finally:
        pipeline.detach()
        built.model.train()


@dataclass(frozen=True)
class Evaluation:
    """What a pass over labelled rows says of the model, equal on all ranks.

    Args:
        metrics: by name; with a Sparse-MoE also the share of its experts that was open, and how many never were.
        load_LTE: share of the examples for which each expert was open; None without a Sparse-MoE.
        bad: the files and row groups that were not read.
        rows: what the rows held.
        details: `reliability`, the bins of each task's diagram; with metrics.slices `slices`, metrics by value.
    """

    metrics: dict[str, float]
    load_LTE: torch.Tensor | None
    bad: list[Entry]
    rows: Rows
    details: dict[str, Any]


def evaluate(config: Config, built: Build, ranks: Ranks, paths: str | list[str]) -> Evaluation:
    """Run the model as it is served over `paths`. Collective."""
    group = config.metrics.group
    reader = pass_reader(config, ranks, paths, keys=key_columns(config))
    metrics = Metrics(config.feature_schema.tasks, group=group, auc_bins=config.metrics.auc_bins)
    reliability = Reliability(config.feature_schema.tasks)
    slices = Slices(config.feature_schema.tasks, config.metrics.slices, auc_bins=config.metrics.auc_bins)
    seen = RowsSeen(config.feature_schema, ranks.device)
    activity = Activity(built.moes) if built.moes else None
    failures: list[Exception] = []

    def add(output: Output) -> None:
        batch = output.batch
        groups = group_ids(batch, group) if group else ()
        metrics.update(output.logits_BK, batch.labels_BK, batch.weights_B, *groups)
        reliability.update(output.logits_BK, batch.labels_BK, batch.weights_B)
        if slices.columns and batch.keys is not None:
            slices.update(output.logits_BK, batch.labels_BK, batch.weights_B, batch.keys)
        seen.add(batch)
        if activity:
            activity.add()

    for output in outputs(built, ranks, reader, failures):
        try:
            add(output)
        except Exception as error:
            failures.append(error)
    together("cannot evaluate", partial(raise_first, failures))
    computed, bad, rows = metrics.compute(ranks.control), found_bad(reader), seen.total(ranks.control)
    details: dict[str, Any] = {"reliability": reliability.compute(ranks.control)}
    if slices.columns:
        details["slices"] = slices.compute(ranks.control)
    if activity is None:
        return Evaluation(computed, None, bad, rows, details)
    load_LTE = activity.load_LTE(partial(dist.all_reduce, group=ranks.control))
    computed |= {"active_ratio": load_LTE.mean().item(), "dead_experts": int((load_LTE == 0).sum())}
    return Evaluation(computed, load_LTE, bad, rows, details)


def group_ids(batch: Batch, column: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) int64, the group of each example: the hash of its value, equal on all ranks; and (B,) bool, if it has one.

    Null and padding have none. 0 and the empty string are values like others.

    Raises:
        ValueError: values of the column cannot be compared exactly, see rankmixer.pipeline.metrics.groups.
    """
    assert batch.keys is not None
    values = group_values(batch.keys[column].combine_chunks(), column)
    if pa.types.is_integer(values.type):
        hashes = hash_integers(values.fill_null(0).to_numpy(zero_copy_only=False))
    else:
        hashes = hash_strings(values)
    groups_B = torch.zeros(len(batch.weights_B), dtype=torch.int64)
    groups_B[: len(hashes)] = torch.from_numpy(hashes.view(np.int64))
    grouped_B = torch.zeros(len(batch.weights_B), dtype=torch.bool)
    grouped_B[: len(hashes)] = torch.from_numpy(values.is_valid().to_numpy(zero_copy_only=False))
    return groups_B, grouped_B


def random_state(ranks: Ranks) -> dict[str, dict[str, torch.Tensor]]:
    """The state of torch's generators on this rank, under a name of its own."""
    state = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(ranks.device)
    return {f"rank-{ranks.rank}": state}


def managed_rows(config: Config, built: Build) -> dict[str, int]:
    """How many rows managed tables can give to ids, and how many ids have one, on all ranks. Collective."""
    taken: Counter[str] = Counter()
    for rows in together("cannot count the rows taken", lambda: taken_rows(built.model)):
        taken.update(rows)
    tables = config.feature_schema.tables
    return {f"{name}/rows_taken": number for name, number in taken.items()} | {
        f"{name}/rows_to_take": tables[name].rows - SEGMENTS for name in taken
    }


def waiting_state(built: Build, ranks: Ranks) -> dict[str, dict[str, torch.Tensor]]:
    """The ids that wait on this rank for a row of a managed table, under a name of its own."""
    waiting = waiting_ids(built.model)
    return {f"rank-{ranks.rank}": waiting} if waiting else {}


def sizes_of(waiting: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, int]]:
    """How many ids wait on all ranks, by rank and table: needed to load them. Collective."""
    sizes = {rank: {table: ids.shape[1] for table, ids in tables.items()} for rank, tables in waiting.items()}
    return {
        rank: tables
        for part in together("cannot count the ids that wait", lambda: sizes)
        for rank, tables in part.items()
    }
