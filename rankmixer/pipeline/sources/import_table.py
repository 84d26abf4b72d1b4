"""Rows of a source as training, validation and test Parquet, with a proposed schema, vocabularies and configuration.

What `rankmixer data csv` and `rankmixer data parquet` share: a source gives typed Arrow batches, and nothing here knows
what they were read from. Every part of the proposal is made of the training rows alone, as all that is learnt: what
only a test row has gets no place, and no number is of rows that the model is judged by.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rankmixer.pipeline.base.atomic import new_directory
from rankmixer.pipeline.propose.column_facts import Batches, Column, Unit, column_facts
from rankmixer.pipeline.propose.labels import LABELS, as_labels, choose_labels, found_in, label_field
from rankmixer.pipeline.propose.leaks import tell_the_label
from rankmixer.pipeline.propose.proposed_files import config_text, write_proposal
from rankmixer.pipeline.propose.split import PARTS, RandomSplit, TimeSplit
from rankmixer.pipeline.sources.parquet_part import ParquetPart

BATCH_ROWS = 1 << 16


class Source(Protocol):
    """A table that can be read several times, in batches."""

    @property
    def command(self) -> str:
        """How it is imported, such as data csv."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def schema(self) -> pa.Schema:
        """The columns as `batches` gives them."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Columns that it does not give, and why."""

    @property
    def files(self) -> Sequence[str]:
        """Parquet files that can be trained on as they lie, if it has such."""

    @property
    def hints(self) -> Sequence[str]:
        """What the user should know of how it was read."""

    @property
    def asked(self) -> Collection[str]:
        """Columns of text of which `hints` ask what they are meant as."""

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows of some columns."""


def import_table(
    open_source: Callable[[Path], Source],
    out: str,
    *,
    labels: Sequence[str] = (),
    positive: Sequence[str] = (),
    time: str | None = None,
) -> None:
    """Write all columns as `out`/train, validation and test, and `out`/schema.yaml, run.yaml and vocabulary/.

    Args:
        open_source: called with a folder for temporary files, which is removed in the end.
        labels: columns to predict; default: those of 0 and 1 that are named as in labels.LABELS.
        positive: values of a label that count as 1; with several labels LABEL=VALUE.
        time: column of times: the newest tenth of the rows tests, the tenth before it evaluates. Without it rows are
            drawn at random.

    Raises:
        ValueError: no label, or one that cannot be one in every row; no times in `time`; too few rows; or `out` exists.
    """
    with new_directory(out) as folder, tempfile.TemporaryDirectory(prefix=".rows-", dir=folder) as scratch:
        source = open_source(Path(scratch))
        chosen = _labels(source, labels, positive)
        split = RandomSplit() if time is None else _time_split(source, time)
        fields = [label_field(field, chosen[field.name]) if field.name in chosen else field for field in source.schema]
        rows, ones = _write_parts(source, folder, pa.schema(fields), chosen, split)

        def training(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
            with pq.ParquetFile(folder / PARTS[0] / "part-00000.parquet") as file:
                yield from file.iter_batches(BATCH_ROWS, columns=list(columns))

        columns, notes = _propose(source, out, folder, training, rows, ones, chosen)
    times = [column.name for column in columns if column.is_time]
    how = "drawn at random" + (f" (by time with --time {times[0]!r})" if times else "")
    if isinstance(split, TimeSplit):
        how = "by time: from {} and {} on".format(*split.boundaries)
    _print(source, out, rows, ones, chosen, notes, how)


def propose_only(source: Source, out: str, *, labels: Sequence[str] = ()) -> None:
    """Write `out`/schema.yaml, run.yaml and vocabulary/ for files that train as they lie, all of them; copy no row.

    Raises:
        ValueError: a label is no column of numbers or booleans; and as import_table.
    """
    chosen = _labels(source, labels, ())
    for label in chosen:
        type_ = source.schema.field(label).type
        if not (pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)):
            raise ValueError(f"{source.name}: label {label!r} is {type_}; without --no-split it is written as 0 and 1")
    ones, total = dict.fromkeys(chosen, 0), 0
    for batch in source.batches(list(chosen)):
        total += len(batch)
        for label in chosen:
            ones[label] += pc.sum(as_labels(batch[label])).as_py()
    with new_directory(out) as folder:
        _, notes = _propose(source, out, folder, source.batches, [total], ones, chosen, source.files)
    _print(source, out, [total], ones, chosen, notes, "all of them train; none is kept to evaluate or test")


def _labels(source: Source, labels: Sequence[str], positive: Sequence[str]) -> dict[str, tuple[str, ...]]:
    for label in labels:
        if label in source.left_out:
            raise ValueError(f"{source.name}: column {label!r} cannot be a label: {source.left_out[label]}")
        _known(source, label)
    names = [field.name for field in source.schema if _may_be_label(field.type)]
    found = found_in(source.batches, list(dict.fromkeys(labels)) or [name for name in names if name.lower() in LABELS])
    if not labels and not any(column.is_label for column in found.values()):
        found = found_in(source.batches, names)  # to name the candidates
    return choose_labels(source.name, found, labels, positive)


def _known(source: Source, name: str) -> pa.Field:
    if name not in source.schema.names:
        raise ValueError(f"{source.name} has no column {name!r}; it has {', '.join(source.schema.names)}")
    return source.schema.field(name)


def _may_be_label(type_: pa.DataType) -> bool:
    is_number = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    return is_number or pa.types.is_boolean(type_) or pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _write_parts(
    source: Source,
    folder: Path,
    target: pa.Schema,
    labels: Mapping[str, Sequence[str]],
    split: RandomSplit | TimeSplit,
) -> tuple[list[int], dict[str, int]]:
    """How many rows each part has, and how many ones each label."""
    parts = [ParquetPart(folder / name, target) for name in PARTS]
    ones = dict.fromkeys(labels, 0)
    for batch in source.batches(target.names):
        arrays = [
            as_labels(array, labels[name]) if name in labels else array
            for name, array in zip(target.names, batch.columns, strict=True)
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=target)
        for name in ones:
            ones[name] += pc.sum(batch[name]).as_py() or 0
        part_of_N = split.parts(batch)
        for index, part in enumerate(parts):
            part.add(batch.filter(pa.array(part_of_N == index)))
    for part in parts:
        part.close()
    rows = [part.rows for part in parts]
    if not all(rows):
        raise ValueError(f"{source.name}: {sum(rows)} rows are too few to train, evaluate and test; ten would do")
    return rows, ones


def _propose(
    source: Source,
    out: str,
    folder: Path,
    training: Batches,
    rows: Sequence[int],
    ones: Mapping[str, int],
    labels: Mapping[str, Sequence[str]],
    files: Sequence[str] = (),
) -> tuple[list[Column], list[str]]:
    names = [name for name in source.schema.names if name not in labels]
    with tempfile.TemporaryDirectory(prefix=".counts-", dir=folder) as counts:
        asked = pa.schema([source.schema.field(name) for name in names])
        columns = column_facts(training, asked, Path(counts)) if names else {}
    leaks = tell_the_label(training, columns, list(labels))
    about = (f"rankmixer {source.command}", Path(source.name).name)
    known = {name: (count / sum(rows), labels[name]) for name, count in ones.items()}
    notes = write_proposal(folder, about, columns, known, (source.left_out, leaks), source.asked, (sum(rows), rows[0]))
    (folder / "run.yaml").write_text(config_text(about, out, list(columns.values()), rows, files), encoding="utf-8")
    return list(columns.values()), notes


def _time_split(source: Source, name: str) -> TimeSplit:
    field = _known(source, name)
    is_time = pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)
    unit = None if is_time else _unit(source, field)
    if not is_time and unit is None:
        raise ValueError(
            f"{source.name}: column {name!r} holds no times that are understood, {_example(source, name)}; write them "
            "as 2024-06-01 or 2024-06-01 13:59:00, or leave out --time"
        )
    try:
        return TimeSplit(name, unit, (batch[name] for batch in source.batches([name])))
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None


def _unit(source: Source, field: pa.Field) -> Unit | None:
    """Of a column of integers that count the time since 1970."""
    if not pa.types.is_integer(field.type):
        return None
    column = Column(field.name, field.type)
    for batch in source.batches([field.name]):
        column.moments.add(batch[field.name].drop_null().to_numpy().astype(np.float64))
    return column.unit


def _example(source: Source, name: str) -> str:
    for batch in source.batches([name]):
        if len(values := batch[name].drop_null()):
            return f"such as {str(values[0].as_py())[:20]!r}"
    return "all empty"


def _print(
    source: Source,
    out: str,
    rows: Sequence[int],
    ones: Mapping[str, int],
    labels: Mapping[str, Sequence[str]],
    notes: Sequence[str],
    how: str,
) -> None:
    print(f"{source.name}: {sum(rows):,} rows, {len(source.schema)} columns")
    counted = {name: f" ({', '.join(map(repr, labels[name]))} counted as 1)" if labels[name] else "" for name in ones}
    print("; ".join(f"label {name}: {count / sum(rows):.1%} are 1{counted[name]}" for name, count in ones.items()))
    for note in [*source.hints, *notes]:
        print(note)
    if len(rows) == len(PARTS):
        how = f"{rows[0]:,} rows train, {rows[1]:,} evaluate, {rows[2]:,} test, {how}"
    print(how)
    print(f"now read {Path(out, 'schema.yaml')}, then: rankmixer train --config {Path(out, 'run.yaml')}")
