"""What one line of the feature schema may say: the kinds of features, and labels."""

from __future__ import annotations

import difflib
import math
import posixpath
from typing import Annotated, Any, Literal

import fsspec
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

# FBGEMM's tables want a width divisible by 4.
Dim = Annotated[int, Field(ge=4, multiple_of=4, description="Embedding width; a multiple of 4.")]
Finite = Annotated[float, Field(allow_inf_nan=False)]

# What `managed` hashes values to: 0 to 2**63 - 2, all that int64 has but one (docs/decisions/0011).
MANAGED_HASHES = 2**63 - 1
# A managed table is cut into so many segments, and every rank holds whole ones: 960 divides by most numbers of ranks.
SEGMENTS = 960


def managed_rows(ids: int) -> int:
    """Rows of a managed table: one for each of `ids` ids, and one that the ids of a segment without a row share.

    Hashing spreads ids unevenly; three standard deviations more in each segment, and nearly all find a place.

    >>> [managed_rows(ids) for ids in (1, 100_000, 100_000_000)]
    [1920, 130560, 100930560]
    """
    mean = ids / SEGMENTS
    return SEGMENTS * (math.ceil(mean + 3 * math.sqrt(mean)) + 1)


def read_text(path: str) -> str:
    """A UTF-8 text file, local or on any filesystem that fsspec opens."""
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            return str(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def read_vocabulary(path: str) -> tuple[str, ...]:
    """One value a line, lines ended by LF or CRLF; the id of a value is its line number, from 0."""
    words = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    if words == [""]:
        raise ValueError(f"vocabulary {path}: found no value; expected one a line")
    lines: dict[str, int] = {}
    for line, word in enumerate(words, 1):
        if lines.setdefault(word, line) != line:
            raise ValueError(f"vocabulary {path}: line {line} repeats {word!r} of line {lines[word]}; remove one")
    return tuple(words)


class Strict(BaseModel):
    """Frozen; an unknown key is refused with the nearest known name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"unknown key {key!r}; {hint}known keys: {', '.join(cls.model_fields)}")
        return data


class FeatureBase(Strict):
    column: str = Field("", description="Parquet column. Default: the feature's name.")
    group: str = Field("", description="Semantic group; features of a group stand together. Default: one of its own.")


class Ids(FeatureBase):
    """How raw values become ids: exactly one of `vocabulary`, `buckets`, `range` and `managed`."""

    vocabulary: str | None = Field(None, description="Text file, one value a line, relative to the schema file.")
    buckets: int | None = Field(None, ge=1, description="Number of hash buckets, for integers or strings.")
    range: int | None = Field(None, ge=1, description="The values are integers 0 to range - 1.")
    managed: int | None = Field(
        None, ge=1, description="Any integers or strings; so many of them have a row of their own at a time."
    )
    dim: Dim
    table: str = Field("", description="Features naming the same table share it. Default: the feature's name.")
    seed: int = Field(0, ge=0, lt=1 << 64, description="Seed of the hash.")
    on_bad: Literal["fail", "reserve", "drop"] | None = Field(
        None,
        description="An id out of range or vocabulary: fail (default with range), go to one reserved row at the end of "
        "the table (default with vocabulary), or drop the example (weight 0).",
    )
    default: int | str | None = Field(None, description="Raw value that replaces null. Without it: an empty bag.")
    _words: tuple[str, ...] = PrivateAttr(())

    @field_validator("vocabulary")
    @classmethod
    def _beside_the_schema(cls, path: str | None, info: ValidationInfo) -> str | None:
        folder = (info.context or {}).get("folder", "")
        return path if path is None or "://" in path else posixpath.join(folder, path)

    @model_validator(mode="after")
    def _check_ids(self) -> Ids:
        ways = [way for way in ("vocabulary", "buckets", "range", "managed") if getattr(self, way) is not None]
        if len(ways) != 1:
            found = " and ".join(ways) or "none of them"
            raise ValueError(
                f"exactly one of vocabulary, buckets, range and managed says how ids are formed; found {found}"
            )
        if self.hashes is not None and self.on_bad is not None:
            raise ValueError(f"on_bad has no meaning with {ways[0]}: every value has a hash; remove it")
        if self.hashes is None and self.seed:
            raise ValueError("seed belongs to buckets and managed; remove it")
        if self.vocabulary is not None:
            self._words = read_vocabulary(self.vocabulary)
        if self.default is not None:
            if self.range is not None and (isinstance(self.default, str) or not 0 <= self.default < self.range):
                raise ValueError(f"default must be an integer from 0 to {self.range - 1}; found {self.default!r}")
            if self.vocabulary is not None and str(self.default) not in self._words:
                raise ValueError(f"default {self.default!r} is not in {self.vocabulary}; add it there")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary; a value's id is its line number, from 0."""
        return self._words

    @property
    def bad_policy(self) -> Literal["fail", "reserve", "drop"]:
        return self.on_bad or ("reserve" if self.vocabulary is not None else "fail")

    @property
    def hashes(self) -> int | None:
        """How many ids the hash of a value may become; None: it is not hashed."""
        return self.buckets or (MANAGED_HASHES if self.managed is not None else None)

    @property
    def rows(self) -> int:
        """Rows of the table, the reserved one included (it is the last)."""
        if self.managed is not None:
            return managed_rows(self.managed)
        return (self.buckets or self.range or len(self._words)) + (
            self.buckets is None and self.bad_policy == "reserve"
        )


class Id(Ids):
    """One integer or string a row."""

    kind: Literal["id"]


class IdList(Ids):
    """A list of ids a row, pooled into one embedding."""

    kind: Literal["id_list"]
    pooling: Literal["sum", "mean"] = "sum"
    separator: str | None = Field(None, min_length=1, description="Split a string column at this text.")
    weights: str | None = Field(None, description="List column with one weight for each id.")


class Number(FeatureBase):
    """A number a row: a dense input, or with `boundaries` the id of its bucket in a table."""

    kind: Literal["number"]
    boundaries: tuple[Finite, ...] | None = Field(None, min_length=1, description="Bucket i: values >= boundary i - 1.")
    dim: Dim | None = None
    transform: Literal["none", "log1p"] = "none"
    standardise: tuple[Finite, Finite] | None = Field(None, description="[mean, std], applied after transform.")
    default: Finite | None = Field(None, description="Replaces null and NaN. Without it both are errors.")

    @model_validator(mode="after")
    def _check_number(self) -> Number:
        if (self.boundaries is None) != (self.dim is None):
            raise ValueError("boundaries and dim go together: both for a table, neither for the dense input")
        if self.boundaries is not None:
            if self.transform != "none" or self.standardise is not None:
                raise ValueError("transform and standardise have no meaning with boundaries; remove them")
            if sorted(set(self.boundaries)) != list(self.boundaries):
                raise ValueError(f"boundaries must increase; found {list(self.boundaries)}")
        if self.standardise is not None and self.standardise[1] <= 0:
            raise ValueError(f"standardise is [mean, std] with std > 0; found {list(self.standardise)}")
        return self


Feature = Annotated[Id | IdList | Number, Field(discriminator="kind")]


class Label(Strict):
    """A task: a column of labels in [0, 1] and the weight of its loss."""

    column: str = Field("", description="Parquet column. Default: the task's name.")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="Weight of the task's loss.")
