"""`rankmixer evaluate` and `rankmixer predict`: one pass over some rows with the weights of a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pyarrow as pa

from rankmixer.launch.config.config import Config
from rankmixer.launch.job.job import evaluate, outputs, pass_reader
from rankmixer.launch.job.restoring import restore
from rankmixer.launch.model.build import Build, build
from rankmixer.launch.ranks.distributed import Ranks, check_world_here, cluster_here, process_group
from rankmixer.launch.report.output import print_result, show
from rankmixer.launch.report.report import metrics_table
from rankmixer.launch.rows.bad_files import found_bad, warn_of_bad
from rankmixer.launch.rows.learnt import with_trained_schema
from rankmixer.launch.rows.parts import ParquetParts
from rankmixer.launch.rows.paths import (
    check_checkpoints,
    check_evaluation,
    check_place,
    checkpoints_of,
    choose_checkpoint,
    evaluation_paths,
)
from rankmixer.pipeline.base.collective import together


def evaluate_checkpoint(config: Config, checkpoint: str, *, as_json: bool = False) -> None:
    """Print the metrics of a checkpoint on data.test, or data.evaluate: a table and one JSON line, or that alone."""
    paths = evaluation_paths(config)
    check_checkpoints(config)
    check_world_here(config)
    config = with_trained_schema(config)
    check_evaluation(config, paths)
    with process_group(config, checkpoint=checkpoint) as ranks:
        built, name = _restored(config, ranks, checkpoint)
        evaluation = evaluate(config, built, ranks, paths)
        if ranks.is_first:
            warn_of_bad("data", evaluation.bad)
            counted = {"bad_files": len(evaluation.bad)} if evaluation.bad else {}
            slices = {key: found for key, found in evaluation.details.items() if key == "slices"}
            result = {"checkpoint": name, **evaluation.metrics, **slices, **counted}
            show(result, metrics_table(name, evaluation.metrics), as_json=as_json, ends_in_json=True)


def predict(config: Config, checkpoint: str, data: str, out: str, keys: Sequence[str], *, logits: bool = False) -> None:
    """Write `keys` and one column TASK_probability per task for every row of `data` into the directory `out`.

    Probabilities are float64. From a logit of about 33 on even these have too few digits to tell rows apart, and are
    exactly 1 from 37 on; logits never do.

    Args:
        config: of the run.
        checkpoint: best, latest or a name.
        data: path, glob, directory or URL of Parquet files.
        out: path or fsspec URL of a directory that must not exist; it appears whole or not at all.
        keys: columns to copy, as they are.
        logits: write a column TASK_logit for each task too, float64: log(p / (1 - p)) before it is rounded.

    Raises:
        ValueError: `out` exists, a key is not in the files or is one of the new columns, or a row cannot be read.
    """
    tasks = config.feature_schema.tasks
    keys = list(dict.fromkeys(keys))
    names = [f"{task}_probability" for task in tasks] + [f"{task}_logit" for task in tasks if logits]
    taken = sorted(set(keys) & set(names))
    if taken:
        raise ValueError(f"--keys names {taken}, which are columns of the output; leave them out")
    check_checkpoints(config)
    check_place(out)  # whether it exists the ranks ask together, in ParquetParts.begin
    check_world_here(config)
    config = with_trained_schema(config)
    certain = 0
    with (
        ParquetParts(out) as parts,
        process_group(config, checkpoint=checkpoint, keys=keys, logits=logits) as ranks,
    ):
        parts.begin(ranks)
        # Without a key the places of the rows tell how many there are, padding not among them.
        reader = pass_reader(config, ranks, data, keys=keys, labels=False, located=not keys)
        built, checkpoint_name = _restored(config, ranks, checkpoint)
        for output in outputs(built, ranks, reader):
            rows = output.batch.keys
            assert rows is not None
            logits_BK = output.logits_BK[: rows.num_rows].cpu().double()
            probabilities_BK = logits_BK.sigmoid()
            certain += int(((probabilities_BK == 0) | (probabilities_BK == 1)).sum())
            columns = [*probabilities_BK.unbind(1), *(logits_BK.unbind(1) if logits else ())]
            numbers = {name: pa.array(column.numpy()) for name, column in zip(names, columns, strict=True)}
            parts.write(pa.table({key: rows[key] for key in keys} | numbers))
        bad = found_bad(reader)
        certain = sum(together("cannot count the probabilities", lambda: certain))
        parts.finish()
        if ranks.is_first:
            warn_of_bad("--data", bad)
            if certain and not logits:
                print(
                    f"warning: {certain:,} probabilities are exactly 0 or 1, as near as numbers come; --logits writes "
                    "what keeps their order",
                    file=sys.stderr,
                )
            counted = {"bad_files": len(bad)} if bad else {}
            print_result({"checkpoint": checkpoint_name, "rows": reader.num_rows, "out": out, **counted})


def _restored(config: Config, ranks: Ranks, checkpoint: str) -> tuple[Build, str]:
    checkpoints = checkpoints_of(config)
    name = choose_checkpoint(checkpoints, checkpoint)
    built = build(config, ranks, cluster_here(ranks, config.plan), total_steps=1)
    restore(built, ranks, checkpoints, name, config)
    return built, name
