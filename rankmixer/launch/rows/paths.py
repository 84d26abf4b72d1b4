"""Which files a run reads and writes, and whether it can."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankmixer.launch.config.config import Config
from rankmixer.pipeline.base.storage import check_storage, open_storage, reading
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.files import NAME
from rankmixer.pipeline.metrics.groups import check_groupable
from rankmixer.pipeline.metrics.slices import check_sliceable
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.label_check import check_labels


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
    check_checkpoints(config)
    if config.run.warm_start and not checkpoints_of(config).names():
        find_source(config.run.warm_start)
    if config.data.stream is None:
        trained = check_files(config, config.data.train).schema_as_hashed()
        config = config.model_copy(update={"feature_schema": trained})
    else:  # each portion is judged before it is trained on
        check_evaluation(config, config.data.train)
    for paths in (config.data.evaluate, config.data.test):
        if paths is not None:
            check_evaluation(config, paths)


def check_evaluation(config: Config, paths: str | list[str]) -> None:
    """Check the footers of files to evaluate on: against the schema, and whether metrics.group and slices can be had.

    Raises:
        ValueError: file, column, what was found, what was expected, what to do.
    """
    keys = check_files(config, paths, keys=key_columns(config)).keys_schema
    if config.metrics.group is not None:
        check_groupable(keys.field(config.metrics.group).type, config.metrics.group)
    for column in config.metrics.slices:
        check_sliceable(keys.field(column).type, column)


def check_checkpoints(config: Config) -> None:
    """Look whether the storage of `run.checkpoints` serves; there need be no checkpoint yet.

    Raises:
        ValueError: no driver, no bucket, no access, or no answer.
    """
    if config.run.checkpoints:
        check_storage(config.run.checkpoints, "run.checkpoints")


def check_files(
    config: Config, paths: str | list[str], *, keys: Sequence[str] = (), labels: bool = True
) -> ParquetDataset:
    """Open files and check their footers against the schema; with `data.on_bad_file: skip` one that agrees is enough.

    Labels and weights that the footers give away as wrong are refused too.

    Raises:
        ValueError: file, column, what was found, what was expected, what to do.
    """
    dataset = ParquetDataset(paths, config.feature_schema, keys=keys, labels=labels, **opening(config))
    if labels:
        check_labels(dataset)
    return dataset


def opening(config: Config) -> dict[str, Any]:
    """How files are opened, as ParquetDataset takes it."""
    return {
        "on_bad_file": config.data.on_bad_file,
        "read_seconds": config.read_seconds,
        "manifests": manifests_of(config),
    }


def check_place(out: str) -> None:
    """Refuse to write to a storage that does not serve.

    Raises:
        ValueError: no place is named, or the storage refuses, fails or does not answer.
    """
    if not out:
        raise ValueError("--out is empty; give the directory to write")
    check_storage(out, "--out")


def check_output(out: str) -> None:
    """Refuse to write into a directory or over a file that is there, or to a storage that does not serve.

    Raises:
        ValueError: it exists, or the storage refuses, fails or does not answer.
    """
    check_place(out)
    filesystem, path = open_storage(out)
    with reading(out):
        exists = filesystem.exists(path)
    if exists:
        raise ValueError(f"{out} exists; remove it or give another --out")


def key_columns(config: Config) -> list[str]:
    """The columns that evaluation needs besides those of the schema, if any."""
    group = [config.metrics.group] if config.metrics.group else []
    return list(dict.fromkeys([*group, *config.metrics.slices]))


def manifests_of(config: Config) -> str:
    """The directory that keeps what the footers of many files said: data.manifests, or one in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return config.data.manifests or os.path.join(cache, "rankmixer", "manifests")


def evaluation_paths(config: Config) -> str | list[str]:
    """The rows that `rankmixer evaluate` reads: data.test, or else data.evaluate.

    Raises:
        ValueError: both are empty.
    """
    paths = config.data.test or config.data.evaluate
    if paths is None:
        raise ValueError("data.test and data.evaluate are both empty; give one, e.g. data.test=FILES")
    return paths


def checkpoints_of(config: Config) -> Checkpoints:
    """The checkpoints of the run's directory."""
    return Checkpoints(config.run.checkpoints or f"{config.run.directory}/checkpoints", keep=config.run.keep)


def choose_checkpoint(checkpoints: Checkpoints, which: str) -> str:
    """The name behind `best`, `latest` or a name.

    Raises:
        ValueError: there is none.
    """
    names = checkpoints.names()
    name = {"best": checkpoints.best, "latest": checkpoints.latest}.get(which, lambda: which)()
    if name not in names:
        raise ValueError(
            f"{checkpoints.directory}: no checkpoint {which!r}; found {', '.join(names) or 'none'}; train first, "
            "or set run.directory to a run that has one"
        )
    return name


def find_source(path: str) -> tuple[str, str]:
    """The directory of checkpoints and the name that `run.warm_start` stands for: a run's best one, or else its latest.

    Raises:
        ValueError: there is none, or it cannot be told which is the best.
    """
    root, name = posixpath.split(path.rstrip("/"))
    if re.fullmatch(NAME, name):
        names = Checkpoints(root).names()
        if name in names:
            return root, name
        raise ValueError(f"run.warm_start is {path}: found {', '.join(names) or 'no checkpoint'} in {root}; name one")
    for root in (f"{path.rstrip('/')}/checkpoints", path.rstrip("/")):
        name = Checkpoints(root).suggested() or ""
        if name:
            return root, name
    raise ValueError(
        f"run.warm_start is {path}: found no checkpoint there; expected the directory of a run, of its checkpoints, "
        "or of one of them"
    )
