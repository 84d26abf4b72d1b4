import numpy as np

from pipeline.buffers import Buffers


def test_memory_is_used_again_if_it_fits() -> None:
    buffers = Buffers()
    large, small = buffers.empty((100, 7), np.float32), buffers.empty((10,), np.int64)
    assert large.shape == (100, 7)
    assert large.dtype == np.float32
    buffers.give_back([large, small])
    again = buffers.empty((9,), np.int64)
    assert np.shares_memory(again, small)  # not the large one, which would be wasted on it
    assert np.shares_memory(buffers.empty((5, 140), np.int32), large)
    assert not np.shares_memory(buffers.empty((9,), np.int64), again)


def test_nothing_is_handed_out_twice() -> None:
    buffers = Buffers()
    buffers.give_back([buffers.empty((50,), np.int64) for _ in range(3)])
    arrays = [buffers.empty((50,), np.int64) for _ in range(5)]
    for number, array in enumerate(arrays):
        array.fill(number)
    assert [array.tolist() for array in arrays] == [[number] * 50 for number in range(5)]


def test_memory_that_is_too_small_is_let_go() -> None:
    buffers = Buffers()
    for size in range(1, 200):
        buffers.give_back([buffers.empty((size,), np.int64)])
    assert len(buffers._free) == 1
