"""Arrays as text that a page can hold: byte planes, deflated, in base64."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from analyze.peaks.threads import in_threads

# Small blocks, each with codes of its own, and few back references suit counts: a twentieth less than the defaults.
_LEVEL, _MEMORY, _STRATEGY = 9, 5, zlib.Z_FILTERED


def packed(array: npt.NDArray[Any]) -> bytes:
    """An array of unsigned integers or float32 as a zlib stream of its little-endian byte planes.

    All first bytes come before all second bytes: small counts then leave a second plane of zeros, which costs nothing.
    """
    flat = np.ascontiguousarray(array).ravel()
    little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    planes = little.view(np.uint8).reshape(-1, flat.dtype.itemsize).T
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, _MEMORY, _STRATEGY)
    return stream.compress(planes.tobytes()) + stream.flush()


def all_packed(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, bytes]:
    """Every array packed, by a few threads."""
    return dict(zip(arrays, in_threads(packed, arrays.values()), strict=True))


def text(stream: bytes) -> str:
    """Base64: letters, digits, +, / and =, none of which means anything in HTML."""
    return base64.b64encode(stream).decode("ascii")


def text_length(stream: bytes) -> int:
    """Length of `text`."""
    return 4 * -(-len(stream) // 3)
