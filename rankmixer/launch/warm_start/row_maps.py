"""Which rows of one model's tensors stand for the same things in another's: ids, buckets, pieces of tokens, tasks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankmixer.pipeline.schema.features import Cross, Ids, Number, Time
from rankmixer.pipeline.schema.schema import Schema, Table
from rankmixer_head import RankMixerConfig

Piece = list[tuple[str, int]]  # columns of the input, each by its feature and its place there


@dataclass(frozen=True)
class Rows:
    """For each row of a tensor the row of another model's tensor that is the same thing, -1: there is none."""

    row_N: Tensor
    how: str

    @property
    def found(self) -> int:
        """How many rows are in both."""
        return int((self.row_N >= 0).sum())


def table_rows(here: Schema, there: Schema, name: str) -> Rows | str:
    """The rows of the other schema's table of this name; or why there are none."""
    new, old = here.tables[name], there.tables.get(name)
    if old is None:
        return "not in the checkpoint"
    if new.dim != old.dim:
        return f"dim {old.dim} there, {new.dim} here"
    hashed, hashed_there = (_hashed_values(*pair) for pair in ((here, new), (there, old)))
    if None not in (hashed, hashed_there) and hashed != hashed_there:
        return f"{hashed_there} are hashed there, {hashed} here; other ids share a row"
    now, then = _formed(here, new), _formed(there, old)
    if now == then and new.rows == old.rows:
        return Rows(torch.arange(new.rows), "taken")
    if now[0] != then[0]:
        return f"ids are formed by {then[0]} there, by {now[0]} here"
    if now[0] == "range":
        row_N = torch.full((new.rows,), -1)
        common = min(now[1], then[1])
        row_N[:common] = torch.arange(common)
        return Rows(_with_reserved(row_N, now, then, old), "resized")
    if now[0] == "vocabulary":
        if not then[1]:
            return (
                "the words of the other vocabulary are not known: the folder schema beside its checkpoints is missing"
            )
        lines = {word: line for line, word in enumerate(then[1])}
        row_N = torch.tensor([lines.get(word, -1) for word in now[1]] + [-1] * (new.rows - len(now[1])))
        return Rows(_with_reserved(row_N, now, then, old), "mapped")
    if now[0] in ("boundaries", "age"):
        row_N = torch.from_numpy(np.searchsorted(then[1], _middles(now[1]), side="right"))
        return Rows(row_N, "mapped")
    return f"{now[0]}: {_described(then)} there, {_described(now)} here; other ids share a row"


def _with_reserved(row_N: Tensor, now: tuple[Any, ...], then: tuple[Any, ...], old: Table) -> Tensor:
    """The reserved row, of values without an id, is the last."""
    if now[2] and then[2]:
        row_N[-1] = old.rows - 1
    return row_N


def _hashed_values(schema: Schema, table: Table) -> str | None:
    """Whether integers or strings are hashed, as far as the schema says."""
    feature = schema.features[table.features[0]]
    return feature.values if isinstance(feature, Ids) else None


def _formed(schema: Schema, table: Table) -> tuple[Any, ...]:
    """How the ids of a table are formed; equal where each id means the same."""
    return _formed_by(schema, table.features[0])


def _formed_by(schema: Schema, name: str) -> tuple[Any, ...]:
    feature = schema.features[name]
    if isinstance(feature, Ids):
        has_reserved = feature.hashes is None and feature.bad_policy == "reserve"
        if feature.vocabulary is not None:
            return "vocabulary", feature.words, has_reserved
        if feature.range is not None:
            return "range", feature.range, has_reserved
        way = "buckets" if feature.managed is None else "managed"
        return way, feature.buckets or feature.managed, feature.seed
    if isinstance(feature, Cross):
        return "cross", feature.buckets, feature.seed, tuple(_formed_by(schema, part) for part in feature.of)
    if isinstance(feature, Time) and feature.part != "age":
        return feature.part, feature.timezone
    assert isinstance(feature, Number | Time)
    return "age" if isinstance(feature, Time) else "boundaries", feature.boundaries


def _described(formed: tuple[Any, ...]) -> str:
    return ", seed ".join(map(str, formed[1:3])) if formed[0] in ("buckets", "managed") else str(formed[1:])


def _middles(boundaries: tuple[float, ...]) -> np.ndarray:
    """A value inside each bucket.

    >>> _middles((1.0, 3.0))
    array([-inf,   2.,  inf])
    """
    return np.array([-np.inf, *((low + high) / 2 for low, high in pairwise(boundaries)), np.inf])


def token_pieces(config: RankMixerConfig, schema: Schema) -> list[Piece]:
    """The columns of the input that each token is made from; none for a global token. As rankmixer_head.Tokenizer."""
    dims = {feature: table.dim for table in schema.tables.values() for feature in table.features}
    groups = [
        [(name, column) for name in names for column in range(dims.get(name, 1))] for names in schema.groups.values()
    ]
    columns = [column for group in groups for column in group]
    tokens = config.tokens - config.global_token
    if config.tokenizer == "slices":
        width = -(-len(columns) // tokens)
        groups = [columns[start : start + width] for start in accumulate([0] + [width] * (tokens - 1))]
    return [[]] * config.global_token + groups


def token_rows(here: list[Piece], there: list[Piece], rows: int, rows_there: int) -> Rows:
    """The rows of `tokens_ID`, `rows` for each token: those of tokens that are made from the same columns.

    >>> a, b, c = ("a", 0), ("b", 0), ("c", 0)
    >>> token_rows([[a, b], [c]], [[a], [c]], rows=2, rows_there=1)
    Rows(row_N=tensor([-1, -1,  1, -1]), how='mapped')
    """
    if here == there:
        return Rows(torch.arange(len(here) * rows), "taken")
    row_N = torch.full((len(here) * rows,), -1)
    for token, (new, old) in enumerate(zip(here, there, strict=False)):
        if new == old:
            row_N[token * rows : token * rows + len(new)] = torch.arange(len(new)) + token * rows_there
    return Rows(row_N, "mapped")


def rows_by_name(here: list[Any], there: list[Any]) -> Rows:
    """Rows that have names, such as tasks.

    >>> rows_by_name(["like", "click"], ["click"])
    Rows(row_N=tensor([-1,  0]), how='mapped')
    """
    places = {name: row for row, name in enumerate(there)}
    return Rows(torch.tensor([places.get(name, -1) for name in here]), "taken" if here == there else "mapped")
