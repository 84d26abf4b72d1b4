"""`rankmixer data profile`: what the data hold, as tables and as JSON."""

from __future__ import annotations

import json
import posixpath
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.progress import Progress

from rankmixer.launch.commands.profile_findings import Json, findings
from rankmixer.launch.commands.profile_tables import tables
from rankmixer.launch.report.output import show
from rankmixer.launch.rows.paths import check_output
from rankmixer.pipeline.base.storage import open_storage, write_whole, writing
from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.profile.data_profile import DataProfile
from rankmixer.pipeline.profile.drift import drift
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.schema.schema import Schema

VERSION = 1  # of the JSON: raised when a key changes its meaning or goes


def show_profile(
    paths: Sequence[str], schema: Schema, against: Sequence[str] = (), out: str | None = None, *, as_json: bool = False
) -> None:
    """Read the files, print what they hold, and write it to `out` as JSON.

    Args:
        paths: of the Parquet files.
        schema: how they are read.
        against: paths of other files; with them the drift from `paths` to these is shown too.
        out: path or fsspec URL of a file that must not exist.
        as_json: print what would be written to `out` instead, on one line.

    Raises:
        ValueError: a path without files, columns that do not fit, a row group that cannot be read, or `out` exists or
            cannot be written.
    """
    if out is not None:
        check_output(out)
        _make_folder(out)
    profile = DataProfile(ParquetFiles.open(paths), schema)
    other = DataProfile(ParquetFiles.open(against), schema) if against else None
    if other is not None:
        # What the ones have as integers the others must not have as strings.
        ParquetDataset(ParquetFiles([*profile.files.files, *other.files.files]), schema)
        _read(other, None)  # first: while the files of `paths` are read, one looks out for its ids
    _read(profile, other)
    found = {
        "version": VERSION,
        "profile": profile.to_json(),
        "against": None if other is None else other.to_json(),
        "drift": None if other is None else drift(profile, other),
    }
    show(found, *_views(found), as_json=as_json)
    if out is not None:
        _write(out, json.dumps(found, indent=1, allow_nan=False) + "\n")


def _read(profile: DataProfile, other: DataProfile | None) -> None:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{profile.files.files[0].path} ...", total=profile.rows)
        profile.read(other, lambda rows: progress.update(task, completed=rows))


def _make_folder(out: str) -> None:
    filesystem, path = open_storage(out)
    try:
        with writing(filesystem, out):
            filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error}; give another --out") from None


def _write(out: str, text: str) -> None:
    """The file appears whole or not at all."""
    filesystem, path = open_storage(out)
    with writing(filesystem, out):
        write_whole(filesystem, path, text.encode())


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _views(found: Json) -> Iterator[RenderableType]:
    profile = found["profile"]
    files, groups = _several(profile["files"], "file"), _several(profile["row_groups"], "row group")
    yield f"{profile['rows']:,} rows in {files}, {groups}"
    yield from tables(found)
    if any(ids["distinct_error"] for ids in profile["ids"].values()):
        limit = profile["exact_up_to"]
        yield f"~ estimated, because there are more than {limit:,} ids; the JSON has the error"
    for sentence in findings(found):
        yield f"- {sentence}"
