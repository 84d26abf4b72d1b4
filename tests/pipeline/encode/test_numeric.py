import decimal

import numpy as np
import pyarrow as pa
import pytest

from rankmixer.pipeline.encode.numeric import bucketed, dense, to_numpy
from rankmixer.pipeline.schema.features import Number


@pytest.mark.parametrize(
    "array",
    [
        pa.array([3, None, 0], pa.int8()),
        pa.array([3, None, 0], pa.uint64()),
        pa.array([3, None, 0], pa.float32()),
        pa.array([3, float("nan"), 0], pa.float64()),
        pa.array(np.array([3, np.nan, 0], np.float16)),
        pa.array([decimal.Decimal("3.00"), None, decimal.Decimal("0.00")]),
    ],
    ids=lambda array: str(array.type),
)
def test_any_number_with_nulls(array: pa.Array) -> None:
    np.testing.assert_array_equal(to_numpy(array).astype(np.float64), [3, np.nan, 0])


def test_numbers_without_nulls_are_not_copied() -> None:
    array = pa.array([1.5, 2.5], pa.float32())
    values = dense(to_numpy(array), Number(kind="number"))
    assert values.dtype == np.float32
    assert values.ctypes.data == array.buffers()[1].address
    assert to_numpy(pa.array([1, 2], pa.int16())).dtype == np.int16


def test_buckets_of_boundaries() -> None:
    assert bucketed(np.array([-5, 18, 17, 99, 25, 35], np.int8), (18, 25, 35)).tolist() == [0, 1, 0, 3, 2, 3]


def test_transform_then_standardise() -> None:
    raw = np.array([0.0, 9.0, -3.0])
    np.testing.assert_allclose(dense(raw, Number(kind="number", transform="log1p"))[:2], np.log1p(raw[:2]), rtol=1e-6)
    standardised = dense(raw, Number(kind="number", transform="log1p", standardise=(2.0, 4.0)))
    np.testing.assert_allclose(standardised[:2], (np.log1p(raw[:2]) - 2) / 4, rtol=1e-6)
    assert np.isnan(standardised[2])
    assert raw.tolist() == [0.0, 9.0, -3.0]


def test_standardising_a_large_mean_keeps_the_digits() -> None:
    stamps = np.array([1_700_000_000, 1_700_000_007], np.int64)
    assert dense(stamps, Number(kind="number", standardise=(1_700_000_000, 7))).tolist() == [0.0, 1.0]
