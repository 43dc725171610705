"""Zarr v3 shards written front to back, so that a shard never has to fit into memory.

zarr-python assembles a whole shard in memory before it writes it. One shard here is every norm input of one sequence,
gigabytes for a large model, so the bytes of each chunk go to disk as they come and the index follows at the end. What
is written is the `sharding_indexed` codec of the Zarr v3 specification (index at the end, little-endian uint64 pairs of
offset and length, CRC-32C behind the index) and is read by any implementation.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capture.store.chunks import CHECKSUM_BYTES, OVERHEAD, checksum, is_sound
from capture.store.files import AtomicFile, open_plain, remove_partials
from capture.store.planes import Piece

MISSING = np.iinfo(np.uint64).max
"""Offset and length that the index of a shard has for a chunk that is not there."""


class ShardFile:
    """One shard, its chunks appended in any order and by any thread.

    Parameters
    ----------
    path : file of the shard
    grid : number of chunks along each dimension of the shard
    cached : as for `AtomicFile`
    """

    def __init__(self, path: Path, grid: tuple[int, ...], *, cached: bool = True) -> None:
        remove_partials(path.parent, path.name)
        self._file = AtomicFile(path, cached=cached)
        self._index = np.full((*grid, 2), MISSING, dtype="<u8")
        self._offset = 0
        self._lock = threading.Lock()

    def append(self, position: tuple[int, ...], encoded: bytes | Sequence[Piece]) -> None:
        """Append one encoded chunk, whole or in pieces; `position` counts chunks inside the shard."""
        pieces: Sequence[Piece] = [encoded] if isinstance(encoded, bytes) else encoded
        length = sum(map(len, pieces))
        with self._lock:  # for the place alone: several threads write faster than one
            offset, self._offset = self._offset, self._offset + length
        self._file.write_at(offset, pieces)
        self._index[position] = (offset, length)

    def commit(self) -> None:
        """Write the index and give the shard its name, durably.

        Raises
        ------
        ValueError
            A chunk was never appended: zarr would read it as fill values.
        """
        if (self._index == MISSING).any():
            self.discard()
            raise ValueError("a shard must hold every one of its chunks before it is committed")
        index = self._index.tobytes()
        self._file.write_at(self._offset, [index, checksum(index)])
        self._file.commit()

    def discard(self) -> None:
        """Remove what was written."""
        self._file.discard()


def index_bytes(grid: tuple[int, ...]) -> int:
    """Length of the index of a shard, its checksum included."""
    return math.prod(grid) * 16 + CHECKSUM_BYTES


def read_index(path: Path, grid: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """Index of a shard file.

    Returns
    -------
    array of shape (*grid, 2), uint64: offset and length in bytes of each chunk; the largest uint64 where it is missing

    Raises
    ------
    ValueError
        The file is too short, or the index does not match its checksum.
    """
    size = index_bytes(grid)
    with open_plain(path) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - size))
        tail = file.read(size)
    return parse_index(tail, end, grid, f"{path.parent.name}/{path.name}")


def parse_index(tail: bytes, end: int, grid: tuple[int, ...], key: str) -> npt.NDArray[np.uint64]:
    """Index of a shard from the last `index_bytes` of its file, which has `end` bytes; else as `read_index`."""
    if len(tail) < index_bytes(grid):
        raise ValueError(f"file {key} is cut short: it has {end} bytes")
    if not is_sound(tail):
        raise ValueError("the index of the file does not match its checksum")
    return np.frombuffer(tail[:-CHECKSUM_BYTES], dtype="<u8").reshape(*grid, 2)


def read_chunk(path: Path, offset: int, length: int) -> bytes:
    """One chunk of a shard file, still encoded, of which the index says where it is.

    Raises
    ------
    ValueError
        The file ends before the chunk does.
    """
    with open_plain(path) as file:
        if offset + length > os.fstat(file.fileno()).st_size or length < CHECKSUM_BYTES:
            raise ValueError(f"file {path.parent.name}/{path.name} is cut short")
        file.seek(offset)
        return file.read(length)


def read_chunks(path: Path, grid: tuple[int, ...], most: int) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Every chunk present in a shard file, still encoded, with its position inside the shard.

    Raises
    ------
    ValueError
        As `read_index` and `read_chunk`, or a chunk has more bytes than `most`, which it could have decoded.
    """
    index = read_index(path, grid)
    for position in np.ndindex(*grid):
        offset, length = (int(number) for number in index[position])
        if offset != MISSING and length > most + OVERHEAD:
            raise ValueError(f"the index of {path.parent.name}/{path.name} says what cannot be")
        if offset != MISSING:
            yield position, read_chunk(path, offset, length)
