"""Chunks of a sharded array read straight from their files, as fast as threads can decompress them.

zarr-python hands every chunk from thread to thread by way of one event loop, which costs half of the speed of two
cores. The layout of format version 1 is simple enough to be read here; whatever has another is left to zarr.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs.blosc import Blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec

NO_CHUNK: Final = np.iinfo(np.uint64).max
_CHECKSUM_BYTES: Final = 4
_BLOSC_HEADER: Final = 16


@dataclass(frozen=True)
class Layout:
    """How the chunks of an array are encoded.

    Parameters
    ----------
    chunk : shape of a chunk
    dtype : of its values
    compressed : whether they are compressed by Blosc
    """

    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    compressed: bool


def layout(array: zarr.Array[Any]) -> Layout | None:
    """Layout of an array whose shards are those of format version 1; None for any other."""
    codecs: tuple[Any, ...] = getattr(array.metadata, "codecs", ())
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        return None
    sharding = codecs[0]
    plain = (BytesCodec(endian="little"), Crc32cCodec())
    inner = list(sharding.codecs)
    middle = inner[1:-1]
    if sharding.index_codecs != plain or sharding.index_location.value != "end" or (inner[0], inner[-1]) != plain:
        return None
    if len(middle) > 1 or not all(isinstance(codec, BloscCodec) for codec in middle):
        return None
    return Layout(array.chunks, np.dtype(array.dtype).newbyteorder("<"), bool(middle))


def read_index(file: Path, grid: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """Index of a shard.

    Returns
    -------
    array of shape (*grid, 2), uint64: offset and length in bytes of each chunk; `NO_CHUNK` where it is missing

    Raises
    ------
    ValueError
        The file is too short, or the index does not match its checksum.
    """
    size = int(np.prod(grid)) * 16
    with file.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) < size + _CHECKSUM_BYTES:
            raise ValueError(f"file {file.parent.name}/{file.name} is cut short")
        stream.seek(-size - _CHECKSUM_BYTES, os.SEEK_END)
        index = _checked(stream, size, "the index of the file")
    return np.frombuffer(index, dtype="<u8").reshape(*grid, 2)


def read_chunk(file: Path, offset: int, length: int, layout: Layout) -> npt.NDArray[Any]:
    """Values of one chunk, of which the index says where it is.

    Raises
    ------
    ValueError
        The bytes are not those of a chunk of this layout, or do not match their checksum.
    """
    with file.open("rb") as stream:
        if offset + length > os.fstat(stream.fileno()).st_size or length < _CHECKSUM_BYTES:
            raise ValueError(f"file {file.parent.name}/{file.name} is cut short")
        stream.seek(offset)
        payload = _checked(stream, length - _CHECKSUM_BYTES, "a chunk")
    values = np.empty(layout.chunk, layout.dtype)
    if not layout.compressed:
        known = len(payload) == values.nbytes
    else:
        # Blosc believes its header: a stranger's may lie.
        sizes = np.frombuffer(payload[:_BLOSC_HEADER], "<u4") if len(payload) >= _BLOSC_HEADER else np.zeros(4)
        known = (sizes[1], sizes[3]) == (values.nbytes, len(payload))
    if not known:
        raise ValueError("a chunk has another size than the metadata say")
    if layout.compressed:
        Blosc().decode(payload, out=values)
    else:
        values[...] = np.frombuffer(payload, layout.dtype).reshape(layout.chunk)
    return values


def _checked(stream: BinaryIO, length: int, what: str) -> bytes:
    """Bytes that have their CRC-32C behind them."""
    data, checksum = stream.read(length), stream.read(_CHECKSUM_BYTES)
    if int(google_crc32c.value(data)).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise ValueError(f"{what} does not match its checksum")
    return data
