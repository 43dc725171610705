"""Bytes that a capture needs, before anything runs."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Final

from capture.schema import PER_SEQUENCE, RAW_VARIABLES, SEQUENCE, VARIABLES, OutliersError, Sizes

COMPRESSED_BYTES: Final = {"float32": 3.45, "bfloat16": 1.50, "float16": 1.85}
"""Bytes on disk for each activation, by the dtype it was computed in; measured with the codec `fast`."""

_UNCOMPRESSED_BYTES: Final = 4.0


def store_bytes(sizes: Sizes, raw: str, dtype: str, compression: str = "fast", sequences: int | None = None) -> int:
    """Predicted size of a store.

    Parameters
    ----------
    sizes : lengths of the dimensions
    raw, compression : as for `capture.store.create`
    dtype : `float32`, `bfloat16` or `float16`, which the model computes in
    sequences : only so many of them

    Returns
    -------
    bytes on disk
    """
    each = _UNCOMPRESSED_BYTES if compression == "none" else COMPRESSED_BYTES[dtype]
    values = 0
    for name in (*RAW_VARIABLES[raw], *PER_SEQUENCE, "token_id"):
        dims = VARIABLES[name].dims
        values += math.prod(n for dim, n in zip(dims, sizes.shape(dims), strict=True) if dim != SEQUENCE)
    return round(values * each * (sizes.sequences if sequences is None else sequences))


def check_free_space(path: Path, needed: int) -> None:
    """Refuse a capture that cannot fit.

    Raises
    ------
    OutliersError
        The file system of `path` has fewer bytes free than `needed`.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutliersError(
            f"the capture needs about {needed / 1e9:.1f} GB and the disk of {path} has {free / 1e9:.1f} GB free; "
            "free some room, or use fewer --sequences, a smaller --length, or --raw none"
        )
