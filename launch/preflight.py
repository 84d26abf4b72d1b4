"""What can be known to be wrong before a process group exists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import fsspec

from launch.cli import parser
from launch.config import Config, check_world, load_config
from launch.errors import is_user_error
from pipeline.dataset import ParquetDataset


def check_training(config: Config) -> None:
    """Check that the run's directory can be written, and the footers of its files against its schema.

    Raises:
        ValueError: what was found, what was expected, what to do.
    """
    directory = Path(config.run.directory).absolute()
    standing = next(path for path in (directory, *directory.parents) if path.exists())
    if not (standing.is_dir() and os.access(standing, os.W_OK)):
        found = "a directory that this user may not write" if standing.is_dir() else "not a directory"
        raise ValueError(f"run.directory is {config.run.directory}, but {standing} is {found}; give another")
    ParquetDataset(config.data.train, config.feature_schema)
    for paths in (config.data.evaluate, config.data.test):
        if paths is not None:
            ParquetDataset(paths, config.feature_schema, keys=group_keys(config))


def check_output(out: str) -> None:
    """Refuse to predict into a directory that is there.

    Raises:
        ValueError: it exists.
    """
    filesystem, path = fsspec.core.url_to_fs(out)
    if filesystem.exists(path):
        raise ValueError(f"{out} exists; remove it or give another --out")


def group_keys(config: Config) -> list[str]:
    """The column that evaluation needs besides those of the schema, if any."""
    return [config.metrics.group] if config.metrics.group else []


def check_job(arguments: Sequence[str], world_size: int, *, files_are_here: bool) -> str | None:
    """Check a `rankmixer` command line that some scheduler is about to run; return what is wrong with it, or None.

    Args:
        arguments: of `rankmixer`: train, evaluate or predict and what follows.
        world_size: processes in all.
        files_are_here: the job sees the files of this machine; otherwise only a configuration that is here is checked.
    """
    parsed = parser().parse_args(arguments)
    if not files_are_here and not Path(parsed.config).exists():
        return None
    try:
        config = load_config(parsed.config, parsed.overrides)
        check_world(config, world_size)
        if files_are_here and parsed.name == "train":
            check_training(config)
        elif files_are_here:
            from launch.job import checkpoints_of, choose_checkpoint  # takes seconds: imports TorchRec

            if parsed.name == "predict":
                check_output(parsed.out)
                ParquetDataset(parsed.data, config.feature_schema, keys=parsed.keys, labels=False)
            else:
                ParquetDataset(evaluation_paths(config), config.feature_schema, keys=group_keys(config))
            choose_checkpoint(checkpoints_of(config), parsed.checkpoint)
    except ValueError as error:
        if not is_user_error(error):
            raise
        return f"rankmixer: error: {error}"
    return None


def evaluation_paths(config: Config) -> str | list[str]:
    """The rows that `rankmixer evaluate` reads: data.test, or else data.evaluate.

    Raises:
        ValueError: both are empty.
    """
    paths = config.data.test or config.data.evaluate
    if paths is None:
        raise ValueError("data.test and data.evaluate are both empty; give one, e.g. data.test=FILES")
    return paths
