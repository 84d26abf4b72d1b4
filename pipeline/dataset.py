"""Parquet files seen through a schema: every file is checked against it before a row is read."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
from pyarrow import types

from pipeline.decode import Decoder
from pipeline.errors import DataError, data_error
from pipeline.features import Cross, Id, IdList, Number, Time
from pipeline.files import OnBadFile, ParquetFile, ParquetFiles
from pipeline.ids import IdEncoder
from pipeline.rows import LOCATION
from pipeline.schema import Schema
from pipeline.watch import READ_SECONDS


class ParquetDataset:
    """Files and the schema they agree with.

    Args:
        files: opened files, or the paths, globs, directories or URLs to open.
        schema: the features, and the labels.
        keys: further columns to hand on as they are, such as a user id for grouped metrics.
        labels: False to predict: neither labels nor example weights are read.
        located: hand on where each row lies (pipeline.rows.LOCATION) instead of keys.
        on_bad_file: `skip` sets files aside that cannot be opened or do not agree with the schema, into `files.bad`,
            and lets row groups that cannot be decoded later count for nothing.
        set_aside: files that are not even looked at, and why; of paths that are opened here.
        read_seconds: limit on one read; of paths that are opened here.
        manifests: directory that keeps what the footers of many files said; for paths that are opened here.

    Raises:
        ValueError: no rows, or a key column that the files do not have.
        DataError: a column is missing or has the wrong type; only footers are read to find out.
    """

    def __init__(
        self,
        files: ParquetFiles | str | Sequence[str],
        schema: Schema,
        *,
        keys: Sequence[str] = (),
        labels: bool = True,
        located: bool = False,
        on_bad_file: OnBadFile = "fail",
        set_aside: Mapping[str, str] | None = None,
        read_seconds: float = READ_SECONDS,
        manifests: str | None = None,
    ) -> None:
        if not isinstance(files, ParquetFiles):
            files = ParquetFiles.open(
                files,
                on_bad_file=on_bad_file,
                set_aside=set_aside,
                read_seconds=read_seconds,
                manifests=manifests,
            )
        self.schema = schema
        self.labels = labels
        self.located = located
        self.skips = on_bad_file == "skip"
        uses = list(_uses(schema, labels))
        self.uses = Counter([use.column for use in uses] + list(keys))
        """How often each column is needed to make a block."""
        self.files = _agreeing(files, uses, schema.columns(labels=False), keys, self.skips)
        if not self.files.num_rows:
            raise ValueError(_no_rows(self.files))
        self.keys_schema = LOCATION if located else pa.schema([self.files.schema.field(name) for name in keys])
        self.encoders = {
            name: self._encoder(name, feature)
            for name, feature in schema.features.items()
            if isinstance(feature, Id | IdList)
        }
        ids = {schema.features[name].reads[0] for name in self.encoders}
        self.decoder = Decoder(list(self.uses), ids, self.files.watch)

    def _encoder(self, name: str, feature: Id | IdList) -> IdEncoder:
        strings = _is_string(_element(self.files.schema.field(feature.column).type))
        try:
            return IdEncoder(feature, strings)
        except ValueError as error:
            raise ValueError(f"feature {name!r}: {error}") from None


class _Use(NamedTuple):
    """What a column is for, and what it must be for that."""

    column: str
    purpose: str
    accepts: Callable[[pa.DataType], bool]
    expected: str
    do: str


def _uses(schema: Schema, labels: bool) -> Iterator[_Use]:
    for name, feature in schema.features.items():
        if isinstance(feature, Number):
            yield _Use(feature.column, f"feature {name!r}", _is_number, "numbers", "For ids or strings use `kind: id`.")
        elif isinstance(feature, Time):
            yield from _time_uses(name, feature)
        elif isinstance(feature, Cross):
            pass  # made of features, not of columns
        elif isinstance(feature, Id):
            if feature.range is not None:
                do = "Use `buckets` or `vocabulary` for strings, and `kind: id_list` for lists."
                yield _Use(feature.column, f"feature {name!r}", _is_integer, "integers, because of `range`", do)
            else:
                do = "Use `kind: id_list` for lists, and `kind: number` with `boundaries` for numbers."
                yield _Use(feature.column, f"feature {name!r}", _is_id, "integers or strings", do)
        else:
            yield _list_use(name, feature)
            if feature.weights is not None:
                do = "Write one number for each id, or remove `weights`."
                yield _Use(feature.weights, f"weights of feature {name!r}", _is_number_list, "lists of numbers", do)
    for name, label in schema.labels.items() if labels else ():
        yield _Use(label.column, f"label {name!r}", _is_number, "numbers from 0 to 1", "Convert the column.")
    if labels and schema.weight is not None:
        yield _Use(schema.weight, "example weights", _is_number, "numbers", "Convert the column, or remove `weight`.")


def _time_uses(name: str, feature: Time) -> Iterator[_Use]:
    for column in feature.reads:
        purpose = f"{'reference of ' if column == feature.reference else ''}feature {name!r}"
        if feature.unit is not None:
            yield _Use(
                column, purpose, types.is_integer, "integers, because of `unit`", "Remove `unit` for timestamps."
            )
        else:
            do = "Give the `unit` (s, ms, us or ns) of integers since 1970; convert text."
            yield _Use(column, purpose, _is_time, "timestamps or dates", do)


def _list_use(name: str, feature: IdList) -> _Use:
    if feature.separator is not None:
        do = "Remove `separator` for a list column, and use `kind: id` for one id a row."
        return _Use(feature.column, f"feature {name!r}", _is_string, "strings, because of `separator`", do)
    do = "Use `kind: id` for one id a row, and give a `separator` for strings that hold lists."
    if feature.range is not None:
        return _Use(feature.column, f"feature {name!r}", _is_integer_list, "lists of integers, because of `range`", do)
    return _Use(feature.column, f"feature {name!r}", _is_id_list, "lists of integers or strings", do)


def _check(file: ParquetFile, uses: Sequence[_Use]) -> None:
    for use in uses:
        count = file.schema.names.count(use.column)
        if count != 1:
            near = difflib.get_close_matches(use.column, file.schema.names, n=1)
            do = f"Did you mean {near[0]!r}? " if near and not count else ""
            raise data_error(
                file.path,
                column=use.column,
                found=f"{count} columns of that name" if count else "no such column",
                expected=f"one, for {use.purpose}",
                do=f"{do}The file has: {', '.join(file.schema.names)}.",
            )
        found = file.schema.field(use.column).type
        if not use.accepts(found):
            raise data_error(
                file.path,
                column=use.column,
                found=f"type {found}",
                expected=f"{use.expected}, for {use.purpose}",
                do=use.do,
            )


def _agreeing(
    files: ParquetFiles, uses: Sequence[_Use], columns: Sequence[str], keys: Sequence[str], skips: bool
) -> ParquetFiles:
    """The files that agree with the schema and with each other; with `skips` the others are set aside.

    What one file has as integers another must not have as strings: their hashes differ. Keys are of one type. What most
    files have is right.
    """
    kept: dict[tuple[object, ...], list[ParquetFile]] = {}
    bad = dict(files.bad)

    def refuse(path: str, error: DataError) -> None:
        if not skips:
            raise error
        bad[path] = str(error)

    checked: dict[int, tuple[object, ...]] = {}  # many files have one schema, which is one object
    for file in files.files:
        if id(file.schema) not in checked:
            try:
                _check(file, uses)
                _check_keys(file, keys)
            except DataError as error:
                refuse(file.path, error)
                continue
            checked[id(file.schema)] = _kinds(file, columns, keys)
        kept.setdefault(checked[id(file.schema)], []).append(file)
    agreeing = max(kept.values(), key=len, default=[])
    for odd in (file for some in kept.values() if some is not agreeing for file in some):
        refuse(odd.path, _odd(odd, agreeing[0], columns, keys))
    return ParquetFiles(agreeing, dict(sorted(bad.items())), files.watch)


def _check_keys(file: ParquetFile, keys: Sequence[str]) -> None:
    for name in keys:
        if file.schema.names.count(name) != 1:
            do = f"The file has: {', '.join(file.schema.names)}."
            raise data_error(file.path, column=name, found="no such column", expected="one", do=do)


def _kinds(file: ParquetFile, columns: Sequence[str], keys: Sequence[str]) -> tuple[object, ...]:
    """What files must have in common."""
    types_ = [_is_string(_element(file.schema.field(name).type)) for name in columns]
    return (*types_, *(file.schema.field(name).type for name in keys))


def _odd(file: ParquetFile, other: ParquetFile, columns: Sequence[str], keys: Sequence[str]) -> DataError:
    """The error for a file that has another type in some column than most files."""
    differing = zip([*columns, *keys], _kinds(file, columns, keys), _kinds(other, columns, keys), strict=True)
    name = next(name for name, here, there in differing if here != there)
    found, expected = file.schema.field(name).type, other.schema.field(name).type
    return data_error(
        file.path,
        column=name,
        found=f"type {found}",
        expected=f"{expected} as in {other.path}",
        do="Write all files with one type.",
    )


def _no_rows(files: ParquetFiles) -> str:
    if files.bad:
        path, reason = next(iter(files.bad.items()))
        return f"{path}: found no file that can be read; {len(files.bad)} were set aside. The first: {reason}"
    paths = ", ".join(file.path for file in files.files[:3])
    return f"{paths}: found {len(files.files)} files without a row; expected at least one row"


def _element(type_: pa.DataType) -> pa.DataType:
    """What a list holds, or a dictionary encodes."""
    while _is_list(type_) or types.is_dictionary(type_):
        type_ = type_.value_type
    return type_


def _is_list(type_: pa.DataType) -> bool:
    return types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)


def _value(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if types.is_dictionary(type_) else type_


def _is_integer(type_: pa.DataType) -> bool:
    return types.is_integer(_value(type_)) or types.is_boolean(type_)


def _is_string(type_: pa.DataType) -> bool:
    value = _value(type_)
    return types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)


def _is_id(type_: pa.DataType) -> bool:
    return _is_integer(type_) or _is_string(type_)


def _is_integer_list(type_: pa.DataType) -> bool:
    return _is_list(type_) and _is_integer(type_.value_type)


def _is_id_list(type_: pa.DataType) -> bool:
    return _is_list(type_) and _is_id(type_.value_type)


def _is_number(type_: pa.DataType) -> bool:
    return types.is_integer(type_) or types.is_floating(type_) or types.is_boolean(type_) or types.is_decimal(type_)


def _is_time(type_: pa.DataType) -> bool:
    return types.is_timestamp(type_) or types.is_date(type_)


def _is_number_list(type_: pa.DataType) -> bool:
    return _is_list(type_) and _is_number(type_.value_type)
