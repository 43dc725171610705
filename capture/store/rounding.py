"""Raw activations rounded to fewer mantissa bits: smaller, and said so in the attributes. Peaks are never rounded.

Rounding keeps the order of values, so that the peaks of rounded activations are the rounded peaks: a store stays as
checkable as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.store.chunks import decode, encode
from capture.store.schema import MANTISSA, RAW_VARIABLES, VARIABLES
from capture.store.shards import ShardFile, read_chunks

_LARGEST: Final = 0x7F7FFFFF
_SIGN: Final = np.uint32(0x80000000)


def round_mantissa(values: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    """Values rounded to the nearest with so many explicit mantissa bits, halfway cases to the even one.

    The exponent keeps its range; a finite value stays finite, infinities and NaN stay what they are.

    Parameters
    ----------
    values : float32 of any shape
    bits : 1 to 22
    """
    dropped = np.uint32(MANTISSA - bits)
    mask = np.uint32((1 << (MANTISSA - bits)) - 1)
    number = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32((1 << (MANTISSA - bits - 1)) - 1)
    rounded = (number + half + ((number >> dropped) & np.uint32(1))) & ~mask
    result: npt.NDArray[np.float32] = rounded.view(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        result[~finite] = values[~finite]
    over = finite & ~np.isfinite(result)
    if over.any():
        rounded[over] = (number[over] & _SIGN) | (np.uint32(_LARGEST) & ~mask)
    return result


def write_rounded(store: Any, folder: Path, bits: int) -> dict[str, Path]:
    """Write the files of a store's raw activations anew, rounded.

    Parameters
    ----------
    store : a `capture.store.write.StoreWriter`
    folder : where to write
    bits : mantissa bits to keep

    Returns
    -------
    file of each name inside the store
    """
    written = {}
    for name in RAW_VARIABLES[store.raw]:
        (folder / name).mkdir(parents=True)
        grid, shape = store.grid(name), store.chunk_shape(name)
        for source in sorted({store.file(name, number) for number in range(store.sizes.sequences)}):
            target = folder / name / source.name
            shard = ShardFile(target, grid)
            try:
                for place, data in read_chunks(source, grid):
                    values = decode(data, VARIABLES[name].dtype, shape, compressed=store.compressed)
                    shard.append(place, encode(round_mantissa(values, bits), store.compression))
                shard.commit()
            except BaseException:
                shard.discard()
                raise
            written[f"{name}/{source.name}"] = target
    return written
