"""Which arrays can be read straight from their files, chunk by chunk, as fast as threads can decompress them.

zarr-python hands every chunk from thread to thread by way of one event loop, which costs half of the speed of two
cores. The layout of format version 1 is simple enough to be read without it, by `read_chunk` and `decode` of
`capture.store`; whatever has another is left to zarr.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec


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
