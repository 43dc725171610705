"""Raw activations rounded to fewer mantissa bits: smaller, and said so in the attributes. Peaks are never rounded.

Rounding keeps the order of values, so that the peaks of rounded activations are the rounded peaks: a store stays as
checkable as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from capture.store.chunks import CHECKSUM_BYTES, decode, encode
from capture.store.identity import digest
from capture.store.schema import DIGESTED, MANTISSA, RAW_VARIABLES, VARIABLES
from capture.store.shards import ShardFile, read_chunks

BFLOAT16: Final = 7
"""Explicit mantissa bits of a bfloat16, whose exponent is that of a float32."""

_INFINITY: Final = np.uint32(0x7F800000)
_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)


def round_mantissa(
    values: npt.NDArray[np.float32], bits: int, *, overflow: Literal["finite", "inf"] = "finite"
) -> npt.NDArray[np.float32]:
    """Values rounded to the nearest with so many explicit mantissa bits, halfway cases to the even one (IEEE 754).

    The exponent keeps its range; infinities and NaN stay what they are. Rounding keeps the order of values.

    Parameters
    ----------
    values : float32 of any shape; returned itself where every value has no more bits already
    bits : 1 to 22
    overflow : what becomes of a finite value that rounds beyond the largest: that largest, or infinite as in PyTorch
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    number = values.view(np.uint32)
    last = np.uint32(1 << (MANTISSA - bits))
    mask = last - np.uint32(1)
    if not np.bitwise_or.reduce(number, axis=None) & mask:
        return values
    # Half of the last bit kept, less one where that bit is even: the sum carries exactly where rounding goes up.
    rounded = (number >> np.uint32(MANTISSA - bits)) & np.uint32(1)
    rounded += (mask >> np.uint32(1)) + number
    rounded &= ~mask
    special = (number & _MAGNITUDE) >= _INFINITY
    if special.any():
        rounded[special] = number[special]
    if overflow == "finite":
        over = (rounded & _MAGNITUDE == _INFINITY) & ~special
        rounded[over] -= last
    result: npt.NDArray[np.float32] = rounded.view(np.float32)
    return result


def write_rounded(store: Any, folder: Path, bits: int) -> dict[str, Path]:
    """Write the files of a store's raw activations anew, rounded, and their digests to match.

    Parameters
    ----------
    store : a `capture.store.write.StoreWriter`
    folder : where to write
    bits : mantissa bits to keep

    Returns
    -------
    file of each name inside the store
    """
    written: dict[str, Path] = {}
    digests = None if store.store_id is None else store.read("digest")
    for name in RAW_VARIABLES[store.raw]:
        for number in range(store.sizes.sequences):  # a shard is one sequence
            source, checksums = store.file(name, number), []
            target = folder / name / source.name
            with _shard(target, store.grid(name)) as shard:
                for place, data in read_chunks(source, store.grid(name), store.chunk_bytes(name)):
                    dtype, shape = VARIABLES[name].dtype, store.chunk_shape(name)
                    values = decode(data, dtype, shape, compressed=store.compressed)
                    encoded = encode(round_mantissa(values, bits), store.compression)
                    checksums.append(encoded[-CHECKSUM_BYTES:])
                    shard.append(place, encoded)
            written[f"{name}/{source.name}"] = target
            if digests is not None:
                digests[number, DIGESTED.index(name)] = digest(store.store_id, name, number, checksums)
    if digests is not None:
        written |= _write_digests(store, folder, digests)
    return written


def _write_digests(store: Any, folder: Path, digests: npt.NDArray[np.uint64]) -> dict[str, Path]:
    written = {}
    grid = store.grid("digest")
    for begin in range(0, len(digests), grid[0]):
        source = store.file("digest", begin)
        target = folder / "digest" / source.name
        with _shard(target, grid) as shard:
            for place in np.ndindex(*grid):
                row = digests[begin + place[0] : begin + place[0] + 1]
                values = row if len(row) else np.zeros((1, len(DIGESTED)), np.uint64)  # behind the last sequence
                shard.append(place, encode(values, store.compression))
        written[f"digest/{source.name}"] = target
    return written


@contextlib.contextmanager
def _shard(target: Path, grid: tuple[int, ...]) -> Iterator[ShardFile]:
    """A shard that is there once the block has filled it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shard = ShardFile(target, grid)
    try:
        yield shard
        shard.commit()
    except BaseException:
        shard.discard()
        raise
