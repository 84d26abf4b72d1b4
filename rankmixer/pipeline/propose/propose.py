"""Lines of a feature schema, and vocabularies, for the columns of training rows: for a person to read and edit."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from torch import nn

from rankmixer.pipeline.propose.column_facts import KEEP, Column
from rankmixer.pipeline.propose.hash_check import choose_hash
from rankmixer.pipeline.propose.integer_meaning import meaning, thins_out
from rankmixer.pipeline.propose.labels import Found, looks_like_an_outcome, text_of
from rankmixer.pipeline.schema.table_size import suggest_dim

MAX_RANGE = 1_000_000
# Up to so many values a column has a vocabulary: a file that a person can read and every process loads at once, with a
# row for each value. Hashed, so many would need some twenty rows a value for one lookup in twenty to collide.
VOCABULARY = 10_000
MANY = 200  # from so many rows on a column that hardly repeats a value is told apart
QUANTILES = 32
LARGEST = 1e30  # beyond, squares of numbers and float32 overflow
DECIMAL_COMMA = re.compile(r"-?[0-9]+(,[0-9]+)?")
GROUPED = re.compile(r"-?[0-9]{1,3}(,[0-9]{3})*")
OTHER_DATE = re.compile(r"[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}\b")
# Columns that are likely to say whose row it is: AUC within each of them is what a ranking is for.
GROUP = re.compile(r"(user|visitor|customer|client|member|session)([ _]?id)?", re.IGNORECASE)


@dataclass
class Proposal:
    """Lines of `features:`; vocabularies, by their path beside the schema; and what there is to say."""

    lines: list[str] = field(default_factory=list)
    vocabularies: dict[str, pa.Array] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Proposer:
    """Makes the lines of a schema, each under a name that no other has and that YAML, TorchRec and the schema take."""

    def __init__(self) -> None:
        self.made = Proposal()
        self._taken: set[str] = set()

    def name(self, name: str) -> str:
        """The feature's name for a column or label."""
        name = re.sub(r"\W", "_", name)
        # TorchRec keeps tables in a ModuleDict, which has attributes of its own.
        while name in self._taken or hasattr(nn.ModuleDict, name) or name == "training":
            name += "_"
        self._taken.add(name)
        return name

    def add(self, column: Column, told: str | None = None, *, is_asked: bool = False) -> None:
        """The lines that a column suggests; a comment where it can teach nothing, or has the name of an answer.

        Args:
            told: the label that it tells in every training row.
            is_asked: whether the user was asked already what its text is meant as.
        """
        reason = left_out(column)
        if reason is None and _is_named_outcome(column):
            reason = "named like something that is known only afterwards; if it is known before"
            line = self._line(self.name(column.name), column.name, {"kind": "id", **self._ids(column, None)}, "")
            self.leave_out(column.name, reason, line.split("  # ")[0].strip())
            return
        if reason is not None:
            self.leave_out(column.name, reason)
        elif column.is_time:
            self._add_time(column)
        elif column.is_float:
            self._add_number(column, column.name)
        elif column.is_integer:
            self._add_integers(column)
        else:
            self._add_ids(column)
        if reason is None and told is not None:
            self.made.notes.append(f"is {column.name} known before {told} is? It tells {told} in every training row")
        elif reason is None and looks_like_an_outcome(column.name):
            self.made.notes.append(
                f"is {column.name} known before the label is? By its name it may be known only afterwards"
            )
        if reason is None and not is_asked and (question := doubt(column)) is not None:
            self.made.notes.append(f"kept as text {column.name}: {question}")

    def leave_out(self, name: str, reason: str, line: str = "") -> None:
        """A comment in place of a feature; `line` would make it one."""
        quoted = json.dumps(name, ensure_ascii=False)
        self.made.lines.append(f"  # {quoted}: {reason}{', write: ' if line else ''}{line}")
        offered = ", schema.yaml has the line" if line else ""
        self.made.notes.append(f"left out {name}: {reason}{offered}")

    def _line(self, name: str, column: str, keys: Mapping[str, object], comment: str) -> str:
        keys = keys if name == column else {"column": column, **keys}
        flow = ", ".join(f"{key}: {_scalar(value)}" for key, value in keys.items())
        return f"  {_scalar(name)}: {{{flow}}}  # {comment}"

    def _add(self, name: str, column: str, keys: Mapping[str, object], comment: str) -> None:
        self.made.lines.append(self._line(name, column, keys, comment))

    def add_label(self, label: str, rate: float, positive: Sequence[str]) -> str:
        """The line of a label; `rate` is the share of ones."""
        counts = f"; {', '.join(map(_shorten, positive))} counted as 1" if positive else ""
        return self._line(self.name(label), label, {}, f"{rate:.1%} of all rows are 1{counts}")

    def _add_time(self, column: Column) -> None:
        since = {} if column.unit is None else {"unit": column.unit}
        per_second = {None: 1e6, "s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[column.unit]
        ends = [np.datetime64(int(at / per_second), "s") for at in (column.moments.least, column.moments.most)]
        is_date = pa.types.is_date(column.type)
        seen = " to ".join(str(end)[:10] if is_date else str(end).replace("T", " ") for end in ends)
        for part in ["weekday"] if is_date else ["hour", "weekday"]:
            keys = {"kind": "time", "part": part, **since, "dim": 8}
            self._add(self.name(f"{column.name}_{part}"), column.name, keys, seen)

    def _add_number(self, column: Column, name: str, *, why: str = "", quantiles: bool = False) -> None:
        moments = column.moments
        keys: dict[str, object] = {"kind": "number"}
        seen = f"{moments.least:.4g} to {moments.most:.4g}"
        is_huge = max(abs(moments.least), abs(moments.most)) >= LARGEST
        if is_huge:
            self.made.notes.append(
                f"{column.name}: numbers from {seen}, which no mean can be taken of: proposed by its quantiles; if "
                "they stand for unknown, make them empty"
            )
        if quantiles or is_huge:
            keys |= {"quantiles": QUANTILES, "dim": 8}
        else:
            if moments.least >= 0 and moments.most > moments.mean + 10 * moments.std:
                keys["transform"] = "log1p"  # a long tail
            if moments.least < moments.most:
                keys["standardise"] = "learn"
        if column.nulls:
            is_large = not np.isfinite(moments.mean) or abs(moments.mean) >= LARGEST
            keys["default"] = 0.0 if is_large else float(f"{moments.mean:.4g}")
            seen += f"; {column.nulls:,} empty, which become {'0' if is_large else 'the mean'}"
        self._add(self.name(name), column.name, keys, seen + why)

    def _add_integers(self, column: Column) -> None:
        means, why = _means(column)
        if means == "number":
            self._add_number(column, column.name, why=f"; a quantity, {why}" if why != "by its name" else "")
        elif means == "both" and _hardly_repeats(column):
            self._add_number(column, column.name, why="; hardly a value repeats", quantiles=True)
        else:
            self._add_ids(column, f"; {why} Delete this line or the next" if means == "both" else "")
        if means == "both" and not _hardly_repeats(column):
            self._add_number(column, f"{column.name}_number", quantiles=True)
            self.made.notes.append(
                f"{column.name}: {why} Proposed as both, ids and a number by its quantiles: delete one of the lines"
            )
        elif means == "number" and why != "by its name":
            self.made.notes.append(f"{column.name}: taken for a quantity, for it has {why}")

    def _add_ids(self, column: Column, hint: str = "") -> None:
        name = self.name(column.name)
        kind: dict[str, object] = {"kind": "id"}
        if column.separator is not None or column.is_list:
            kind = {"kind": "id_list", **({"separator": column.separator} if column.separator else {})}
        seen = f"{column.distinct:,} values"
        if pa.types.is_integer(column.values.type):
            least, most = (edge(column.values).as_py() for edge in (pc.min, pc.max))
            seen += f", {least} to {most}"
        else:
            seen += f", such as {_shorten(min(column.values.to_pylist()))}"
        if column.separator is not None:
            seen = f"lists of {seen}; {doubt(column) or 'if it is no list: kind: id without separator, and buckets'}"
        elif column.is_list:
            seen = f"lists of {seen}"
        elif question := doubt(column):
            seen += f"; {question}"
        self._add(name, column.name, {**kind, **self._ids(column, name)}, seen + hint)

    def _ids(self, column: Column, name: str | None) -> dict[str, object]:
        """How values become ids; a vocabulary is written only under a `name`."""
        values = column.values
        dim = suggest_dim(column.distinct)
        if pa.types.is_integer(values.type):
            least, most = (edge(values).as_py() for edge in (pc.min, pc.max))
            if least >= 0 and most < min(MAX_RANGE, max(16, 4 * column.distinct)) and column.distinct <= KEEP:
                return {"range": most + 1, "on_bad": "reserve", "dim": suggest_dim(most + 1)}
        elif _has_breaks(values):
            name = None
        if name is not None and column.distinct <= VOCABULARY:
            path = f"vocabulary/{name}.txt"
            self.made.vocabularies[path] = values
            return {"vocabulary": path, "dim": dim}
        hashed = choose_hash(values, column.counts, column.distinct, column.lookups, dim)
        if name is not None:
            self.made.notes.append(
                f"hashed {column.name}: {column.distinct:,} values, {hashed.buckets:,} rows; {hashed.shared:.1%} of "
                f"the lookups share a row with another value, {hashed.expected:.1%} expected by chance"
            )
        return {"buckets": hashed.buckets, **({"seed": hashed.seed} if hashed.seed else {}), "dim": dim}


def left_out(column: Column) -> str | None:
    """Why nothing can be learnt of a column."""
    if column.is_list and not column.is_counted:
        return f"lists of {column.type.value_type}; lists hold integers or text"
    if not column.known or (column.is_counted and _is_blank(column)):
        return "empty in every training row"
    if column.infinite:
        return f"infinite in {column.infinite:,} rows, which training refuses; make them empty"
    if column.strange:
        return f"{column.strange:,} times are not from 1900 to 2199, which training refuses; make them empty"
    if not column.nulls and column.is_counted and column.distinct == 1 and not column.is_list:
        return f"{_shorten(str(column.values[0].as_py()))} in every training row"
    if not column.nulls and column.is_float and column.moments.least == column.moments.most:
        return f"'{column.moments.least:g}' in every training row"
    if _hardly_repeats(column):
        if column.is_integer and _means(column)[0] != "id" and not _is_counter(column):
            return None
        return f"nearly every row has a value of its own, such as {_shorten(str(pc.min(column.values).as_py()))}"
    return None


def doubt(column: Column) -> str | None:
    """What a column of text may be meant as, that is not understood."""
    wholes = [whole for whole in column.wholes if whole]
    if wholes and all(map(GROUPED.fullmatch, wholes)) and any("," in whole for whole in wholes):
        return "numbers with commas between thousands? Write them without"
    if wholes and all(map(DECIMAL_COMMA.fullmatch, wholes)) and any("," in whole for whole in wholes):
        return "numbers with a decimal comma? Write them with a point"
    if wholes and all(map(OTHER_DATE.match, wholes)):
        return "dates? Write them as 2024-06-01"
    return None


def suggest_batch_size(rows: int) -> int:
    """A power of two that makes about 128 steps an epoch, from 32 to 4,096.

    >>> [suggest_batch_size(rows) for rows in (300, 72_000, 10_000_000)]
    [32, 512, 4096]
    """
    return min(max(1 << max(rows // 128, 1).bit_length() - 1, 32), 4096)


def group_column(columns: Sequence[Column]) -> str | None:
    """The column within whose values a ranking is judged, by its name."""
    groups = (column for column in columns if GROUP.fullmatch(column.name) and left_out(column) is None)
    return next((column.name for column in groups if column.is_text or column.is_integer), None)


def _means(column: Column) -> tuple[str, str]:
    return meaning(column.name, column.values.to_numpy(), column.counts)


def _hardly_repeats(column: Column) -> bool:
    """Whether nearly every row has a value of its own, so that nothing can be learnt of it as an id."""
    can_be = column.is_counted and not column.is_list and column.separator is None and not column.is_time
    return can_be and column.known >= MANY and column.distinct >= 0.95 * column.known


def _is_counter(column: Column) -> bool:
    """Whether integers of which each occurs about once are numbers of rows, or random: nothing to learn from."""
    if _means(column)[0] == "number":
        return False
    span = column.moments.most - column.moments.least + 1
    return span <= 2 * column.distinct or not thins_out(column.values.to_numpy())


def _is_named_outcome(column: Column) -> bool:
    if not looks_like_an_outcome(column.name) or column.is_list or column.separator is not None or column.is_time:
        return False
    if column.is_float:
        return (column.moments.least, column.moments.most) == (0.0, 1.0)
    return column.distinct <= 2 and Found(frozenset(map(text_of, column.values.to_pylist())), 0).truths is not None


def _is_blank(column: Column) -> bool:
    return column.distinct == 0 or (column.distinct == 1 and column.values[0].as_py() == "")


def _has_breaks(values: pa.Array) -> bool:
    """Whether a line of a vocabulary could not hold a value."""
    return bool(pc.any(pc.match_substring_regex(values, "[\r\n]"), min_count=0).as_py())


def _shorten(value: str) -> str:
    return repr(value if len(value) <= 20 else value[:17] + "...")


def _scalar(value: object) -> str:
    """YAML for a name, a number or a list of numbers; text that YAML would read otherwise is quoted."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)
