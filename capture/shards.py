"""Zarr v3 shards written front to back, so that a shard never has to fit into memory.

zarr-python assembles a whole shard in memory before it writes it. One shard here is every norm input of one sequence,
gigabytes for a large model, so the bytes of each chunk go to disk as they come and the index follows at the end. What
is written is the `sharding_indexed` codec of the Zarr v3 specification (index at the end, little-endian uint64 pairs of
offset and length, CRC-32C behind the index) and is read by any implementation.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.blosc import Blosc

from capture.schema import OutliersError

COMPRESSION: dict[str, int | None] = {"fast": 512 * 1024, "small": 2 * 1024 * 1024, "none": None}
"""Bytes of the blocks that Blosc shuffles, behind each name of `--compression`; None does not compress.

Shuffle turns a block into four planes: one of sign and exponent, which compresses, and three of the mantissa, which are
zero or hardly do. Zstandard has one Huffman table for each 128 KiB that it is given, so a block is a multiple of four
times that, and no table serves two planes. Larger blocks save some tables.
"""

LEVEL = 1
"""Of Zstandard. Activations hardly repeat, and the matches that higher levels find cost more than they save."""

MISSING = np.iinfo(np.uint64).max
"""Offset and length that the index of a shard has for a chunk that is not there."""

_CHECKSUM_BYTES = 4
_RESIDUE = 0x48674BC7
"""CRC-32C of any bytes with their own CRC-32C, little-endian, behind them."""
_BLOSC_HEADER = 16


def encode(array: npt.NDArray[Any], compression: str) -> bytes:
    """Bytes of one chunk: little-endian values, compressed, with their CRC-32C behind them."""
    values = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    block = COMPRESSION[compression]
    if block is None:
        payload = values.tobytes()
    else:
        payload = bytes(Blosc(cname="zstd", clevel=LEVEL, shuffle=Blosc.SHUFFLE, blocksize=block).encode(values))
    return payload + _checksum(payload)


def decode(
    encoded: bytes,
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    *,
    compressed: bool,
    empty: Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]] = np.empty,
) -> npt.NDArray[Any]:
    """The values of one chunk; the inverse of `encode`.

    Parameters
    ----------
    encoded : bytes of the chunk, its checksum behind them
    dtype, shape : of the chunk, from the metadata
    compressed : whether by Blosc
    empty : makes the array that the values go into

    Raises
    ------
    ValueError
        The bytes do not match their checksum, or are not those of a chunk of this dtype and shape.
    """
    payload = checked_payload(encoded)
    kind = np.dtype(dtype).newbyteorder("<")
    size = math.prod(shape) * kind.itemsize
    if not compressed:
        known = len(payload) == size
    else:
        # Blosc believes its header: a stranger's may lie.
        sizes = np.frombuffer(payload[:_BLOSC_HEADER], "<u4") if len(payload) >= _BLOSC_HEADER else np.zeros(4)
        known = (int(sizes[1]), int(sizes[3])) == (size, len(payload))
    if not known:
        raise ValueError("a chunk has another size than the metadata say")
    values = empty(shape, kind)
    if compressed:
        Blosc().decode(payload, out=values)
    else:
        values[...] = np.frombuffer(payload, values.dtype).reshape(shape)
    return values


def decode_strings(encoded: bytes, count: int) -> list[str]:
    """The strings of one chunk: Zarr's `vlen-utf8`, then CRC-32C.

    Raises
    ------
    ValueError
        The bytes do not match their checksum, are not so many strings, or are no UTF-8.
    """
    payload = checked_payload(encoded)
    place, texts = 4, []
    if len(payload) < place or int.from_bytes(payload[:place], "little") != count or 4 * count > len(payload):
        raise ValueError(f"a chunk has not the {count} strings that the metadata say")
    for _ in range(count):
        length = int.from_bytes(payload[place : place + 4], "little")
        if place + 4 + length > len(payload):
            raise ValueError("a string is longer than the chunk that it stands in")
        texts.append(str(payload[place + 4 : place + 4 + length], "utf-8"))
        place += 4 + length
    if place != len(payload):
        raise ValueError("a chunk goes on behind its last string")
    return texts


def checked_payload(encoded: bytes) -> memoryview:
    """Bytes of a chunk without the checksum behind them.

    Raises
    ------
    ValueError
        They do not match it.
    """
    if not _sound(encoded):
        raise ValueError("the values do not match their checksum")
    return memoryview(encoded)[:-_CHECKSUM_BYTES]


def _sound(encoded: bytes) -> bool:
    """Whether bytes match the checksum behind them."""
    # Of all at once, for the library takes no view, and a copy of a large chunk costs more than its checksum.
    return len(encoded) >= _CHECKSUM_BYTES and google_crc32c.value(encoded) == _RESIDUE


def _checksum(payload: bytes) -> bytes:
    return int(google_crc32c.value(payload)).to_bytes(_CHECKSUM_BYTES, "little")


class AtomicFile:
    """A file that appears under its name only when it is whole and on the disk.

    Use as a context manager; leaving the block by an exception removes what was written.

    Parameters
    ----------
    path : its name
    cached : leave the bytes in the system's page cache. A capture writes more than it could hold, reads nothing of it
        again, and runs faster where the pages of one sequence serve the next.
    """

    def __init__(self, path: Path, *, cached: bool = True) -> None:
        self._path = path
        self._cached = cached
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._file = self._partial.open("wb")

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)

    def commit(self) -> None:
        """Make the bytes durable, then give the file its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if not self._cached and hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._file.close()
        try:
            os.replace(self._partial, self._path)
        except FileNotFoundError as error:
            raise OutliersError(
                f"another capture writes {self._path} too and took its unfinished file away; let one of them finish, "
                "or give each its own --part"
            ) from error
        sync_folder(self._path.parent)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path, name: str) -> None:
    """Remove what killed writers of the file `name` left behind."""
    for leftover in folder.glob(f".{name}.*.partial"):
        leftover.unlink(missing_ok=True)


class ShardFile:
    """One shard, its chunks appended in any order.

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

    def append(self, position: tuple[int, ...], encoded: bytes) -> None:
        """Append one encoded chunk; `position` counts chunks inside the shard."""
        self._file.write(encoded)
        self._index[position] = (self._offset, len(encoded))
        self._offset += len(encoded)

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
        self._file.write(index + _checksum(index))
        self._file.commit()

    def discard(self) -> None:
        """Remove what was written."""
        self._file.discard()


def index_bytes(grid: tuple[int, ...]) -> int:
    """Length of the index of a shard, its checksum included."""
    return math.prod(grid) * 16 + _CHECKSUM_BYTES


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
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - size))
        tail = file.read(size)
    return parse_index(tail, end, grid, f"{path.parent.name}/{path.name}")


def parse_index(tail: bytes, end: int, grid: tuple[int, ...], key: str) -> npt.NDArray[np.uint64]:
    """Index of a shard from the last `index_bytes` of its file, which has `end` bytes; else as `read_index`."""
    if len(tail) < index_bytes(grid):
        raise ValueError(f"file {key} is cut short: it has {end} bytes")
    if not _sound(tail):
        raise ValueError("the index of the file does not match its checksum")
    return np.frombuffer(tail[:-_CHECKSUM_BYTES], dtype="<u8").reshape(*grid, 2)


def read_chunk(path: Path, offset: int, length: int) -> bytes:
    """One chunk of a shard file, still encoded, of which the index says where it is.

    Raises
    ------
    ValueError
        The file ends before the chunk does.
    """
    with path.open("rb") as file:
        if offset + length > os.fstat(file.fileno()).st_size or length < _CHECKSUM_BYTES:
            raise ValueError(f"file {path.parent.name}/{path.name} is cut short")
        file.seek(offset)
        return file.read(length)


def read_chunks(path: Path, grid: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Every chunk present in a shard file, still encoded, with its position inside the shard."""
    index = read_index(path, grid)
    for position in np.ndindex(*grid):
        offset, length = (int(number) for number in index[position])
        if offset != MISSING:
            yield position, read_chunk(path, offset, length)
