"""`rankmixer evaluate` and `rankmixer predict`: one pass over some rows with the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from launch.bad_files import found_bad, warn_of_bad
from launch.build import Build, build
from launch.config import Config
from launch.distributed import Ranks, check_world_here, cluster_here, process_group
from launch.job import evaluate, outputs, pass_reader
from launch.learnt import with_trained_schema
from launch.output import print_result, show
from launch.parts import ParquetParts
from launch.paths import check_checkpoints, check_output, checkpoints_of, choose_checkpoint, evaluation_paths
from launch.report import metrics_table
from launch.restoring import restore


def evaluate_checkpoint(config: Config, checkpoint: str, *, as_json: bool = False) -> None:
    """Print the metrics of a checkpoint on data.test, or data.evaluate: a table and one JSON line, or that alone."""
    paths = evaluation_paths(config)
    check_checkpoints(config)
    check_world_here(config)
    config = with_trained_schema(config)
    with process_group(config, checkpoint=checkpoint) as ranks:
        built, name = _restored(config, ranks, checkpoint)
        evaluation = evaluate(config, built, ranks, paths)
        if ranks.is_first:
            warn_of_bad("data", evaluation.bad)
            counted = {"bad_files": len(evaluation.bad)} if evaluation.bad else {}
            slices = {key: found for key, found in evaluation.details.items() if key == "slices"}
            result = {"checkpoint": name, **evaluation.metrics, **slices, **counted}
            show(result, metrics_table(name, evaluation.metrics), as_json=as_json, ends_in_json=True)


def predict(config: Config, checkpoint: str, data: str, out: str, keys: Sequence[str]) -> None:
    """Write `keys` and one column TASK_probability per task for every row of `data` into the directory `out`."""
    tasks = config.feature_schema.tasks
    names = [f"{task}_probability" for task in tasks]
    taken = sorted(set(keys) & set(names))
    if taken:
        raise ValueError(f"--keys names {taken}, which are columns of the output; leave them out")
    check_checkpoints(config)
    check_output(out)
    check_world_here(config)
    config = with_trained_schema(config)
    with process_group(config, checkpoint=checkpoint, keys=keys) as ranks:
        reader = pass_reader(config, ranks, data, keys=keys, labels=False)
        built, name = _restored(config, ranks, checkpoint)
        with ParquetParts(out, ranks) as parts:
            for output in outputs(built, ranks, reader):
                key_columns = output.batch.keys
                assert key_columns is not None
                probabilities_BK = output.logits_BK.float().sigmoid().cpu()[: key_columns.num_rows]
                for task_name, column in zip(names, probabilities_BK.unbind(1), strict=True):
                    key_columns = key_columns.append_column(task_name, pa.array(column.numpy()))
                parts.write(key_columns)
        bad = found_bad(reader)
        if ranks.is_first:
            warn_of_bad("--data", bad)
            counted = {"bad_files": len(bad)} if bad else {}
            print_result({"checkpoint": name, "rows": reader.num_rows, "out": out, **counted})


def _restored(config: Config, ranks: Ranks, checkpoint: str) -> tuple[Build, str]:
    checkpoints = checkpoints_of(config)
    name = choose_checkpoint(checkpoints, checkpoint)
    built = build(config, ranks, cluster_here(ranks, config.plan), total_steps=1)
    restore(built, ranks, checkpoints, name, config)
    return built, name
