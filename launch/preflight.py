"""What can be known to be wrong before a process group exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.config import Config, check_world, load_config
from launch.errors import is_user_error
from pipeline.dataset import ParquetDataset


def check_data(config: Config) -> None:
    """Check the footers of a training run's files against its schema.

    Raises:
        ValueError: what was found, what was expected, what to do.
    """
    keys = [config.metrics.group] if config.metrics.group else []
    ParquetDataset(config.data.train, config.feature_schema)
    for paths in (config.data.evaluate, config.data.test):
        if paths is not None:
            ParquetDataset(paths, config.feature_schema, keys=keys)


def check_job(
    command: str, config_path: str, overrides: Sequence[str], world_size: int, *, files_are_here: bool
) -> str | None:
    """Check a job that some scheduler is about to start; return what is wrong with it, or None.

    Args:
        command: train, evaluate or predict.
        config_path: configuration file, as the job sees it.
        overrides: section.key=value.
        world_size: processes in all.
        files_are_here: the job will see this machine's files; otherwise only what is here is checked.
    """
    if not files_are_here and not Path(config_path).exists():
        return None
    try:
        config = load_config(config_path, overrides)
        check_world(config, world_size)
        if files_are_here and command == "train":
            check_data(config)
    except ValueError as error:
        if not is_user_error(error):
            raise
        return f"rankmixer: error: {error}"
    return None
