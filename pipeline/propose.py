"""A feature schema and a configuration for the columns of a CSV, for a person to read and edit."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from torch import nn

from pipeline.column_doubt import doubt
from pipeline.column_profile import MAX_DISTINCT, ColumnProfile, suggest_buckets, suggest_dim

MAX_RANGE = 1_000_000
# Columns that are likely to say whose row it is: AUC within each of them is what a ranking is for.
GROUP = re.compile(r"(user|visitor|customer|client|member|session)([ _]?id)?", re.IGNORECASE)

SCHEMA_HEADER = """\
# Proposed by `rankmixer data csv` from {file} ({rows:,} rows). Check every line:
# - delete what is not known before the label is, such as a rating or the time of the purchase
# - a quantity that stands as `kind: id`, such as a price in cents, is better as `kind: number`
# - `group:` puts features of one thing (user, item, context) together
# - ids not seen here: with `buckets` every value has a place; with `range` and `reserve` they share one
"""
CONFIG_HEADER = """\
# Proposed by `rankmixer data csv` from {file}; paths are relative to where you run the commands. Try other values as
# `section.key=value` at the end of a command; `rankmixer schema` prints all keys.
"""


def schema_text(file: str, profiles: Sequence[ColumnProfile], rates: Mapping[str, float]) -> str:
    """The feature schema as YAML, each line with a comment that says what was seen.

    Args:
        rates: the share of ones of each label.
    """
    names = _Names()
    features = [line for profile in profiles if not profile.is_label for line in feature_lines(profile, names)]
    labels = [names.line(label, label, {}, f"{rate:.1%} are 1") for label, rate in rates.items()]
    header = SCHEMA_HEADER.format(file=Path(file).name, rows=profiles[0].rows).splitlines()
    return "\n".join([*header, "features:", *features, "labels:", *labels]) + "\n"


def config_text(file: str, out: str, profiles: Sequence[ColumnProfile], rows: Sequence[int]) -> str:
    """The configuration as YAML: sizes that suit `rows`, the numbers of training, evaluation and test rows."""
    group = next((profile.name for profile in profiles if GROUP.fullmatch(profile.name)), None)
    train, validation, test = (json.dumps(f"{out}/{part}") for part in ("train", "validation", "test"))
    lines = [
        *CONFIG_HEADER.format(file=Path(file).name).splitlines(),
        f"feature_schema: {json.dumps(f'{out}/schema.yaml')}",
        "",
        "data:",
        f"  train: {train}  # {rows[0]:,} rows",
        f"  evaluate: {validation}  # {rows[1]:,} rows, after each epoch",
        f"  test: {test}  # {rows[2]:,} rows, once, at the end",
        f"  batch_size: {suggest_batch_size(rows[0])}",
        "",
        "train:",
        "  epochs: 10",
        "  early_stopping: {patience: 2}  # epochs without a better AUC; the best one is kept",
        "",
        # A section that holds but a comment would be null.
        f"metrics: {{group: {_scalar(group)}}}  # also AUC within each of its values (GAUC)"
        if group is not None
        else "# metrics: {group: user_id}  # a column: also AUC within each of its values (GAUC)",
        "",
        "run:",
        f"  directory: {json.dumps(f'runs/{Path(out).name}')}",
    ]
    return "\n".join(lines) + "\n"


def suggest_batch_size(rows: int) -> int:
    """A power of two that makes about 128 steps an epoch, from 32 to 4,096.

    >>> [suggest_batch_size(rows) for rows in (300, 72_000, 10_000_000)]
    [32, 512, 4096]
    """
    return min(max(1 << max(rows // 128, 1).bit_length() - 1, 32), 4096)


class _Names:
    """Lines of the schema, each under a name that no other has and that YAML, TorchRec and the schema take."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def line(self, name: str, column: str, keys: Mapping[str, object], comment: str) -> str:
        name = re.sub(r"\W", "_", name)
        # TorchRec keeps tables in a ModuleDict, which has attributes of its own.
        while name in self._taken or hasattr(nn.ModuleDict, name) or name == "training":
            name += "_"
        self._taken.add(name)
        keys = keys if name == column else {"column": column, **keys}
        flow = ", ".join(f"{key}: {_scalar(value)}" for key, value in keys.items())
        return f"  {_scalar(name)}: {{{flow}}}  # {comment}"


def feature_lines(profile: ColumnProfile, names: _Names) -> list[str]:
    """The lines of `features:` that a column suggests; a comment where it can teach nothing."""
    reason = left_out(profile)
    if reason is not None:
        return [f"  # {json.dumps(profile.name, ensure_ascii=False)}: {reason}"]
    if profile.is_time:
        return _time_lines(profile, names)
    if profile.is_number and not profile.integers:
        return [_number_line(profile, names)]
    return [_id_line(profile, names)]


def left_out(profile: ColumnProfile) -> str | None:
    """Why nothing can be learnt of a column."""
    if profile.rows == profile.nulls:
        return "empty in every row"
    if profile.constant is not None:
        return f"{_shorten(profile.constant)} in every row"
    if profile.kind == "list" and profile.type.value_type == "double":
        return "lists of numbers with fractions, which no feature reads"
    is_quantity = profile.is_number and not profile.integers
    if profile.hardly_repeats and not is_quantity and not profile.is_time and not profile.is_list:
        return f"nearly every row has a value of its own, such as {_shorten(min(profile.values))}"
    return None


def _time_lines(profile: ColumnProfile, names: _Names) -> list[str]:
    since = {} if profile.unit is None else {"unit": profile.unit}
    seen = f"{_count(len(profile.values))} times, such as {_shorten(min(profile.values))}"
    parts = ["weekday"] if profile.type == "date32[day]" else ["hour", "weekday"]
    return [
        names.line(f"{profile.name}_{part}", profile.name, {"kind": "time", "part": part, **since, "dim": 8}, seen)
        for part in parts
    ]


def _number_line(profile: ColumnProfile, names: _Names) -> str:
    mean, deviation = profile.mean, profile.deviation
    missing = profile.nulls + profile.words
    keys: dict[str, object] = {"kind": "number"}
    if profile.least >= 0 and profile.most > mean + 10 * deviation:
        keys["transform"] = "log1p"  # a long tail
    if profile.least < profile.most:
        keys["standardise"] = "learn"
    if missing:
        keys["default"] = float(f"{mean:.4g}")
    nulls = f"; {missing:,} empty, which become the mean" if missing else ""
    return names.line(profile.name, profile.name, keys, f"{profile.least:.4g} to {profile.most:.4g}{nulls}")


def _id_line(profile: ColumnProfile, names: _Names) -> str:
    distinct = len(profile.values)
    if profile.is_list:
        elements = profile.list_elements
        separator = {} if profile.separator is None else {"separator": profile.separator}
        keys = {"kind": "id_list", **separator, **_hashed(len(elements))}
        seen = f"lists of {_count(len(elements))} values, such as {_shorten(min(elements, key=len))}"
        hint = doubt(profile) or "if it is no list: kind: id without separator"
        return names.line(profile.name, profile.name, keys, f"{seen}; {hint}")
    if not profile.is_number:
        seen = f"{_count(distinct)} values, such as {_shorten(min(profile.values))}"
        hint = f"; {doubt(profile)}" if doubt(profile) else ""
        return names.line(profile.name, profile.name, {"kind": "id", **_hashed(distinct)}, seen + hint)
    seen = f"{_count(distinct)} values, {profile.least:.0f} to {profile.most:.0f}"
    if profile.least >= 0 and profile.most < min(MAX_RANGE, 1000 + 16 * distinct):
        rows = int(profile.most) + 1
        keys = {"kind": "id", "range": rows, "on_bad": "reserve", "dim": suggest_dim(rows)}
        return names.line(profile.name, profile.name, keys, seen)
    return names.line(profile.name, profile.name, {"kind": "id", **_hashed(distinct)}, seen)


def _hashed(distinct: int) -> dict[str, object]:
    buckets = suggest_buckets(distinct) if distinct < MAX_DISTINCT else 1 << 22
    return {"buckets": buckets, "dim": suggest_dim(distinct)}


def _count(distinct: int) -> str:
    return f"{distinct:,}" if distinct < MAX_DISTINCT else f"{MAX_DISTINCT:,} or more"


def _shorten(value: str) -> str:
    return repr(value if len(value) <= 20 else value[:17] + "...")


def _scalar(value: object) -> str:
    """YAML for a name, a number or a list of numbers; text that YAML would read otherwise is quoted."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)
