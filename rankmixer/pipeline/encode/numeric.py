"""Numeric columns -> float arrays, as the schema says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rankmixer.pipeline.schema.features import Number


def to_numpy(array: pa.Array) -> np.ndarray:
    """(N,) of the column's own width; null becomes NaN.

    >>> to_numpy(pa.array([True, None]))
    array([ 1., nan])
    """
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.float64())
    return array.to_numpy(zero_copy_only=False)


def bucketed(values: np.ndarray, boundaries: tuple[float, ...]) -> np.ndarray:
    """(N,) int64: how many boundaries are not above the value.

    >>> bucketed(np.array([17.9, 18.0, 40.0]), (18, 25, 35))
    array([0, 1, 3])
    """
    return np.searchsorted(np.array(boundaries), values, side="right")


def dense(values: np.ndarray, feature: Number) -> np.ndarray:
    """(N,) float32: transformed, then standardised; not finite where that is impossible.

    >>> dense(np.array([0.0, -2.0]), Number(kind="number", transform="log1p", standardise=(1.0, 2.0)))
    array([-0.5,  nan], dtype=float32)
    """
    assert feature.is_learnt, "learnt before"
    with np.errstate(all="ignore"):
        if isinstance(feature.standardise, tuple):
            mean, std = feature.standardise
            values = values.astype(np.float64)  # a large mean would cost float32 its digits
            if feature.transform == "log1p":
                np.log1p(values, out=values)
            values -= mean
            values /= std
            return values.astype(np.float32)
        single = values.astype(np.float32, copy=False)
        return np.log1p(single) if feature.transform == "log1p" else single


def wanted(feature: Number, is_missing: bool) -> tuple[str, str]:
    """What an error about a number that is not finite says was expected, and what to do."""
    expected = "a number above -1, because of `log1p`" if feature.transform == "log1p" else "a finite number"
    return expected, "Set `default`, or mend the file." if is_missing else "Mend the file."
