"""A CSV file as Parquet, with a proposal for its feature schema and configuration."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.atomic import new_directory
from pipeline.column_profile import ColumnProfile
from pipeline.csv_dialect import CsvOptions
from pipeline.csv_source import CsvSource
from pipeline.parquet_part import ParquetPart
from pipeline.propose import config_text, left_out, schema_text
from pipeline.split import PARTS, RandomSplit, TimeSplit

LABELS = ("label", "click", "clicked", "is_click", "target")


def import_csv(
    files: str | Sequence[str],
    out: str,
    *,
    labels: Sequence[str] = (),
    time: str | None = None,
    options: CsvOptions | None = None,
) -> None:
    """Write all columns of CSV files as `out`/train, validation and test, `out`/schema.yaml and `out`/run.yaml.

    The files are read once, into a temporary file inside `out`, in blocks: memory does not grow with them. csv_file.py
    says what a CSV may look like.

    Args:
        files: paths, globs, directories or URLs; several are one table, and have the same header.
        labels: columns of 0 and 1 (or true and false, yes and no) to predict; default: those named as in LABELS.
        time: column of times: the newest tenth of the rows tests, the tenth before it evaluates. Without it rows are
            drawn at random.
        options: how the files are to be read, where it cannot be found out.

    Raises:
        ValueError: the files cannot be read (csv_file.py); no label, or one that is not 0 and 1 in every row; no times
            in `time`; too few rows; or `out` exists.
    """
    with new_directory(out) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = CsvSource(files, Path(scratch), options)
        file, profiles = source.name, source.profiles
        if len(profiles) == 1:
            raise ValueError(
                f"{file}: found one column, {next(iter(profiles))[:60]!r}; which character separates the values? Say "
                "--delimiter"
            )
        for name in labels or _recognised(file, profiles):
            _check_label(file, name, profiles)
            profiles[name].is_label = True
        split = RandomSplit() if time is None else _time_split(source, _known(file, time, profiles))
        rows, ones = _write_parts(folder, source, split)
        if sum(rows) != source.rows:
            raise ValueError(
                f"{file}: {source.rows:,} rows were read and {sum(rows):,} written; this is a fault of ours"
            )
        rates = {name: count / sum(rows) for name, count in ones.items()}
        columns = list(profiles.values())
        (folder / "schema.yaml").write_text(schema_text(file, columns, rates), encoding="utf-8")
        (folder / "run.yaml").write_text(config_text(file, out, columns, rows), encoding="utf-8")
        told = source.report()
    print(f"{file}: {sum(rows):,} rows, {len(profiles)} columns")
    print(*told, sep="\n")
    print("; ".join(f"label {name}: {rate:.1%} are 1" for name, rate in rates.items()))
    for profile in columns:
        if not profile.is_label and (reason := left_out(profile)) is not None:
            print(f"left out {profile.name}: {reason}")
    print(f"{rows[0]:,} rows train, {rows[1]:,} evaluate, {rows[2]:,} test, {_how(split, columns)}")
    print(f"now read {Path(out, 'schema.yaml')}, then: rankmixer train --config {Path(out, 'run.yaml')}")


def _write_parts(folder: Path, source: CsvSource, split: RandomSplit | TimeSplit) -> tuple[list[int], dict[str, int]]:
    """How many rows each part has, and how many ones each label."""
    parts = [ParquetPart(folder / name, source.schema) for name in PARTS]
    ones = {field.name: 0 for field in source.schema if field.type == pa.int8()}
    for batch in source.batches():
        for name in ones:
            ones[name] += pc.sum(batch[name]).as_py()
        part_of_N = split.parts(batch)
        for index, part in enumerate(parts):
            part.add(batch.filter(pa.array(part_of_N == index)))
    for part in parts:
        part.close()
    rows = [part.rows for part in parts]
    if not all(rows):
        raise ValueError(f"{source.name}: {sum(rows)} rows are too few to train, evaluate and test; ten would do")
    return rows, ones


def _known(file: str, name: str, profiles: dict[str, ColumnProfile]) -> ColumnProfile:
    if name not in profiles:
        raise ValueError(f"{file} has no column {name!r}; it has {', '.join(profiles)}")
    return profiles[name]


def _recognised(file: str, profiles: dict[str, ColumnProfile]) -> list[str]:
    """The columns that are named as labels are and hold what labels do."""
    truths = [name for name, profile in profiles.items() if profile.truths == {0, 1} and not profile.nulls]
    labels = [name for name in truths if name.lower() in LABELS]
    if not labels:
        candidates = f"these hold 0 and 1: {', '.join(truths)}" if truths else "no column holds 0 and 1 alone"
        raise ValueError(f"{file}: which column is to be predicted? Name it with --label; {candidates}")
    return labels


def _check_label(file: str, name: str, profiles: dict[str, ColumnProfile]) -> None:
    profile = _known(file, name, profiles)
    where = f"{file}: column {name!r}"
    if profile.truths is None:
        if profile.is_number:
            found = f"numbers from {profile.least:g} to {profile.most:g}"
        else:
            found = f"values such as {min(profile.values)[:20]!r}"
        raise ValueError(
            f"{where} holds {found}; a label is 0 or 1, true or false, yes or no; make such a column of it, for "
            "example: is the rating 4 or more?"
        )
    if profile.nulls:
        raise ValueError(f"{where} is empty in {profile.nulls:,} rows; a label has a value in each; delete those rows")
    if profile.truths != {0, 1}:
        raise ValueError(f"{where} is {next(iter(profile.truths))} in every row; a label to learn has both 0 and 1")


def _time_split(source: CsvSource, profile: ColumnProfile) -> TimeSplit:
    if not profile.is_time:
        example = f"such as {min(profile.values)[:20]!r}" if profile.values else "all empty"
        raise ValueError(
            f"{source.name}: column {profile.name!r} holds no times that are understood, {example}; write them as "
            "2024-06-01 or 2024-06-01 13:59:00, say how they are written with --time-format, or leave out --time"
        )
    try:
        return TimeSplit(profile.name, profile.unit, (batch[0] for batch in source.batches([profile.name])))
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None


def _how(split: RandomSplit | TimeSplit, profiles: Sequence[ColumnProfile]) -> str:
    if isinstance(split, TimeSplit):
        return "by time: from {} and {} on".format(*split.boundaries)
    times = [profile.name for profile in profiles if profile.is_time]
    hint = f" (by time with --time {times[0]!r})" if times else ""
    return f"drawn at random{hint}"
