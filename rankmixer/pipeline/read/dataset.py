"""Parquet files seen through a schema: every file is checked against it before a row is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import pyarrow as pa
from pyarrow import types

from rankmixer.pipeline.base.errors import DataError, data_error
from rankmixer.pipeline.encode.ids import IdEncoder
from rankmixer.pipeline.encode.rows import LOCATION
from rankmixer.pipeline.files.decode import Decoder
from rankmixer.pipeline.files.files import OnBadFile, ParquetFile, ParquetFiles
from rankmixer.pipeline.files.watch import READ_SECONDS
from rankmixer.pipeline.read.column_types import Use, check, element, is_string, uses_of
from rankmixer.pipeline.schema.features import Id, IdList
from rankmixer.pipeline.schema.schema import Schema


class ParquetDataset:
    """Files and the schema they agree with.

    Args:
        files: opened files, or the paths, globs, directories or URLs to open.
        schema: the features, and the labels.
        keys: further columns to hand on as they are, such as a user id for grouped metrics.
        labels: False to predict: neither labels nor example weights are read.
        located: hand on where each row lies (rankmixer.pipeline.encode.rows.LOCATION) instead of keys.
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
        uses = list(uses_of(schema, labels))
        self.uses = Counter([use.column for use in uses] + list(keys))
        """How often each column is needed to make a block."""
        self.files = _agreeing(files, uses, schema.columns(labels=False), keys, self.skips)
        if not self.files.num_rows:
            raise ValueError(_no_rows(self.files))
        self.keys_schema = LOCATION if located else pa.schema([_typed(self.files, name) for name in keys])
        self.encoders = {
            name: self._encoder(name, feature)
            for name, feature in schema.features.items()
            if isinstance(feature, Id | IdList)
        }
        ids = {schema.features[name].reads[0] for name in self.encoders}
        self.decoder = Decoder(list(self.uses), ids, self.files.watch)

    def hashed_values(self, name: str) -> Literal["integers", "strings"] | None:
        """What the columns of a feature hold; None: nulls alone."""
        feature = self.schema.features[name]
        assert isinstance(feature, Id | IdList)
        if types.is_null(element(_typed(self.files, feature.column).type)):
            return None
        return "strings" if self.encoders[name].strings else "integers"

    def schema_as_hashed(self) -> Schema:
        """The schema, which says of each hashed feature whether these files hold integers or strings."""
        hashed = {
            name: feature.model_copy(update={"values": self.hashed_values(name)})
            for name, feature in self.schema.features.items()
            if isinstance(feature, Id | IdList) and feature.hashes and feature.values is None
        }
        features = {**self.schema.features, **hashed}
        return Schema(features=features, labels=self.schema.labels, weight=self.schema.weight)

    def _encoder(self, name: str, feature: Id | IdList) -> IdEncoder:
        type_ = element(_typed(self.files, feature.column).type)
        strings = is_string(type_)
        if types.is_null(type_):
            strings = feature.values == "strings" or (feature.values is None and not isinstance(feature.default, int))
        try:
            return IdEncoder(feature, strings)
        except ValueError as error:
            raise ValueError(f"feature {name!r}: {error}") from None


def _agreeing(
    files: ParquetFiles, uses: Sequence[Use], columns: Sequence[str], keys: Sequence[str], skips: bool
) -> ParquetFiles:
    """The files that agree with the schema and with each other; with `skips` the others are set aside.

    What one file has as integers another must not have as strings: their hashes differ. Keys are of one type. What most
    files have is right.
    """
    fitting: list[ParquetFile] = []
    bad = dict(files.bad)

    def refuse(path: str, error: DataError) -> None:
        if not skips:
            raise error
        bad[path] = str(error)

    checked: dict[int, tuple[object, ...]] = {}  # many files have one schema, which is one object
    for file in files.files:
        if id(file.schema) not in checked:
            try:
                check(file, uses)
                _check_keys(file, keys)
            except DataError as error:
                refuse(file.path, error)
                continue
            checked[id(file.schema)] = _kinds(file, columns, keys)
        fitting.append(file)
    usual = _usual(Counter(checked[id(file.schema)] for file in fitting))
    agreeing: list[ParquetFile] = []
    odd: list[ParquetFile] = []
    for file in fitting:
        (agreeing if _joined(usual, checked[id(file.schema)]) == usual else odd).append(file)
    for file in odd:
        kinds = zip([*columns, *keys], checked[id(file.schema)], usual, strict=True)
        refuse(file.path, _odd(file, agreeing, next(name for name, here, there in kinds if here not in (None, there))))
    return ParquetFiles(agreeing, dict(sorted(bad.items())), files.watch)


def _check_keys(file: ParquetFile, keys: Sequence[str]) -> None:
    for name in keys:
        if file.schema.names.count(name) != 1:
            do = f"The file has: {', '.join(file.schema.names)}."
            raise data_error(file.path, column=name, found="no such column", expected="one", do=do)


def _kinds(file: ParquetFile, columns: Sequence[str], keys: Sequence[str]) -> tuple[object, ...]:
    """What files must have in common; None of a column that says nothing, being null in all rows of the file."""
    ids = [file.schema.field(name).type for name in columns]
    of_keys = [file.schema.field(name).type for name in keys]
    strings = [None if types.is_null(element(type_)) else is_string(element(type_)) for type_ in ids]
    return (*strings, *(None if types.is_null(type_) else type_ for type_ in of_keys))


def _joined(kinds: tuple[object, ...], others: tuple[object, ...]) -> tuple[object, ...] | None:
    """What both have in common, what one leaves open being what the other says; None: nothing."""
    pairs = list(zip(kinds, others, strict=True))
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return None
    return tuple(there if here is None else here for here, there in pairs)


def _usual(counts: Counter[tuple[object, ...]]) -> tuple[object, ...]:
    """What most files have; what those leave open, as the next most have it."""
    usual: tuple[object, ...] = ()
    for kinds, _ in counts.most_common():
        usual = _joined(usual or kinds, kinds) or usual
    return usual


def _typed(files: ParquetFiles, name: str) -> pa.Field:
    """The field of a column in the first file in which it is not null in all rows."""
    fields = (file.schema.field(name) for file in files.files)
    return next((field for field in fields if not types.is_null(element(field.type))), files.schema.field(name))


def _odd(file: ParquetFile, agreeing: Sequence[ParquetFile], column: str) -> DataError:
    """The error for a file that has another type in a column than most files."""
    field = _typed(ParquetFiles(list(agreeing)), column)
    other = next(one for one in agreeing if one.schema.field(column).type == field.type)
    return data_error(
        file.path,
        column=column,
        found=f"type {file.schema.field(column).type}",
        expected=f"{field.type} as in {other.path}",
        do="Write all files with one type.",
    )


def _no_rows(files: ParquetFiles) -> str:
    if files.bad:
        path, reason = next(iter(files.bad.items()))
        return f"{path}: found no file that can be read; {len(files.bad)} were set aside. The first: {reason}"
    paths = ", ".join(file.path for file in files.files[:3])
    return f"{paths}: found {len(files.files)} files without a row; expected at least one row"
