"""A CSV file as Parquet, with a proposal for its feature schema and configuration."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.atomic import new_directory
from pipeline.column_profile import ColumnProfile, as_type
from pipeline.csv_file import read_blocks
from pipeline.propose import config_text, doubt, left_out, schema_text
from pipeline.split import PARTS, RandomSplit, TimeSplit

LABELS = ("label", "click", "clicked", "is_click", "target")
ROW_GROUP_ROWS = 131_072


def import_csv(
    file: str, out: str, *, labels: Sequence[str] = (), time: str | None = None, delimiter: str | None = None
) -> None:
    """Write all columns of `file` as `out`/train, validation and test, `out`/schema.yaml and `out`/run.yaml.

    The file is read twice, with `time` three times, in blocks: memory does not grow with it. csv_file.py says what
    a CSV may look like.

    Args:
        labels: columns of 0 and 1 (or true and false, yes and no) to predict; default: those named as in LABELS.
        time: column of times: the newest tenth of the rows tests, the tenth before it evaluates. Without it rows are
            drawn at random.
        delimiter: default: the one that the first line has most of.

    Raises:
        ValueError: the file cannot be read (csv_file.py); no label, or one that is not 0 and 1 in every row; no times
            in `time`; too few rows; or `out` exists.
    """
    profiles: dict[str, ColumnProfile] = {}
    for block in read_blocks(file, delimiter):
        profiles = profiles or {name: ColumnProfile(name) for name in block.schema.names}
        for profile, chunk in zip(profiles.values(), block.columns, strict=True):
            profile.update(chunk)
    for name in labels or _recognised(file, profiles):
        _check_label(file, name, profiles)
        profiles[name].is_label = True
    split = RandomSplit() if time is None else _time_split(file, delimiter, _known(file, time, profiles))
    target = pa.schema([(profile.name, profile.type) for profile in profiles.values()])
    with new_directory(out) as folder:
        rows, ones = _write_parts(folder, file, delimiter, target, split)
        rates = {name: count / sum(rows) for name, count in ones.items()}
        columns = list(profiles.values())
        (folder / "schema.yaml").write_text(schema_text(file, columns, rates), encoding="utf-8")
        (folder / "run.yaml").write_text(config_text(file, out, columns, rows), encoding="utf-8")
    print(f"{file}: {sum(rows):,} rows, {len(profiles)} columns")
    print("; ".join(f"label {name}: {rate:.1%} are 1" for name, rate in rates.items()))
    for profile in columns:
        if not profile.is_label and (reason := left_out(profile)) is not None:
            print(f"left out {profile.name}: {reason}")
        if not profile.is_label and (question := doubt(profile)) is not None:
            print(f"kept as text {profile.name}: {question}")
    print(f"{rows[0]:,} rows train, {rows[1]:,} evaluate, {rows[2]:,} test, {_how(split, columns)}")
    print(f"now read {Path(out, 'schema.yaml')}, then: rankmixer train --config {Path(out, 'run.yaml')}")


def import_like(file: str, out: str, like: str, *, delimiter: str | None = None) -> None:
    """Write `file` as `out`/part-00000.parquet, its columns in the types of an earlier import.

    Columns that the earlier file did not have are kept as text.

    Args:
        like: what `out` was then.

    Raises:
        ValueError: the file cannot be read (csv_file.py); a value that the column's type does not have; `like` is no
            import; or `out` exists.
    """
    earlier = Path(like, PARTS[0], "part-00000.parquet")
    if not earlier.is_file():
        raise ValueError(f"{like} is no import of a CSV: {earlier} is missing; give the --out of an earlier one")
    types = {field.name: field.type for field in pq.read_schema(earlier)}
    with new_directory(out) as folder:
        part, number = None, 2
        for block in read_blocks(file, delimiter):
            target = pa.schema([(name, types.get(name, pa.string())) for name in block.schema.names])
            part = part or _Part(folder, target)
            part.add(_typed(file, block, target, number))
            number += len(block)
        assert part is not None
        part.close()
    missing = ", ".join(types.keys() - set(target.names))
    without = f"; without {missing}, which {like} has" if missing else ""
    print(f"{file}: {part.rows:,} rows, {len(target)} columns{without}")


class _Part:
    """A Parquet file, written when a row group is full."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(exist_ok=True)
        self._writer = pq.ParquetWriter(folder / "part-00000.parquet", schema, write_page_checksum=True)
        self._batches: list[pa.RecordBatch] = []
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self.rows += len(batch)
        if sum(map(len, self._batches)) >= ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._batches, self._writer.schema)
        if len(table):
            self._writer.write_table(table, row_group_size=len(table))
        self._batches = []


def _write_parts(
    folder: Path, file: str, delimiter: str | None, target: pa.Schema, split: RandomSplit | TimeSplit
) -> tuple[list[int], dict[str, int]]:
    """How many rows each part has, and how many ones each label."""
    parts = [_Part(folder / name, target) for name in PARTS]
    ones = {field.name: 0 for field in target if field.type == pa.int8()}
    number = 2
    for block in read_blocks(file, delimiter):
        batch = _typed(file, block, target, number)
        number += len(batch)
        for name in ones:
            ones[name] += pc.sum(batch[name]).as_py()
        part_of_N = split.parts(batch)
        for index, part in enumerate(parts):
            part.add(batch.filter(pa.array(part_of_N == index)))
    for part in parts:
        part.close()
    rows = [part.rows for part in parts]
    if not all(rows):
        raise ValueError(f"{file}: {sum(rows)} rows are too few to train, evaluate and test; ten would do")
    return rows, ones


def _typed(file: str, block: pa.RecordBatch, target: pa.Schema, first: int) -> pa.RecordBatch:
    """Strings as what their columns hold; `first` is the number of the first row, the header being 1."""
    arrays = []
    for field, chunk in zip(target, block.columns, strict=True):
        try:
            arrays.append(as_type(chunk, field.type))
        except pa.ArrowInvalid:
            row = next(row for row in range(len(chunk)) if not _has(chunk.slice(row, 1), field.type))
            raise ValueError(
                f"{file}: row {first + row} (the header is row 1, blank lines do not count), column {field.name!r}: "
                f"found {chunk[row].as_py()!r}; expected {_expected(field.type)}, as in the earlier file; mend the "
                "value, or leave it empty"
            ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=target)


def _expected(type_: pa.DataType) -> str:
    if pa.types.is_timestamp(type_):
        return "a time, such as 2024-06-01T13:59:00Z" if type_.tz else "a time, such as 2024-06-01 13:59:00"
    named = {pa.int8(): "0 or 1", pa.int64(): "an integer", pa.float64(): "a number"}
    return named.get(type_, "a date, such as 2024-06-01")


def _has(value: pa.Array, type_: pa.DataType) -> bool:
    try:
        as_type(value, type_)
    except pa.ArrowInvalid:
        return False
    return True


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


def _time_split(file: str, delimiter: str | None, profile: ColumnProfile) -> TimeSplit:
    if not profile.is_time:
        example = f"such as {min(profile.values)[:20]!r}" if profile.values else "all empty"
        raise ValueError(
            f"{file}: column {profile.name!r} holds no times that are understood, {example}; write them as 2024-06-01 "
            "or 2024-06-01 13:59:00, or leave out --time"
        )

    def times() -> Iterator[pa.Array]:
        for block in read_blocks(file, delimiter):
            yield as_type(block[profile.name], profile.type)

    try:
        return TimeSplit(profile.name, profile.unit, times())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _how(split: RandomSplit | TimeSplit, profiles: Sequence[ColumnProfile]) -> str:
    if isinstance(split, TimeSplit):
        return "by time: from {} and {} on".format(*split.boundaries)
    times = [profile.name for profile in profiles if profile.is_time]
    hint = f" (by time with --time {times[0]!r})" if times else ""
    return f"drawn at random{hint}"
