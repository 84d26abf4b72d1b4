"""Is a column of integers ids (codes, keys) or a quantity (amounts, counts, ages)? Its name says it, or its values."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

Meaning = Literal["id", "number", "both"]

CODES = 50  # so few different values are codes, or do as well as codes
EXACT = 1 << 53  # integers that a double cannot hold are hashes, or ids made of several numbers: no quantity
COUNTED_FIRST = re.compile(r"num|n|nb|no|number|count|total|sum|avg|mean|max|min")
ID_WORDS = re.compile(
    r"id|uid|gid|pid|idx|index|code|recode|key|sku|asin|isbn|zip|zipcode|postcode|hash|uuid|guid|pin|phone|"
    r"category|cat|class|type|kind|brand|user|item|product|customer|client|member|visitor|session|device|"
    r"browser|os|city|country|region|state|channel|campaign|publisher|advertiser|creative|ad|site|page|app|"
    r"store|shop|seller|film|movie|song|artist|author|gender|sex|industry|occupation|group|segment|cluster|"
    r"version|language|lang|status|flag|bin|bucket"
)
QUANTITY_WORDS = re.compile(
    r"age|price|cost|wage|salary|income|pay|amount|amt|count|cnt|total|sum|qty|quantity|seconds|minutes|hours|"
    r"days|weeks|months|years|duration|time|length|len|size|width|height|depth|weight|wgt|score|rating|ratio|"
    r"percent|pct|gain|loss|balance|distance|population|revenue|sales|spend|spent|budget|bid|cents|dollars|"
    r"euros|usd|eur|discount|tax|fee|debt|dividend|interest|views|clicks|impressions|visits|likes|orders|"
    r"purchases|speed|temperature|volume|area|bytes|frequency|recency|tenure|stock"
)


def meaning(name: str, values: np.ndarray, counts: np.ndarray) -> tuple[Meaning, str]:
    """What integers are meant as, and by what that is known.

    The name decides first, by its last word or a counting word at its front. Else up to 50 different values are codes,
    and so are integers beyond 2**53; negative values, or values that thin out upwards and are mostly round, are a
    quantity; the rest may be both.

    Args:
        values: (N,) the different values, in any order.
        counts: (N,) how often each occurs.

    >>> few = np.arange(9), np.ones(9)
    >>> meaning("userId", *few), meaning("hours-per-week", *few), meaning("c3", *few)
    (('id', 'by its name'), ('number', 'by its name'), ('id', 'few values'))
    >>> meaning("c4", np.arange(900), np.ones(900))
    ('both', 'ids or a quantity?')
    """
    named = _named(name)
    if named is not None:
        return named, "by its name"
    if len(values) <= CODES:
        return "id", "few values"
    if _share(counts, (values >= EXACT) | (values <= -EXACT)) >= 0.5:
        return "id", "hashes of 64 bits"
    if values.min() < -1:  # -1 alone stands for unknown
        return "number", "negative values"
    if thins_out(values) and (_share(counts, values == values.min()) >= 0.1 or _share(counts, values % 5 == 0) >= 0.8):
        return "number", "values that thin out, as amounts do"
    return "both", "ids or a quantity?"


def thins_out(values: np.ndarray) -> bool:
    """Whether values lie four times as far apart at their upper end as in their lower half, or farther.

    >>> thins_out(np.arange(1000)), thins_out(np.arange(1000) ** 4)
    (False, True)
    """
    gaps = np.diff(np.sort(values).astype(np.float64))
    if len(gaps) < 8:
        return False
    return bool(gaps[len(gaps) * 3 // 4 :].mean() >= 4 * gaps[: len(gaps) // 2].mean())


def words_of(name: str) -> list[str]:
    """The words of a column's name, in small letters.

    >>> words_of("hours-per-week"), words_of("userId2"), words_of("wage per hour")
    (['hours', 'per', 'week'], ['user', 'id'], ['wage', 'per', 'hour'])
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", spaced)]


def _named(name: str) -> Meaning | None:
    words = words_of(name)
    if not words:
        return None
    last = words[-1]
    if last in ("id", "ids", "code", "key"):
        return "id"
    if len(words) > 1 and (COUNTED_FIRST.fullmatch(words[0]) or "per" in words):
        return "number"
    if _is_one_of(QUANTITY_WORDS, last) or last.endswith("wgt"):
        return "number"
    return "id" if _is_one_of(ID_WORDS, last) else None


def _is_one_of(words: re.Pattern[str], word: str) -> bool:
    return words.fullmatch(word) is not None or words.fullmatch(word.removesuffix("s")) is not None


def _share(counts: np.ndarray, chosen: np.ndarray) -> float:
    return float(counts[chosen].sum() / counts.sum())
