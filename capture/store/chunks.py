"""One chunk: compressed, with its checksum, and back."""

from __future__ import annotations

import math
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.blosc import Blosc

from capture.store.planes import FEWEST_VALUES, Piece, blosc_frame

COMPRESSION: dict[str, int | None] = {"fast": 2 * 1024 * 1024, "small": 2 * 1024 * 1024, "none": None}
"""Bytes of the blocks that Blosc shuffles, behind each name of `--compression`; None does not compress.

Shuffle turns a block into four planes, each of which is compressed by itself; see `capture.store.planes`. Zstandard has
one Huffman table for each 128 KiB that it is given: larger blocks have longer planes to find repetitions in.
"""


LEVEL = 1
"""Of Zstandard, as the metadata say: of what has other values than float32, or few."""


_THOROUGH: Final = frozenset({"small"})
"""Names of `--compression` that look for repetitions too."""


CHECKSUM_BYTES = 4


OVERHEAD = 64
"""Bytes that encoding can add to a chunk, at most."""


_RESIDUE = 0x48674BC7
"""CRC-32C of any bytes with their own CRC-32C, little-endian, behind them."""


_BLOSC_HEADER = 16


def encode(array: npt.NDArray[Any], compression: str) -> bytes:
    """Bytes of one chunk: little-endian values, compressed, with their CRC-32C behind them."""
    return b"".join(encode_pieces(array, compression))


def encode_pieces(array: npt.NDArray[Any], compression: str) -> list[Piece]:
    """Bytes of one chunk in pieces that follow each other, for whoever writes them: joined, they would be copied.

    Parameters
    ----------
    array : the values; uint16 stands for the upper halves of float32 whose lower halves are zero, as of bfloat16
    compression : `fast`, `small` or `none`
    """
    pieces = _payload(np.ascontiguousarray(array), compression)
    crc = 0
    for piece in pieces:
        crc = google_crc32c.extend(crc, piece)
    return [*pieces, crc.to_bytes(CHECKSUM_BYTES, "little")]


def _payload(array: npt.NDArray[Any], compression: str) -> list[Piece]:
    block = COMPRESSION[compression]
    if block is not None and array.dtype in (np.float32, np.uint16) and array.size >= FEWEST_VALUES:
        bits = array.ravel() if array.dtype == np.uint16 else array.ravel().view(np.uint32)
        return blosc_frame(bits, block, thorough=compression in _THOROUGH)
    values = widen_halves(array) if array.dtype == np.uint16 else array
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    if block is None:
        return [values.tobytes()]
    return [bytes(Blosc(cname="zstd", clevel=LEVEL, shuffle=Blosc.SHUFFLE, blocksize=block).encode(values))]


def widen_halves(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 values of which these are the upper halves; the lower ones are zero."""
    bits = halves.astype(np.uint32)
    return np.left_shift(bits, 16, out=bits).view(np.float32)


def decode(
    encoded: bytes,
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    *,
    compressed: bool,
) -> npt.NDArray[Any]:
    """The values of one chunk; the inverse of `encode`.

    Parameters
    ----------
    encoded : bytes of the chunk, its checksum behind them
    dtype, shape : of the chunk, from the metadata
    compressed : whether by Blosc

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
    values = np.empty(shape, kind)
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
    if not is_sound(encoded):
        raise ValueError("the values do not match their checksum")
    return memoryview(encoded)[:-CHECKSUM_BYTES]


def is_sound(encoded: bytes) -> bool:
    """Whether bytes match the checksum behind them."""
    # Of all at once, for the library takes no view, and a copy of a large chunk costs more than its checksum.
    return len(encoded) >= CHECKSUM_BYTES and google_crc32c.value(encoded) == _RESIDUE


def checksum(payload: bytes) -> bytes:
    """CRC-32C of bytes, as it stands behind a chunk (RFC 3720)."""
    return int(google_crc32c.value(payload)).to_bytes(CHECKSUM_BYTES, "little")
