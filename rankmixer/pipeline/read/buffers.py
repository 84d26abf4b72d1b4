"""Memory that is used again, because fresh pages from the system cost more than what is written to them."""

from __future__ import annotations

import math
import mmap
import weakref
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

_ALIGNED = 64  # bytes: a cache line, and the widest register
_HUGE = 1 << 22  # bytes: pieces from this size on ask for huge pages
_LOOK = 16  # pieces lent while none of them needed this one: it is let go


class Buffers:
    """Pieces of memory, each for arrays that live and die together, such as those of a block; for any thread.

    All pieces are as large as the largest need so far: what of them is never written to costs nothing. So what comes
    back fits what comes next, and memory is that of the most pieces that were lately out at a time. They are mapped,
    not allocated: in a heap between short-lived arrays they would leave holes.

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
        self._size = 1 << 16
        self._free: list[mmap.mmap] = []  # a finalizer may run at any moment, so it takes no lock
        self._lent = self._spare = 0
        self._lock = Lock()

    def arena(self) -> Arena:
        """For arrays whose memory comes back when the last view of all of them is gone."""
        return Arena(self)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An uninitialised array alone."""
        return self.arena().empty(shape, dtype)

    def lend(self, size: int) -> np.ndarray:
        """A piece of at least `size` bytes, (N,) uint8; it comes back by itself."""
        with self._lock:
            if size > self._size:
                self._size = size + size // 4  # blocks differ a little
            self._free[:] = [memory for memory in self._free if len(memory) >= self._size]
            while self._free:
                memory = self._free.pop()
                if len(memory) >= self._size:  # a smaller one may have come back this moment
                    break
            else:
                memory = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                if self._size >= _HUGE:
                    with suppress(OSError):  # a kernel without them
                        memory.madvise(mmap.MADV_HUGEPAGE)
            self._lent += 1
            self._spare = min(self._spare, len(self._free))
            if self._lent % _LOOK == 0:
                del self._free[: self._spare]
                self._spare = len(self._free)
        # An array over such an object, unlike one that is a view of an array, stays the base of all views of it.
        lent = np.frombuffer(memory, np.uint8)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent


class Arena:
    """Arrays one after the other in one piece of memory; in several until the pieces are as large as such arenas."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._piece = np.empty(0, np.uint8)
        self._used = self._total = 0

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An uninitialised array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self._total += size + _ALIGNED
        if self._used + size > len(self._piece):
            self._piece, self._used = self._buffers.lend(self._total), 0
        array = self._piece[self._used : self._used + size].view(dtype).reshape(shape)
        self._used += -(-size // _ALIGNED) * _ALIGNED
        return array


class Memory(NamedTuple):
    """Where an epoch's blocks are, and what is thrown away while they are made."""

    blocks: Buffers
    scratch: Buffers
