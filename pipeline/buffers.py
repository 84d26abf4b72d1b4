"""Memory that is used again, because fresh pages from the system cost more than what is written to them."""

from __future__ import annotations

import math
import weakref
from collections import deque
from threading import Lock

import numpy as np
from numpy.typing import DTypeLike


class Buffers:
    """Hands out uninitialised arrays, to any thread; their memory is used again when the last view of it is gone.

    >>> buffers = Buffers()
    >>> array = buffers.empty((2, 3), np.int32)
    >>> place, view = array.ctypes.data, array[1:]
    >>> del array
    >>> other = buffers.empty((5,), np.int32)
    >>> del view
    >>> again = buffers.empty((5,), np.int32)
    >>> other.ctypes.data == place, again.ctypes.data == place
    (False, True)
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._returned: deque[np.ndarray] = deque()  # a finalizer may run at any moment, so it takes no lock
        self._lock = Lock()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:
            while self._returned:
                self._free.append(self._returned.popleft())
            self._free.sort(key=len)
            place = next((place for place, memory in enumerate(self._free) if len(memory) >= size), None)
            if place is not None and len(self._free[place]) <= 4 * size:
                memory = self._free.pop(place)
            else:
                if place is None and self._free:
                    self._free.pop()  # too small, and so would it be for the next block
                memory = np.empty(size + size // 4 + 1, np.uint8)  # blocks differ a little
        # An array over a memoryview, unlike one that is a view of an array, stays the base of all views of it.
        lent = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(lent, self._returned.append, memory).atexit = False
        return lent[:size].view(dtype).reshape(shape)
