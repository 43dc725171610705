"""Critical magnitudes, and how many peaks lie where below them, from the leading bits of float32 numbers.

The bits of a float32 that is not negative, taken as an integer, order it. Values of bfloat16 models use the first 16 of
them, values of float16 models the first 19, so that a histogram over these holds every peak exactly.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.peaks import cache
from analyze.types import Counts, Float32

_DROPPED: Final = 13
BINS: Final = 2 ** (32 - _DROPPED)
_NARROW: Final = 16
_NARROW_BINS: Final = 2 ** (32 - _NARROW)
_LEADING: Final = 1 if sys.byteorder == "little" else 0  # of the two halves of a float32
_BAND: Final = 2**17  # peaks handled at once: all that is made of them stays in a processor's cache
_COLUMNS: Final = 256  # features handled at once where those of one position lie side by side
_LEAST_COLUMNS: Final = 8  # where they spread over too many bins


def bin_values(bins: npt.NDArray[np.intp]) -> Float32:
    """The magnitudes that bins of `BINS` stand for."""
    return (bins.astype(np.uint32) << np.uint32(_DROPPED)).view(np.float32)


def histogram(peaks: Float32, critical: Float32) -> Counts | None:
    """Count min(critical, peak), bin by bin of the leading bits.

    Parameters
    ----------
    peaks : (feature, unit) float32 without NaN, 0 or more or -inf
    critical : (feature,) float32

    Returns
    -------
    (bin,) int64, of which `BINS` is a multiple; None where a peak has more bits than a bin stands for
    """
    return ranked_histogram(peaks, 0, critical)[1]


def ranked_histogram(peaks: Float32, rank: int, cap: Float32) -> tuple[Float32, Counts | None]:
    """Critical magnitudes and the histogram below them, in one go.

    Parameters
    ----------
    peaks : (feature, unit) float32 without NaN, 0 or more or -inf, in either memory order
    rank : the largest critical magnitude of a feature is its peak of this rank, counted from 1; 0 where none is asked
    cap : (feature,) float32, the largest critical magnitude for other reasons

    Returns
    -------
    critical : (feature,) float32
    counts : as from `histogram`, for these critical magnitudes
    """
    side_by_side = peaks.strides[0] < peaks.strides[1]
    rows = peaks.T if side_by_side else peaks
    used = np.bitwise_or.reduce(rows.view(np.uint32), axis=None) | np.bitwise_or.reduce(cap.view(np.uint32))
    if used & np.uint32(2**_NARROW - 1):
        return _wide(peaks, rank, cap)
    keys = np.empty(rows.shape, np.int16)
    np.copyto(keys, rows.view(np.int16)[..., _LEADING::2])
    limit, counts = _keys(cap), np.zeros(_NARROW_BINS, np.int64)
    if side_by_side:
        lows, highs = (reduced.astype(np.int64) for reduced in (keys.min(axis=0), keys.max(axis=0)))
        start, columns = 0, _COLUMNS
        while start < len(cap):
            band = slice(start, start + columns)
            low, high = int(lows[band].min()), int(highs[band].max())
            if (high - low + 1) * len(lows[band]) <= 2**16:
                _count(keys[:, band], low, high, rank, limit[band], counts)
            elif columns > _LEAST_COLUMNS:
                columns //= 2
                continue
            else:
                _sort(np.ascontiguousarray(keys[:, band].T), rank, limit[band], counts)
            start, columns = start + columns, _COLUMNS
    else:
        step = max(1, _BAND // peaks.shape[1])
        for start in range(0, len(cap), step):
            _sort(keys[start : start + step], rank, limit[start : start + step], counts)
    return (limit.view(np.uint16).astype(np.uint32) << np.uint32(_NARROW)).view(np.float32), counts


def _count(
    keys: npt.NDArray[np.int16], low: int, high: int, rank: int, limit: npt.NDArray[np.int16], counts: Counts
) -> None:
    """Lower `limit` to the peaks of a rank and add to `counts`, from a histogram of each feature.

    That needs neither sorting nor transposing.

    Parameters
    ----------
    keys : (unit, feature), at most 2**16 bins from `low` to `high` for all features together
    """
    features, bins = keys.shape[1], high - low + 1
    # Each feature has bins of its own, one after another. Sums of 16 bits wrap around and come out right.
    first = np.arange(features) * bins
    places = np.add(keys.view(np.uint16), (first - low).astype(np.uint16)).ravel()
    each = np.bincount(places, minlength=features * bins).reshape(features, bins)
    upto = np.cumsum(each, axis=1)  # peaks at or below each bin
    if rank:
        best = (upto > len(keys) - rank).argmax(axis=1) + low
        np.minimum(limit, best.astype(np.int16), out=limit)
    # What lies above the critical magnitude counts as lying there.
    cap = limit.astype(np.int64) - low
    inside = np.arange(bins)
    counts[inside + low] += each.sum(axis=0, where=inside < cap[:, None])
    below = np.where(cap > 0, upto.ravel()[first + np.clip(cap - 1, 0, bins - 1)], 0)
    np.add.at(counts, cap + low, len(keys) - below)


def _sort(keys: npt.NDArray[np.int16], rank: int, limit: npt.NDArray[np.int16], counts: Counts) -> None:
    """The same by partial sorting.

    Parameters
    ----------
    keys : (feature, unit), C-contiguous, which is changed
    """
    if rank:
        keys.partition(keys.shape[1] - rank, axis=1)
        np.minimum(limit, keys[:, keys.shape[1] - rank], out=limit)
    np.minimum(keys, limit[:, None], out=keys)
    found = np.bincount(keys.view(np.uint16).ravel())
    counts[: len(found)] += found


def _wide(peaks: Float32, rank: int, cap: Float32) -> tuple[Float32, Counts | None]:
    """`ranked_histogram` of values with more bits than those of bfloat16 models."""
    features, units = peaks.shape
    critical, counts = cap.copy(), np.zeros(BINS, np.int64)
    step = max(1, _BAND // units)
    for start in range(0, features, step):
        keys, limit = peaks[start : start + step].copy(order="C"), critical[start : start + step]
        if rank:
            keys.partition(units - rank, axis=1)
            np.minimum(limit, keys[:, units - rank], out=limit)
        bits = np.minimum(keys, limit[:, None], out=keys).view(np.uint32).ravel()
        if (bits & np.uint32(2**_DROPPED - 1)).any():
            return critical, None
        counts += np.bincount(bits >> np.uint32(_DROPPED), minlength=BINS)
    return critical, counts


def _keys(values: Float32) -> npt.NDArray[np.int16]:
    """Leading half of the bits of each value, which has no others; as integers they keep the order of the values."""
    return values.view(np.int16)[_LEADING::2].copy()


@dataclass(frozen=True)
class HitSteps:
    """Number of hits of outliers as a function of magnitude.

    Parameters
    ----------
    value : (step,) float32, ascending
    hits : (step,) int64, hits at every magnitude above the value before and up to this one; none above the last
    """

    value: Float32
    hits: Counts

    def at(self, limits: Float32) -> Counts:
        """Hits at each limit."""
        return np.append(self.hits, 0)[np.searchsorted(self.value, limits, side="left")]


@dataclass(frozen=True)
class Steps:
    """All that a sweep over magnitudes needs, for one pair of fractions.

    Parameters
    ----------
    critical : (group, feature) float32, critical magnitudes; groups are sequences, or one where pooled
    layer, position : hits of outliers in layer units and at positions
    layer_units, positions : places that a feature could be hit in
    """

    critical: Float32
    layer: HitSteps
    position: HitSteps
    layer_units: int
    positions: int

    @cached_property
    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The parts as arrays, to be written."""
        return {
            "critical": self.critical,
            "layer_value": self.layer.value,
            "layer_hits": self.layer.hits,
            "position_value": self.position.value,
            "position_hits": self.position.hits,
            "totals": np.array([self.layer_units, self.positions]),
        }

    @classmethod
    def of_arrays(cls, read: Callable[[str], npt.NDArray[np.generic]]) -> Steps:
        """The reverse of `arrays`."""
        units, positions = (int(number) for number in read("totals"))
        kinds = {"value": np.float32, "hits": np.int64}
        layer, position = (
            HitSteps(**{part: read(f"{name}_{part}").astype(kind) for part, kind in kinds.items()})
            for name in ("layer", "position")
        )
        return cls(read("critical").astype(np.float32), layer, position, units, positions)


def hit_steps(counts: Counts) -> HitSteps:
    """Step function of a histogram.

    Parameters
    ----------
    counts : (bin,) int64, as from `histogram`
    """
    used = np.flatnonzero(counts[: len(counts) // 2])  # the other half has the sign bit: -inf, which is no hit
    return HitSteps(bin_values(used * (BINS // len(counts))), np.cumsum(counts[used][::-1])[::-1])


def read_steps(key: str) -> Steps | None:
    """Kept step functions; None where there are none, or not whole."""
    data = cache.read_bytes(f"{key}.npz")
    if data is None:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return Steps.of_arrays(file.__getitem__)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def write_steps(store: xr.Dataset, key: str, steps: Steps) -> None:
    """Keep step functions where that is possible; a sweep is complete without."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **steps.arrays)
    cache.write_bytes(store, f"{key}.npz", content.getvalue())
