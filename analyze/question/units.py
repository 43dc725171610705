"""Rounding to bfloat16, on the bits of float32."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr

Float32 = npt.NDArray[np.float32]

_DROPPED: Final = np.uint32(0xFFFF)
"""Bits of a float32 that a bfloat16 lacks."""


def round_bfloat16(values: Float32) -> Float32:
    """Values rounded to the nearest bfloat16, halfway cases to the even one (IEEE 754, roundTiesToEven), as float32.

    Magnitudes of 2^128 - 2^119 or more become infinite, as they do in PyTorch; a NaN stays the NaN it is. Rounding
    keeps the order of values, so that it commutes with largest and smallest.

    Parameters
    ----------
    values : float32 of any shape; returned itself where every value is a bfloat16 already
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    if not np.bitwise_or.reduce(bits, axis=None) & _DROPPED:
        return values
    # Half of the last bit kept, less one where that bit is even: the sum carries exactly where rounding goes up.
    carry = (bits >> np.uint32(16)) & np.uint32(1)
    carry += np.uint32(0x7FFF)
    carry += bits
    carry &= ~_DROPPED
    rounded = carry.view(np.float32)
    missing = np.isnan(values)
    if missing.any():
        rounded[missing] = values[missing]
    return rounded


def rounded(array: xr.DataArray) -> xr.DataArray:
    """A float32 array rounded by `round_bfloat16`, lazily where it is lazy."""
    if array.chunks is None:
        return array.copy(data=round_bfloat16(array.values))
    lazy = array.data.map_blocks(round_bfloat16, dtype=np.float32, meta=np.empty((0,) * array.ndim, np.float32))
    return array.copy(data=lazy)


def scale_unit(matrix: Float32, scale: str) -> float:
    """Root mean square (`rms`) or median magnitude (`median`) of the finite values of a matrix, in float64.

    NaN where there is no finite value.
    """
    values = matrix if np.isfinite(matrix).all() else matrix[np.isfinite(matrix)]
    if values.size == 0:
        return float("nan")
    if scale == "rms":
        return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    # The mean of two middle values is taken in float64, so that it does not depend on how NumPy sums.
    magnitudes = np.abs(values).ravel()
    middle = [(magnitudes.size - 1) // 2, magnitudes.size // 2]
    pair = np.partition(magnitudes, sorted(set(middle)))[middle]
    return float(pair.astype(np.float64).mean())


def scaled(values: Float32, unit: float | None) -> Float32:
    """Values in a unit, float32; a zero or NaN stays what it is where the unit is zero."""
    if unit is None or np.isnan(unit):  # no finite value, no unit: infinities and NaN have the same meaning in any
        return values
    if unit == 0:
        return np.where((values == 0) | np.isnan(values), values, np.copysign(np.float32(np.inf), values))
    with np.errstate(over="ignore"):
        return (values.astype(np.float64) / unit).astype(np.float32)
