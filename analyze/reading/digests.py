"""Whether what was read of a sequence is what the store captured for it: told once all of it went by."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.store.chunks import CHECKSUM_BYTES
from capture.store.identity import digest
from capture.store.schema import DIGESTED

_IN_PART: Final = 256
"""Sequences that may be read in part at one time; of those that were begun before, nothing is told."""


class Digests:
    """The digests of a store, held against what readers see. Shared by threads; another process has its own.

    Parameters
    ----------
    rows : the variable `digest`, (sequence, variable) uint64, read on demand
    store : its `store_id`
    """

    def __init__(self, rows: Any, store: str) -> None:
        self._rows, self._store = rows, store
        self._known: dict[int, npt.NDArray[np.uint64]] = {}
        self._parts: dict[tuple[str, int], dict[tuple[int, ...], bytes]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the lock, and what is read in part."""
        return Digests, (self._rows, self._store)

    def agree(self, name: str, sequence: int, place: Sequence[int], encoded: bytes, chunks: int) -> bool:
        """Take note of a chunk; False where it completes a sequence that is not the store's own.

        Parameters
        ----------
        name : variable
        sequence, place : of the chunk
        encoded : its bytes, checksum included
        chunks : how many the variable has of a sequence
        """
        key = name, sequence
        with self._lock:
            parts = self._parts.pop(key, {})
            parts[tuple(place)] = encoded[-CHECKSUM_BYTES:]
            if len(parts) < chunks:
                self._parts[key] = parts
                if len(self._parts) > _IN_PART:
                    del self._parts[next(iter(self._parts))]
                return True
        if sequence not in self._known:
            self._known[sequence] = np.asarray(self._rows[sequence])
        expected = int(self._known[sequence][DIGESTED.index(name)])
        # 0 where the sequence is not captured yet.
        return expected in (0, digest(self._store, name, sequence, (parts[place] for place in sorted(parts))))
