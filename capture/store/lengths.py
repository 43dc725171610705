"""Sequences of different lengths in arrays of one shape: what stands behind the end of each."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

NO_TOKEN: Final = -1
"""Token id behind the end of a sequence."""


def padded(values: npt.NDArray[Any], positions: int, axis: int = 0) -> npt.NDArray[Any]:
    """Values of one sequence with NaN behind its end; themselves where nothing is behind it.

    Parameters
    ----------
    values : floating-point, of any shape
    positions : length of `axis` in the store
    """
    if values.shape[axis] == positions:
        return values
    shape = list(values.shape)
    shape[axis] = positions
    result = np.full(shape, np.nan, values.dtype)
    result[(slice(None),) * (axis % values.ndim) + (slice(values.shape[axis]),)] = values
    return result


def lengths_flaw(length: npt.NDArray[np.int32], token_id: npt.NDArray[np.int32]) -> str | None:
    """What is wrong with lengths and tokens, None where they agree.

    Parameters
    ----------
    length : (sequence,) int32
    token_id : (sequence, position) int32
    """
    positions = token_id.shape[1]
    for number in np.flatnonzero((length < 1) | (length > positions))[:1].tolist():
        return f"sequence {number} has length {length[number]}; expected 1 to {positions}"
    wrong = (token_id >= 0) != (np.arange(positions) < length[:, None])
    for number in np.flatnonzero(wrong.any(axis=1))[:1].tolist():
        return f"sequence {number} has length {length[number]}, and its tokens end elsewhere"
    return None
