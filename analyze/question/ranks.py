"""Thresholds and the ranks that decide them: the k-th largest peak, the critical magnitude, tails of counts."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from analyze.types import Float32


def threshold(magnitude: npt.ArrayLike) -> Float32:
    """Magnitudes as the float32 numbers that values are compared with."""
    with np.errstate(over="ignore"):  # a threshold beyond float32 becomes infinite, and only infinities hit
        return np.asarray(magnitude, dtype=np.float64).astype(np.float32)


def required_hits(fraction: float, total: int) -> int:
    """Smallest integer k with `k / total >= fraction`, the quotient taken in float64; 1, too many, of a total of 0."""
    if total == 0:  # a sequence of which nothing counts has no outliers, whatever the fraction
        return 1
    hits = min(max(math.ceil(fraction * total), 0), total)
    while hits > 0 and (hits - 1) / total >= fraction:
        hits -= 1
    while hits / total < fraction:
        hits += 1
    return hits


def rank_ready(peaks: Float32) -> Float32:
    """Peaks with NaN (no number at all) replaced by -inf, so that they rank last and never hit."""
    # One cheap reduction first: almost no array has a NaN.
    return np.fmax(peaks, np.float32(-np.inf)) if peaks.size and np.isnan(peaks.min()) else peaks


def kth_largest(peaks: Float32, ranks: tuple[int, ...]) -> Float32:
    """The k-th largest along the last axis, for several k at once.

    Parameters
    ----------
    peaks : (..., unit) float32 without NaN
    ranks : values of k, 0 to the number of units

    Returns
    -------
    (rank, ...) float32; +inf where k is 0, because nothing is asked for
    """
    total = peaks.shape[-1]
    result = np.full((len(ranks), *peaks.shape[:-1]), np.inf, dtype=np.float32)
    asked = sorted({total - k for k in ranks if k > 0})
    if asked:
        if asked == [total - 1]:
            ordered, asked = peaks.max(axis=-1, keepdims=True), [0]
            at = {total - 1: 0}
        else:
            ordered = np.partition(peaks, asked, axis=-1)
            at = {place: place for place in asked}
        for row, k in enumerate(ranks):
            if k > 0:
                result[row] = ordered[..., at[total - k]]
    return result


def critical_magnitude(
    layer_peaks: Float32, position_peaks: Float32, layers: float, positions: float, counted: int | None = None
) -> Float32:
    """Largest magnitude at which each feature is still an outlier.

    Parameters
    ----------
    layer_peaks : (feature, layer unit) float32 without NaN, largest magnitude of each unit
    position_peaks : (feature, position) float32 without NaN
    layers, positions : least share of units and of positions with a hit
    counted : how many of the positions count, the peaks of the others being -inf; None for all

    Returns
    -------
    (feature,) float32: an outlier for every magnitude up to this one and for none above; +inf where both fractions
    are 0

    Notes
    -----
    A share of hits is at least a exactly where the k-th largest peak hits, k being `required_hits(a, total)`.
    """
    by_layer = kth_largest(layer_peaks, (required_hits(layers, layer_peaks.shape[-1]),))[0]
    total = position_peaks.shape[-1] if counted is None else counted
    by_position = kth_largest(position_peaks, (required_hits(positions, total),))[0]
    critical: Float32 = np.minimum(by_layer, by_position)
    return critical


def tails(per_bin: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Cumulate counts of entries that pass exactly 0...M limits (last axis) to those that pass each of the M limits."""
    return np.flip(np.cumsum(np.flip(per_bin, -1), axis=-1), -1)[..., 1:]


_MOST_SHARED = 3  # comparisons for each magnitude, beyond which a binary search is faster


class Limits:
    """Ascending thresholds, and a fast look-up of how many of them a magnitude reaches.

    The leading bits of a float32 that is not negative, taken as an integer, order it. A table over those bits answers
    all but the limits that share the bits with the magnitude; these few are compared.

    Parameters
    ----------
    values : (limit,) float32, 0 or more, ascending, each once
    """

    def __init__(self, values: Float32) -> None:
        self.values = values
        self._padded = np.append(values, np.float32(np.nan))  # no magnitude reaches a NaN
        for self._shift in (16, 14, 12):
            edges = np.arange(2 ** (32 - self._shift), dtype=np.uint32) << np.uint32(self._shift)
            half = len(edges) // 2  # the upper half has the sign bit: -inf, which reaches nothing
            self._table = np.zeros(len(edges), np.intp)
            self._table[:half] = np.searchsorted(values, edges[:half].view(np.float32), side="right")
            # Beyond infinity the bits spell NaN, and searchsorted puts these after every limit, as it should infinity.
            self._shared = int(np.diff(self._table[:half], append=len(values)).max(initial=0))
            if self._shared <= 1:
                break

    def reached(self, magnitudes: Float32) -> npt.NDArray[np.intp]:
        """Number of limits that each magnitude reaches.

        Parameters
        ----------
        magnitudes : float32 of any shape, C-contiguous, 0 or more or -inf, no NaN
        """
        if self._shared > _MOST_SHARED:
            return np.searchsorted(self.values, magnitudes.ravel(), side="right").reshape(magnitudes.shape)
        result: npt.NDArray[np.intp] = self._table[magnitudes.view(np.uint32) >> np.uint32(self._shift)]
        for _ in range(self._shared):
            result += magnitudes >= self._padded[result]
        return result
