"""Memory for blocks that is used again, because fresh pages from the system cost more than what is written to them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from threading import Lock

import numpy as np
from numpy.typing import DTypeLike


class Buffers:
    """Hands out uninitialised arrays and takes them back, from any thread.

    >>> buffers = Buffers()
    >>> array = buffers.empty((2, 3), np.int32)
    >>> buffers.give_back([array])
    >>> np.shares_memory(buffers.empty((5,), np.int32), array)
    True
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = Lock()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:
            self._free.sort(key=len)
            place = next((place for place, memory in enumerate(self._free) if len(memory) >= size), None)
            if place is not None and len(self._free[place]) <= 4 * size:
                memory = self._free.pop(place)
            else:
                if place is None and self._free:
                    self._free.pop()  # too small, and so would it be for the next block
                memory = np.empty(size + size // 4, np.uint8)  # blocks differ a little
        return memory[:size].view(dtype).reshape(shape)

    def give_back(self, arrays: Iterable[np.ndarray]) -> None:
        """Nobody may use these arrays, or views of them, any more."""
        with self._lock:
            self._free += [array.base for array in arrays if array.base is not None]
