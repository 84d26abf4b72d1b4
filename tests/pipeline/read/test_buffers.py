import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from rankmixer.pipeline.read.buffers import Buffers


def test_memory_is_used_again() -> None:
    buffers = Buffers()
    array = buffers.empty((100, 7), np.float32)
    assert array.shape == (100, 7)
    assert array.dtype == np.float32
    place = array.ctypes.data
    del array
    again = buffers.empty((9,), np.int64)
    assert again.ctypes.data == place
    assert not np.shares_memory(buffers.empty((9,), np.int64), again)


def test_arrays_of_an_arena_share_a_piece_that_comes_back_with_the_last_of_them() -> None:
    buffers = Buffers()
    places = []
    for _ in range(4):  # until a piece is as large as what is asked for together
        arena = buffers.arena()
        arrays = [arena.empty(shape, np.int32) for shape in ((3, 5), (0, 2), (30_000,), (7,))]
        places.append([array.ctypes.data for array in arrays])
        assert all(place % 64 == 0 for place in places[-1])
        for number, array in enumerate(arrays):
            array.fill(number)
        assert [set(array.ravel().tolist()) for array in arrays] == [{0}, set(), {2}, {3}]
        del arena
        last = arrays.pop()
        del arrays, array
        assert not np.shares_memory(buffers.empty((3, 5), np.int32), last)
        del last
    assert places[-1] == places[-2]
    assert places[-1] == sorted(places[-1])


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
        buffers.empty((1000 * size,), np.int64)
    (memory,) = buffers._free
    assert 8 * 199_000 <= len(memory) < 16 * 199_000


def test_memory_that_is_not_needed_any_more_is_let_go() -> None:
    buffers = Buffers()
    held = [buffers.empty((9,), np.int64) for _ in range(20)]
    held.clear()
    for _ in range(50):
        held[:] = [buffers.empty((9,), np.int64)]
    assert len(buffers._free) <= 2


def test_threads_get_what_they_ask_for_while_sizes_grow_and_pieces_come_back() -> None:
    buffers = Buffers()

    def ask(number: int) -> int:
        return sum(len(buffers.empty((1000 * size + number,), np.int64)) for size in range(300))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [
            sum(1000 * size + number for size in range(300)) for number in range(4)
        ]


def test_an_array_without_values() -> None:
    assert Buffers().empty((0, 3), np.float32).shape == (0, 3)
