"""Blosc frames of float32 values, made plane by plane: what compresses is compressed, and what cannot is stored.

The bytes of a block of values are shuffled into planes: one of sign and exponent, which compresses, and those of the
mantissa, which are zero or do not. Blosc hands all of them to one Zstandard stream, which spends most of its time on
finding repetitions that activations hardly have. Here each plane is a stream of its own and is coded by Huffman tables
nearly alone: a third of the time, and fewer bytes. Any reader of Blosc takes such frames, for the format provides for
blocks that are split (https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst).
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

Piece = Any
"""A run of bytes: `bytes`, or an array of uint8, which was copied while other threads ran."""

FEWEST_VALUES: Final = 4096
"""Values of which a frame is worth while; Blosc takes blocks for split only where they have 128."""

_HEADER: Final = struct.Struct("<BBBBIII")  # version, version of the codec, flags, item size, bytes, block, frame
_VERSION, _ZSTD_VERSION, _ITEM = 2, 1, 4
_COPIED: Final = 0x02
_SHUFFLED_ZSTD: Final = 0x01 | 4 << 5  # without 0x10, which says that blocks are not split

_LARGEST_SHARE: Final = 31 / 32  # a plane whose first block stays above this share of itself is stored from then on


class _Compressors(threading.local):
    """Zstandard's state, one for each thread."""

    def __init__(self) -> None:
        # Matches of seven bytes, looked for in the smallest table there is: literals, Huffman-coded, are what remains.
        literals = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            min_match=7,
            hash_log=6,
            chain_log=6,
            search_log=1,
            window_log=17,
            target_length=0,
        )
        self.literals = zstandard.ZstdCompressor(compression_params=literals)
        self.repetitions = zstandard.ZstdCompressor(level=3)


_compressors = _Compressors()


def blosc_frame(bits: npt.NDArray[np.uint16] | npt.NDArray[np.uint32], block: int, *, thorough: bool) -> list[Piece]:
    """The Blosc frame of float32 values, in pieces that follow each other.

    Parameters
    ----------
    bits : (value,) of float32 values as uint32, or as uint16 their upper halves where the lower are zero, as those of
        bfloat16; `FEWEST_VALUES` or more
    block : bytes of a block of float32, at the most
    thorough : look for repetitions as well, which takes three times as long
    """
    count = len(bits)
    length = block_length(count, block // _ITEM)
    splitter = _Splitter(bits.dtype.itemsize, length, thorough)
    blocks = [splitter.split(bits[begin : begin + length]) for begin in range(0, count - length + 1, length)]
    if count % length:
        blocks.append(_unsplit(bits[count - count % length :]))
    starts = np.cumsum([_HEADER.size + 4 * len(blocks), *(sum(map(len, block)) for block in blocks)], dtype="<u4")
    sizes = (_ITEM * count, _ITEM * length, int(starts[-1]))
    if sizes[2] > _HEADER.size + _ITEM * count:  # only where all four planes are noise
        sizes = (*sizes[:2], _HEADER.size + _ITEM * count)
        return [_HEADER.pack(_VERSION, _ZSTD_VERSION, _COPIED, _ITEM, *sizes), bits.astype("<u4").tobytes()]
    header = _HEADER.pack(_VERSION, _ZSTD_VERSION, _SHUFFLED_ZSTD, _ITEM, *sizes)
    return [header + starts[:-1].tobytes(), *itertools.chain.from_iterable(blocks)]


def block_length(count: int, most: int) -> int:
    """Values in each block: as many as are allowed, or somewhat fewer where all blocks are equally long then.

    A shorter block at the end cannot be split.
    """
    fewest = math.ceil(count / most)
    blocks = next((number for number in range(fewest, 2 * fewest + 8) if count % number == 0), None)
    return min(count, most) if blocks is None else count // blocks


class _Splitter:
    """Blocks of one frame, plane by plane.

    Parameters
    ----------
    item : bytes of each value that is given: 4, or 2 where it is the upper half
    length : values of a block
    """

    def __init__(self, item: int, length: int, thorough: bool) -> None:
        self._length, self._thorough = length, thorough
        self._planes = np.empty((item, length), np.uint8)
        self._compresses: list[bool | None] = [None] * item
        self._zeros = [_zero_plane(length)] * (_ITEM - item)

    def split(self, bits: npt.NDArray[Any]) -> list[Piece]:
        """One block: each plane behind its length."""
        _shuffle(bits, self._planes)
        streams = [*self._zeros, *(self._stream(number) for number in range(len(self._planes)))]
        return [part for stream in streams for part in (_length(stream), stream)]

    def _stream(self, number: int) -> Piece:
        """One plane, compressed; as it is where that is no gain, which its length says."""
        plane = self._planes[number]
        if self._compresses[number] is not False:
            stream = _compressed(plane, thorough=self._thorough)
            if self._compresses[number] is None:
                self._compresses[number] = self._thorough or len(stream) <= _LARGEST_SHARE * self._length
            if len(stream) < self._length:
                return stream
        return plane.copy()


def _shuffle(bits: npt.NDArray[Any], planes: npt.NDArray[np.uint8]) -> None:
    """Put the bytes of values into planes, the lowest first; shifts are vector instructions, strided copies are not."""
    planes[0] = bits
    shifted = np.empty_like(bits)
    for number in range(1, len(planes)):
        planes[number] = np.right_shift(bits, 8 * number, out=shifted)


def _length(stream: Piece) -> bytes:
    return len(stream).to_bytes(4, "little")


def _unsplit(bits: npt.NDArray[Any]) -> list[Piece]:
    """A shorter last block: all planes as one stream behind its length."""
    planes = np.zeros((_ITEM, len(bits)), np.uint8)
    _shuffle(bits, planes[_ITEM - bits.dtype.itemsize :])
    stream = _compressed(planes, thorough=True)
    if len(stream) >= planes.size:
        stream = planes.tobytes()
    return [_length(stream), stream]


def _compressed(plane: npt.NDArray[np.uint8], *, thorough: bool) -> bytes:
    stream = _compressors.literals.compress(plane.data)
    if not thorough:
        return stream
    return min(stream, _compressors.repetitions.compress(plane.data), key=len)


@functools.lru_cache(maxsize=16)
def _zero_plane(length: int) -> bytes:
    return _compressed(np.zeros(length, np.uint8), thorough=False)
