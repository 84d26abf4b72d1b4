"""What one line of the feature schema may say: the kinds of features, and labels."""

from __future__ import annotations

import difflib
import math
import posixpath
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from rankmixer.pipeline.schema.time_units import Seconds, check_timezone
from rankmixer.pipeline.schema.vocabulary import read_vocabulary

# FBGEMM's tables want a width divisible by 4.
Dim = Annotated[int, Field(ge=4, le=2**16, multiple_of=4, description="Embedding width; a multiple of 4.")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Quantiles = Annotated[
    int | None,
    Field(ge=2, description="Instead of boundaries: so many buckets of about equal count, learnt from data.train."),
]
HashSeed = Annotated[int, Field(ge=0, lt=1 << 64, description="Seed of the hash.")]

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

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that the feature is made of."""
        return (self.column,)

    @property
    def is_learnt(self) -> bool:
        """False while something in it is still to be learnt from the training rows."""
        return True


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
    seed: HashSeed = 0
    values: Literal["integers", "strings"] | None = Field(
        None,
        description="What is hashed, for the hash of 7 is another than that of '7'. Default: what the training files "
        "hold, which the trained schema says.",
    )
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
    def _check_ids(self, info: ValidationInfo) -> Ids:
        ways = [way for way in ("vocabulary", "buckets", "range", "managed") if getattr(self, way) is not None]
        if len(ways) != 1:
            found = " and ".join(ways) or "none of them"
            raise ValueError(
                f"exactly one of vocabulary, buckets, range and managed says how ids are formed; found {found}"
            )
        if self.hashes is not None and self.on_bad is not None:
            raise ValueError(f"on_bad has no meaning with {ways[0]}: every value has a hash; remove it")
        for key in ("seed", "values"):
            if self.hashes is None and getattr(self, key):
                raise ValueError(f"{key} belongs to buckets and managed; remove it")
        to_be_written = (info.context or {}).get("vocabularies_to_be_written", False)
        if self.vocabulary is not None and not to_be_written:
            self._words = read_vocabulary(self.vocabulary)
        if self.default is not None:
            if self.range is not None and (isinstance(self.default, str) or not 0 <= self.default < self.range):
                raise ValueError(f"default must be an integer from 0 to {self.range - 1}; found {self.default!r}")
            if self.words and str(self.default) not in self._words:
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
    def reserves(self) -> bool:
        """Whether unknown ids, or those out of range, have a row of their own."""
        return self.hashes is None and self.bad_policy == "reserve"

    @property
    def rows(self) -> int:
        """Rows of the table, the reserved one included (it is the last)."""
        if self.managed is not None:
            return managed_rows(self.managed)
        return (self.buckets or self.range or len(self._words)) + self.reserves


class Id(Ids):
    """One integer or string a row."""

    kind: Literal["id"]


class IdList(Ids):
    """A list of ids a row, pooled into one embedding."""

    kind: Literal["id_list"]
    pooling: Literal["sum", "mean"] = Field("sum", description="How the embeddings of a list become one.")
    separator: str | None = Field(None, min_length=1, description="Split a string column at this text.")
    weights: str | None = Field(None, description="List column with one weight for each id.")
    truncate: int | None = Field(None, ge=1, description="Keep at most so many ids of a list, and their weights.")
    keep: Literal["last", "first"] | None = Field(
        None, description="With truncate, the end that is kept: last (default: a log appends the newest) or first."
    )

    @model_validator(mode="after")
    def _check_list(self) -> IdList:
        if self.keep is not None and self.truncate is None:
            raise ValueError(f"keep: {self.keep} belongs to truncate; give truncate, or remove keep")
        if self.separator is not None and self.values == "integers":
            raise ValueError("values: integers, but a separator splits text; remove one")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column,) if self.weights is None else (self.column, self.weights)

    @property
    def end(self) -> Literal["last", "first"]:
        """The end of a long list that is kept."""
        return self.keep or "last"


class Number(FeatureBase):
    """A number a row: a dense input, or with `boundaries` or `quantiles` the id of its bucket in a table."""

    kind: Literal["number"]
    boundaries: tuple[Finite, ...] | None = Field(None, min_length=1, description="Bucket i: values >= boundary i - 1.")
    quantiles: Quantiles = None
    dim: Dim | None = Field(None, description="With boundaries or quantiles: embedding width; a multiple of 4.")
    transform: Literal["none", "log1p"] = Field("none", description="Of a dense input: as it is, or log(1 + x).")
    standardise: Literal["learn"] | tuple[Finite, Finite] | None = Field(
        None, description="Applied after transform: [mean, std], or learn for those of data.train."
    )
    default: Finite | None = Field(None, description="Replaces null and NaN. Without it both are errors.")

    @field_validator("standardise", mode="before")
    @classmethod
    def _learn_or_given(cls, value: Any) -> Any:
        # One sentence, where pydantic would write one for each of the types.
        if value in ("learn", None) or (isinstance(value, list | tuple) and len(value) == 2):
            return value
        raise ValueError("expected learn, or [mean, std]")

    @model_validator(mode="after")
    def _check_number(self) -> Number:
        if (self.is_dense) != (self.dim is None):
            raise ValueError(
                "boundaries (or quantiles) and dim go together: both for a table, neither for the dense input"
            )
        if not self.is_dense and (self.transform != "none" or self.standardise is not None):
            raise ValueError("transform and standardise have no meaning with boundaries or quantiles; remove them")
        _check_boundaries(self.boundaries, self.quantiles)
        if isinstance(self.standardise, tuple) and self.standardise[1] <= 0:
            raise ValueError(f"standardise is [mean, std] with std > 0; found {list(self.standardise)}")
        return self

    @property
    def is_dense(self) -> bool:
        """Whether it is a dense input, and not the id of a bucket."""
        return self.boundaries is None and self.quantiles is None

    @property
    def is_learnt(self) -> bool:
        return self.quantiles is None and self.standardise != "learn"

    @property
    def rows(self) -> int:
        """Rows of the table; before quantiles are learnt the most there can be."""
        return self.quantiles or len(self.boundaries or ()) + 1


class Time(FeatureBase):
    """A point in time a row, of which one part is the id in a table. Null is an empty bag."""

    kind: Literal["time"]
    part: Literal["hour", "weekday", "age"] = Field(
        description="hour: 0 to 23; weekday: Monday is 0; age: reference minus event, in buckets."
    )
    dim: Dim
    unit: Literal["s", "ms", "us", "ns"] | None = Field(
        None, description="The columns hold integers: so many of these since 1970. Without it: timestamps or dates."
    )
    timezone: str = Field("UTC", description="Of hour and weekday.")
    reference: str | None = Field(None, description="Column of the time at which an age is taken.")
    reference_time: datetime | None = Field(None, description="The same for all rows; UTC unless it says otherwise.")
    boundaries: tuple[Seconds, ...] | None = Field(
        None, min_length=1, description="Of ages, such as 30s, 5min, 1h or 7d. Bucket i: ages >= boundary i - 1."
    )
    quantiles: Quantiles = None

    @model_validator(mode="after")
    def _check_time(self) -> Time:
        check_timezone(self.timezone)
        of_age = ("reference", "reference_time", "boundaries", "quantiles")
        given = [key for key in of_age if getattr(self, key) is not None]
        if self.part != "age":
            if given:
                raise ValueError(f"{' and '.join(given)} belong to part: age; found part: {self.part}; remove them")
            return self
        if self.timezone != "UTC":
            raise ValueError("timezone belongs to hour and weekday, an age is the same everywhere; remove it")
        if (self.reference is None) == (self.reference_time is None):
            raise ValueError("part: age wants exactly one of reference (a column) and reference_time")
        if self.boundaries is None and self.quantiles is None:
            raise ValueError("part: age wants boundaries, such as [1h, 1d, 7d], or quantiles")
        _check_boundaries(self.boundaries, self.quantiles)
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column,) if self.reference is None else (self.column, self.reference)

    @property
    def is_learnt(self) -> bool:
        return self.quantiles is None

    @property
    def rows(self) -> int:
        """Rows of the table; before quantiles are learnt the most there can be."""
        return {"hour": 24, "weekday": 7}.get(self.part) or self.quantiles or len(self.boundaries or ()) + 1


class Cross(Strict):
    """Features of one id a row together: the hash of their ids, in the order given, has a table of its own.

    Where one of them is empty (null), so is the cross.
    """

    kind: Literal["cross"]
    of: tuple[str, ...] = Field(min_length=2, description="Features (not columns) of one id a row.")
    buckets: int = Field(ge=1, description="Number of hash buckets.")
    dim: Dim
    seed: HashSeed = 0
    group: str = Field("", description="Semantic group; features of a group stand together. Default: one of its own.")

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def is_learnt(self) -> bool:
        return True

    @property
    def rows(self) -> int:
        return self.buckets


Feature = Annotated[Id | IdList | Number | Time | Cross, Field(discriminator="kind")]


class Label(Strict):
    """A task: a column of labels in [0, 1] and the weight of its loss."""

    column: str = Field("", description="Parquet column. Default: the task's name.")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="Weight of the task's loss.")


def _check_boundaries(boundaries: tuple[float, ...] | None, quantiles: int | None) -> None:
    if boundaries is None:
        return
    if quantiles is not None:
        raise ValueError("boundaries and quantiles are two ways to say the same; remove one")
    if sorted(set(boundaries)) != list(boundaries):
        raise ValueError(f"boundaries must increase; found {list(boundaries)}")
