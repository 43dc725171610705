"""Units in which values count, and their rounding to bfloat16."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import xarray as xr

from analyze.types import Float32
from capture.store.rounding import BFLOAT16, round_mantissa

round_bfloat16: Final = partial(round_mantissa, bits=BFLOAT16, overflow="inf")
"""As PyTorch rounds a float32 to bfloat16: magnitudes of 2^128 - 2^119 or more become infinite."""


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
