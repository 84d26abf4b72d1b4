"""What can be known to be wrong before a process group exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.cli import parser
from launch.config import Config, check_world, load_config
from launch.errors import is_user_error
from pipeline.dataset import ParquetDataset


def check_data(config: Config) -> None:
    """Check the footers of a training run's files against its schema.

    Raises:
        ValueError: what was found, what was expected, what to do.
    """
    ParquetDataset(config.data.train, config.feature_schema)
    for paths in (config.data.evaluate, config.data.test):
        if paths is not None:
            ParquetDataset(paths, config.feature_schema, keys=group_keys(config))


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
            check_data(config)
        elif files_are_here and parsed.name == "predict":
            ParquetDataset(parsed.data, config.feature_schema, keys=parsed.keys, labels=False)
        elif files_are_here:
            ParquetDataset(evaluation_paths(config), config.feature_schema, keys=group_keys(config))
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
