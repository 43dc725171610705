"""Memory of decoded chunks, taken again: fresh pages cost several times what decompression into known ones does."""

from __future__ import annotations

import math
import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_LEAST: Final = 2**20  # bytes; what is smaller comes out of memory that the process has already
_MOST: Final = 2**27  # bytes that are kept while nobody uses them


class _Lease:
    """What arrays on a piece of memory refer to, whatever views are made of them: the memory returns with the last.

    Parameters
    ----------
    memory : (byte,) uint8
    pool : where it returns to
    """

    def __init__(self, memory: npt.NDArray[np.uint8], pool: Buffers) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._pool = memory, pool

    def __del__(self) -> None:
        self._pool.take_back(self._memory)


class Buffers:
    """Memory for large arrays, which is kept for the next one when the last reference to an array is gone."""

    def __init__(self) -> None:
        self._idle: list[npt.NDArray[np.uint8]] = []
        # Reentrant: the garbage collector may end a lease of the thread that holds the lock.
        self._lock = threading.RLock()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of any content, as from `numpy.empty`."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if size < _LEAST:
            return np.empty(shape, kind)
        with self._lock:
            place = next((n for n, memory in enumerate(self._idle) if memory.nbytes == size), None)
            memory = None if place is None else self._idle.pop(place)
        lease: Any = _Lease(np.empty(size, np.uint8) if memory is None else memory, self)
        return np.asarray(lease).view(kind).reshape(shape)

    def take_back(self, memory: npt.NDArray[np.uint8]) -> None:
        """Keep memory that no array refers to any more, in place of what has lain longest."""
        with self._lock:
            self._idle.append(memory)
            while sum(kept.nbytes for kept in self._idle) > _MOST:
                self._idle.pop(0)


BUFFERS: Final = Buffers()
"""Those of this process."""
