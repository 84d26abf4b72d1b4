"""The feature schema: one line of YAML per feature says which column it is, how ids are formed and where they go."""

from __future__ import annotations

import difflib
import hashlib
import json
import posixpath
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from rankmixer.pipeline.schema.features import (
    MANAGED_HASHES,
    SEGMENTS,
    Cross,
    Feature,
    Id,
    IdList,
    Ids,
    Label,
    Number,
    Strict,
    Time,
)
from rankmixer.pipeline.schema.vocabulary import read_text

__all__ = [
    "MANAGED_HASHES",
    "SEGMENTS",
    "Cross",
    "Feature",
    "Id",
    "IdList",
    "Ids",
    "Label",
    "Number",
    "Schema",
    "Table",
    "Time",
    "explain",
]


KINDS = "id, id_list, number, time or cross"


@dataclass(frozen=True)
class Table:
    """An embedding table and the features that look it up."""

    name: str
    rows: int
    dim: int
    pooling: Literal["sum", "mean"]
    features: list[str]
    managed: bool = False  # rows are given to ids as they come


class Schema(Strict):
    """Features, tasks and the column of example weights.

    >>> schema = Schema.model_validate({
    ...     "features": {"user": {"kind": "id", "range": 944, "dim": 16},
    ...                  "price": {"kind": "number", "transform": "log1p", "group": "item"},
    ...                  "genres": {"kind": "id_list", "buckets": 64, "dim": 8, "group": "item"}},
    ...     "labels": {"click": {}}})
    >>> schema.sparse_features, schema.dense_features, schema.tasks
    (['user', 'genres'], ['price'], ['click'])
    >>> schema.groups
    {'user': ['user'], 'item': ['price', 'genres']}
    >>> schema.tables["genres"]
    Table(name='genres', rows=64, dim=8, pooling='sum', features=['genres'], managed=False)
    """

    features: dict[str, Feature] = Field(min_length=1, description="One line a feature, by its name.")
    labels: dict[str, Label] = Field(min_length=1, description="One line a task, by its name.")
    weight: str | None = Field(None, description="Column of example weights.")

    @classmethod
    def load(cls, path: str, *, vocabularies_to_be_written: bool = False) -> Schema:
        """Read a YAML file, and the vocabularies that it names unless they are still to be written.

        Raises:
            ValueError: the file is missing or wrong; the message names the file and each key that is wrong.
        """
        try:
            data = yaml.load(read_text(path), _UniqueKeyLoader)
            folder = posixpath.dirname(path if "://" in path else posixpath.abspath(path))
            context = {"folder": folder, "vocabularies_to_be_written": vocabularies_to_be_written}
            return cls.model_validate(data, context=context)
        except ValidationError as error:
            problems = "\n".join(f"{path}: {problem}" for problem in explain(error))
            raise ValueError(problems) from None
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not valid YAML: {error}") from None

    @field_validator("features")
    @classmethod
    def _fill_names(cls, features: dict[str, Any]) -> dict[str, Any]:
        filled = {}
        for name, feature in features.items():
            update = {"group": feature.group or name}
            if not isinstance(feature, Cross):
                update["column"] = feature.column or name
            if isinstance(feature, Ids):
                update["table"] = feature.table or name
            filled[name] = feature.model_copy(update=update)
        return filled

    @field_validator("labels")
    @classmethod
    def _fill_columns(cls, labels: dict[str, Label]) -> dict[str, Label]:
        return {name: label.model_copy(update={"column": label.column or name}) for name, label in labels.items()}

    @model_validator(mode="after")
    def _check_together(self) -> Schema:
        answers = {label.column: f"the label {name!r}" for name, label in self.labels.items()}
        if self.weight in answers:
            raise ValueError(f"weight: column {self.weight!r} is also {answers[self.weight]}")
        for name, feature in self.features.items():
            for column in feature.reads:
                if column in answers:
                    raise ValueError(f"features.{name}: column {column!r} is also {answers[column]}")
            if isinstance(feature, Cross):
                self._check_cross(name, feature)
            if isinstance(feature, Time) and feature.reference == feature.column:
                raise ValueError(f"features.{name}: reference is the feature's own column {feature.column!r}")
        for name in [*self.labels, *(name for table in self.tables.values() for name in (table.name, *table.features))]:
            if not name or "." in name:
                raise ValueError(f"name {name!r} must not be empty or hold a dot; give the column with `column:`")
        return self

    def _check_cross(self, name: str, cross: Cross) -> None:
        if len(set(cross.of)) < len(cross.of):
            raise ValueError(f"features.{name}: of names a feature twice; found {list(cross.of)}")
        for part in cross.of:
            if part not in self.features:
                near = difflib.get_close_matches(part, self.features, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"features.{name}: of names {part!r}, which is no feature; {hint}add it to the schema")
            feature = self.features[part]
            if not isinstance(feature, Id | Time) and not (isinstance(feature, Number) and not feature.is_dense):
                kind = "a number without boundaries" if isinstance(feature, Number) else f"kind: {feature.kind}"
                allowed = "kind: id, kind: time, or a number with boundaries or quantiles"
                raise ValueError(f"features.{name}: of names {part!r}, which is {kind}; expected {allowed}")

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Group -> its features, groups in order of first appearance."""
        groups: dict[str, list[str]] = {}
        for name, feature in self.features.items():
            groups.setdefault(feature.group, []).append(name)
        return groups

    @cached_property
    def sparse_features(self) -> list[str]:
        """Features with a table, in group order: the keys of the KeyedJaggedTensor."""
        return [name for names in self.groups.values() for name in names if name not in self.dense_features]

    @cached_property
    def dense_features(self) -> list[str]:
        """Columns of dense_BF, in group order."""
        names = [name for names in self.groups.values() for name in names]
        return [n for n in names if isinstance(f := self.features[n], Number) and f.is_dense]

    @cached_property
    def tasks(self) -> list[str]:
        return list(self.labels)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Embedding tables by name, in the order of `sparse_features`.

        Raises:
            ValueError: features of one table form ids differently, or differ in dim or pooling.
        """
        sharing: dict[str, list[str]] = {}
        for name in self.sparse_features:
            feature = self.features[name]
            sharing.setdefault(feature.table if isinstance(feature, Ids) else name, []).append(name)
        return {table: self._table(table, names) for table, names in sharing.items()}

    def _table(self, table: str, names: list[str]) -> Table:
        features = [self.features[name] for name in names]
        for name, feature in zip(names, features, strict=True):
            if len(names) > 1 and not isinstance(feature, Ids):
                raise ValueError(f"table {table!r} is that of the {feature.kind} {name!r}; name another `table:`")
        for key in ("vocabulary", "buckets", "range", "managed", "seed", "rows", "dim", "pooling"):
            # Pooling makes no difference to a feature of one id a row.
            having = [name for name in names if hasattr(self.features[name], key)] if len(names) > 1 else []
            values = {name: getattr(self.features[name], key) for name in having}
            if len(set(values.values())) > 1:
                found = ", ".join(f"{name} {value}" for name, value in values.items())
                raise ValueError(f"features of table {table!r} must agree on {key}; found {found}; or name two tables")
        pooled = (feature.pooling for feature in features if isinstance(feature, IdList))
        assert features[0].dim is not None
        is_managed = isinstance(features[0], Ids) and features[0].managed is not None
        return Table(table, features[0].rows, features[0].dim, next(pooled, "sum"), names, is_managed)

    @cached_property
    def is_weighted(self) -> bool:
        """True if any list has weights: then the KeyedJaggedTensor has weights, 1.0 for the other features."""
        return any(isinstance(feature, IdList) and feature.weights is not None for feature in self.features.values())

    def columns(self, labels: bool) -> list[str]:
        """Parquet columns to read; without labels neither labels nor example weights."""
        columns = [feature.column for feature in self.features.values() if not isinstance(feature, Cross)]
        columns += [column for feature in self.features.values() for column in feature.reads]
        if labels:
            columns += [label.column for label in self.labels.values()]
            columns += [self.weight] if self.weight is not None else []
        return list(dict.fromkeys(columns))

    @property
    def to_learn(self) -> dict[str, Number | Time]:
        """The features of which something is still to be learnt from the training rows."""
        return {
            name: feature
            for name, feature in self.features.items()
            if isinstance(feature, Number | Time) and not feature.is_learnt
        }

    def contents(self) -> dict[str, Any]:
        """The schema as JSON, with checksums of the vocabularies, wherever the files lie."""
        tree = self.model_dump(mode="json")
        for name, feature in self.features.items():
            if isinstance(feature, Ids) and feature.values is None:
                del tree["features"][name]["values"]  # as before there was such a key
            if isinstance(feature, Ids) and feature.vocabulary is not None:
                checksum = hashlib.sha256("\n".join(feature.words).encode()).hexdigest()
                tree["features"][name]["vocabulary"] = checksum
        return tree

    def digest(self) -> str:
        """SHA-256 of the schema, of what its vocabularies hold, and of what was learnt."""
        return hashlib.sha256(json.dumps(self.contents(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def explain(error: ValidationError) -> list[str]:
    """One sentence for each thing wrong: the key, what is expected, what was found."""
    sentences = []
    for problem in error.errors(include_url=False):
        loc = [str(part) for part in problem["loc"]]
        if loc[:1] == ["features"] and len(loc) > 2:
            del loc[2]  # pydantic puts the kind there
        key = f"{'.'.join(loc)}: " if loc else ""
        reason = problem.get("ctx", {}).get("error", problem["msg"])
        found = "" if isinstance(problem["input"], dict | list | BaseModel) else f"; found {problem['input']!r}"
        if problem["type"] == "union_tag_invalid":
            reason = f"kind {problem['ctx']['tag']!r} is unknown; expected {KINDS}"
        elif problem["type"] == "union_tag_not_found":
            reason = f"kind is missing; expected {KINDS}"
        sentences.append(f"{key}{reason}{found}")
    return sentences


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
