"""Which columns are to be predicted, and how their values become labels of 0 and 1."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

LABELS = ("label", "click", "clicked", "is_click", "target")
# Text that means 0 or 1, in small letters.
TRUTH = {"0": 0, "1": 1, "false": 0, "true": 1, "f": 0, "t": 1, "no": 0, "yes": 1, "n": 0, "y": 1}
SHOWN = 10
MANY_VALUES = 1000  # a column with more is no label
# Words of a column's name that tell what came of it: known only after the row was shown.
OUTCOME = re.compile(
    r"label|target|outcome|response|respond(ed)?|click(s|ed)?|buy|bought|purchase[ds]?|ordered|conver(sion|ted|t)|cvr|ctr|"
    r"like[ds]?|dislike[ds]?|install(ed)?|subscri(bed?|ption)|churn(ed)?|sale|sold|paid|checkout|cart|follow(ed)?|"
    r"share[ds]?|comment(ed)?|favou?rite[ds]?|watched|played|finish(ed)?|complet(ed|ion)|success|reward|return(ed)?|"
    r"refund(ed)?|rating|stars|revenue|dwell"
)


@dataclass(frozen=True)
class Found:
    """The different values of a column as text (`more`: not all of them), and how many rows are empty."""

    values: frozenset[str]
    nulls: int
    more: bool = False

    @property
    def is_label(self) -> bool:
        """Whether it holds 0 and 1, and one of them in every row."""
        return self.truths == {0, 1} and not self.nulls

    @property
    def truths(self) -> set[int] | None:
        """What they are as labels; None if they are none."""
        if self.more or not self.values:
            return None
        found = {truth(value) for value in self.values}
        return None if None in found else {one for one in found if one is not None}


def choose_labels(
    source: str, found: Mapping[str, Found], labels: Sequence[str], positive: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Label -> its values that count as 1; none stands for 1, true and yes.

    Args:
        source: what messages call the data.
        found: of all columns that may be labels; `labels` are among them.
        labels: as asked for; without any those named as in LABELS that hold 0 and 1.
        positive: values of the only label, or LABEL=VALUE.

    Raises:
        ValueError: no label, or a label that cannot be one.
    """
    chosen = list(dict.fromkeys(labels)) or _recognised(source, found)
    values = _positive(positive, chosen)
    for label in chosen:
        _check(source, label, found[label], values[label])
    return values


def found_in(batches: Callable[[Sequence[str]], Iterable[pa.RecordBatch]], columns: Sequence[str]) -> dict[str, Found]:
    """What columns hold that may be labels, as far as MANY_VALUES values; `batches` gives rows of some columns."""
    values: dict[str, set[str]] = {name: set() for name in columns}
    nulls = dict.fromkeys(columns, 0)
    left = set(columns)
    for batch in batches(columns) if columns else ():
        for name in list(left):
            array = batch[name]
            if pa.types.is_floating(array.type):
                array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
            nulls[name] += array.null_count
            values[name].update(map(text_of, array.unique().drop_null().to_pylist()))
            if len(values[name]) > MANY_VALUES:
                left.remove(name)
        if not left:
            break
    return {name: Found(frozenset(values[name]), nulls[name], name not in left) for name in columns}


def truth(text: str) -> int | None:
    """What text means as a label; None if nothing.

    >>> [truth(text) for text in ("Yes", "0.0", "2", "maybe")]
    [1, 0, None, None]
    """
    lower = text.strip().lower()
    if lower in TRUTH:
        return TRUTH[lower]
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number in (0.0, 1.0) else None


def as_labels(array: pa.Array, positive: Sequence[str] = ()) -> pa.Array:
    """A column of any type as int8 labels; with `positive` the rows that have one of these values are 1.

    Raises:
        pa.ArrowInvalid: without `positive`, a value that is no label.

    >>> as_labels(pa.array(["Yes", "no", "1.0", None])).to_pylist(), as_labels(pa.array([1, 2]), ["2"]).to_pylist()
    ([1, 0, 1, None], [0, 1])
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    distinct = array.unique().drop_null()
    texts = [text_of(value) for value in distinct.to_pylist()]
    try:
        ones = [value for value, text in zip(distinct, texts, strict=True) if _is_one(text, positive)]
    except ValueError as error:
        raise pa.ArrowInvalid(str(error)) from None
    is_one = pc.is_in(array, pa.array([one.as_py() for one in ones], array.type))
    return pc.if_else(array.is_valid(), is_one.cast(pa.int8()), pa.scalar(None, pa.int8()))


def text_of(value: object) -> str:
    """A value as `--positive` names it: whole numbers without a fraction, text without blanks around it.

    >>> text_of(1.0), text_of(" >50K"), text_of(0.5), text_of(True)
    ('1', '>50K', '0.5', '1')
    """
    if isinstance(value, str):
        return value.strip()
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)
    return str(int(number)) if number.is_integer() else str(value)


def looks_like_an_outcome(name: str) -> bool:
    """Whether a name has a word for something that is known only afterwards.

    >>> [looks_like_an_outcome(name) for name in ("is_click", "Conversion", "hasLiked", "clickbait_score", "city")]
    [True, True, True, False, False]
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return any(OUTCOME.fullmatch(word.lower()) for word in re.findall(r"[^\W\d_]+", spaced))


def positive_of(field: pa.Field) -> list[str]:
    """The values that counted as 1 when a label was written."""
    return list(json.loads((field.metadata or {}).get(b"positive", b"[]")))


def label_field(field: pa.Field, positive: Sequence[str]) -> pa.Field:
    """The field of a label that is written; it remembers the values that count as 1, and the type that they had."""
    remembered = {b"positive": json.dumps(list(positive)).encode(), b"read_as": str(field.type).encode()}
    return pa.field(field.name, pa.int8(), metadata={**(field.metadata or {}), **remembered})


def read_as(field: pa.Field) -> pa.DataType:
    """The type of a label's values before they became 0 and 1; text if it was none of numbers.

    >>> read_as(label_field(pa.field("stars", pa.float64()), ["5"]))
    DataType(double)
    """
    name = (field.metadata or {}).get(b"read_as", b"string").decode()
    return pa.type_for_alias(name) if name in ("int64", "double") else pa.string()


def is_label(field: pa.Field) -> bool:
    """Whether `label_field` made it."""
    return b"positive" in (field.metadata or {})


def _is_one(text: str, positive: Sequence[str]) -> bool:
    if positive:
        return text in positive or _number_text(text) in positive
    if (one := truth(text)) is None:
        raise ValueError(f"{text} is no label")
    return one == 1


def _number_text(text: str) -> str:
    try:
        return text_of(float(text))
    except ValueError:
        return text


def _recognised(source: str, found: Mapping[str, Found]) -> list[str]:
    """The columns that are named as labels are and hold what labels do."""
    truths = [name for name, column in found.items() if column.is_label]
    labels = [name for name in truths if name.lower() in LABELS]
    if not labels:
        candidates = f"these hold 0 and 1: {', '.join(truths)}" if truths else "no column holds 0 and 1 alone"
        raise ValueError(f"{source}: which column is to be predicted? Name it with --label; {candidates}")
    return labels


def _positive(positive: Sequence[str], labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    values: dict[str, list[str]] = {label: [] for label in labels}
    for text in positive:
        label, equals, value = text.partition("=")
        if equals and label in values:
            values[label].append(value.strip())
        elif len(labels) == 1:
            values[labels[0]].append(text.strip())
        else:
            raise ValueError(
                f"--positive {text!r}: of which label? Write LABEL=VALUE; the labels are {', '.join(labels)}"
            )
    return {label: tuple(dict.fromkeys(map(_number_text, some))) for label, some in values.items()}


def _check(source: str, name: str, found: Found, positive: Sequence[str]) -> None:
    where = f"{source}: column {name!r}"
    if not found.values:
        raise ValueError(f"{where} is empty in every row; name another --label")
    if found.nulls:
        raise ValueError(f"{where} is empty in {found.nulls:,} rows; a label has a value in each; delete those rows")
    if len(found.values) == 1:
        raise ValueError(f"{where} is {next(iter(found.values))} in every row; a label to learn has both 0 and 1")
    known = {_number_text(value.strip()) for value in found.values}
    for value in positive:
        if value not in known and not found.more:
            raise ValueError(f"{where} never is {value!r}, which --positive names; it holds {_listed(found)}")
    if positive:
        if not found.more and known <= set(positive):
            raise ValueError(f"{where} holds {_listed(found)}, and --positive names all; a label has 0 too")
        return
    if found.truths == {0, 1}:
        return
    if found.truths is not None:
        raise ValueError(f"{where} holds {_listed(found)}, which mean the same; a label to learn has both 0 and 1")
    example = " ".join(f"--positive {_quoted(value)}" for value in _ordered(found)[-1:])
    how_many = "" if len(found.values) == 2 else " (a label may have several: is the rating 4 or more?)"
    raise ValueError(
        f"{where} holds {_listed(found)}; a label is 0 or 1, true or false, yes or no: say which value counts as 1, "
        f"such as {example}{how_many}"
    )


def _ordered(found: Found) -> list[str]:
    try:
        return sorted(found.values, key=float)
    except ValueError:
        return sorted(found.values)


def _listed(found: Found) -> str:
    values = _ordered(found)
    shown = [repr(value if len(value) <= 20 else value[:17] + "...") for value in values[:SHOWN]]
    if len(values) == len(shown) and len(shown) > 1 and not found.more:
        return f"{', '.join(shown[:-1])} and {shown[-1]}"
    return ", ".join(shown) + (" and others" if len(values) > len(shown) or found.more else "")


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w.]+", value) else "'" + value.replace("'", "'\\''") + "'"
