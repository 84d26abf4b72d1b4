import gc
import threading

import numpy as np
import torch

from pipeline.buffers import Buffers


def test_memory_is_used_again_if_it_fits() -> None:
    buffers = Buffers()
    large, small = buffers.empty((100, 7), np.float32), buffers.empty((10,), np.int64)
    assert large.shape == (100, 7)
    assert large.dtype == np.float32
    places = {"large": large.ctypes.data, "small": small.ctypes.data}
    del large, small
    again = buffers.empty((9,), np.int64)
    assert again.ctypes.data == places["small"]  # not the large one, which would be wasted on it
    other = buffers.empty((5, 140), np.int32)
    assert other.ctypes.data == places["large"]
    assert not np.shares_memory(buffers.empty((9,), np.int64), again)


def test_views_and_tensors_keep_their_memory() -> None:
    buffers = Buffers()
    array = buffers.empty((50,), np.int64)
    place = array.ctypes.data
    tensor = torch.from_numpy(array[10:]).view(torch.int32)[5:]
    del array
    other = buffers.empty((50,), np.int64)
    assert other.ctypes.data != place
    del tensor
    assert buffers.empty((50,), np.int64).ctypes.data == place


def test_nothing_is_handed_out_twice() -> None:
    buffers = Buffers()
    for _ in range(3):
        arrays = [buffers.empty((50,), np.int64) for _ in range(5)]
        for number, array in enumerate(arrays):
            array.fill(number)
        assert [array.tolist() for array in arrays] == [[number] * 50 for number in range(5)]


def test_memory_comes_back_from_any_thread_and_after_the_buffers_are_gone() -> None:
    buffers = Buffers()
    held = [buffers.empty((50,), np.int64)]
    place = held[0].ctypes.data
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    last = buffers.empty((50,), np.int64)
    assert last.ctypes.data == place
    del buffers
    gc.collect()
    last.fill(7)
    assert last.tolist() == [7] * 50


def test_memory_that_is_too_small_is_let_go() -> None:
    buffers = Buffers()
    for size in range(1, 200):
        buffers.empty((size,), np.int64)
    assert len(buffers._free) + len(buffers._returned) == 1


def test_an_array_without_values() -> None:
    assert Buffers().empty((0, 3), np.float32).shape == (0, 3)
