"""What can be known to be wrong before a process group exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankmixer.launch.cli import parser
from rankmixer.launch.config.config import check_world, load_config
from rankmixer.launch.ranks.errors import is_user_error
from rankmixer.launch.rows.learnt import with_trained_schema
from rankmixer.launch.rows.paths import (
    check_checkpoints,
    check_evaluation,
    check_files,
    check_output,
    check_training,
    checkpoints_of,
    choose_checkpoint,
    evaluation_paths,
)


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
            check_checkpoints(config)
            if parsed.name == "predict":
                check_output(parsed.out)
                check_files(config, parsed.data, keys=parsed.keys, labels=False)
            else:
                check_evaluation(config, evaluation_paths(config))
            choose_checkpoint(checkpoints_of(config), parsed.checkpoint)
            with_trained_schema(config)
    except ValueError as error:
        if not is_user_error(error):
            raise
        return f"rankmixer: error: {error}"
    return None


def run_directory(config: str, overrides: Sequence[str]) -> str:
    """run.directory of a job; of one whose configuration is not on this machine the override, or the file's name."""
    if Path(config).exists():
        return load_config(config, overrides).run.directory
    given = [word.partition("=")[2] for word in overrides if word.startswith("run.directory=")]
    return given[-1] if given else Path(config).stem
