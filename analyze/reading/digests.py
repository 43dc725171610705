"""Whether what was read of a store is what it captured in that place, or was created with."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.store.identity import digest
from capture.store.location import Location
from capture.store.schema import CHECKSUMS, DIGESTED

Place = tuple[int, ...]

_KEPT: Final = 256
"""Sequences of variables whose checksums are remembered at one time; they are read again where that is too few."""

_MOST_LISTED: Final = 2**26  # bytes of the list of files


class Digests:
    """The digests of a store, held against what readers see. Shared by threads; another process has its own.

    Parameters
    ----------
    rows : the variable `digest`, (sequence, variable) uint64, read on demand
    store : its `store_id`
    finished : whether all sequences are captured; else those without a digest are let pass
    """

    def __init__(self, rows: Any, store: str, finished: bool) -> None:
        self._rows, self._store, self._finished = rows, store, finished
        self._known: dict[int, npt.NDArray[np.uint64]] = {}
        self._seen: dict[tuple[str, int], dict[Place, bytes]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the lock, and what was seen."""
        return Digests, (self._rows, self._store, self._finished)

    def seen(self, name: str, sequence: int) -> Mapping[Place, bytes]:
        """Checksums of the chunks of a sequence that went by."""
        with self._lock:
            return dict(self._seen.get((name, sequence), {}))

    def agree(self, name: str, sequence: int, checksums: Mapping[Place, bytes], chunks: int) -> bool:
        """Take note of chunks; False where all of a sequence are known then, and are not the store's own.

        Parameters
        ----------
        name : variable
        sequence : of the chunks
        checksums : four bytes behind each chunk, by its place
        chunks : how many the variable has of a sequence
        """
        with self._lock:
            seen = self._seen.pop((name, sequence), {})
            seen.update(checksums)
            if chunks > 1:
                self._seen[name, sequence] = seen
                if len(self._seen) > _KEPT:
                    del self._seen[next(iter(self._seen))]
        if len(seen) < chunks:
            return True
        if sequence not in self._known:
            self._known[sequence] = np.asarray(self._rows[sequence])
        expected = int(self._known[sequence][DIGESTED.index(name)])
        if expected == 0 and not self._finished:
            return True
        return expected == digest(self._store, name, sequence, (seen[place] for place in sorted(seen)))


class Listed:
    """The files that are written when a store is created, held against the list that was written with them.

    Parameters
    ----------
    location : of the store
    """

    def __init__(self, location: Location) -> None:
        self._location = location

    @cached_property
    def _digests(self) -> dict[str, str] | None:
        (content,) = self._location.read([CHECKSUMS], _MOST_LISTED)
        if content is None:
            return None
        lines = (line.partition("  ") for line in content.decode().splitlines())
        return {name: digest for digest, _, name in lines}

    def agree(self, key: str, content: bytes) -> bool:
        """Whether a file is the one that the store was created with; True where no list is there to tell."""
        return self._digests is None or self._digests.get(key) == hashlib.sha256(content).hexdigest()
