"""Step functions of magnitude, kept so that a sweep over other magnitudes reads not even the peaks.

Values of bfloat16 and float16 models leave the last 13 bits of a float32 zero, so that a histogram over the other bits
holds every peak exactly. For such stores the step functions of a pair of fractions fit into a few megabytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

_DROPPED: Final = 13
BINS: Final = 2 ** (32 - _DROPPED)
_NARROW: Final = 16  # bits that values of bfloat16 models leave zero
_LEADING: Final = 1 if sys.byteorder == "little" else 0  # of the two halves of a float32
_BAND: Final = 2**17  # peaks handled at once: all that is made of them stays in a processor's cache
_COLUMNS: Final = 64  # features handled at once where those of one position lie side by side
_FEW_BINS: Final = 64


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


def histogram(peaks: Float32, critical: Float32) -> Counts | None:
    """Count min(critical, peak), bin by bin of the leading bits.

    Parameters
    ----------
    peaks : (feature, unit) float32 without NaN, 0 or more or -inf
    critical : (feature,) float32

    Returns
    -------
    (bin,) int64; None where a peak has more bits than a bin stands for
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
    features, units = peaks.shape
    counts = np.zeros(BINS, np.int64)
    narrow_counts = counts[:: 2 ** (_NARROW - _DROPPED)]
    critical = cap.copy()
    step = _COLUMNS if peaks.strides[0] < peaks.strides[1] else max(1, _BAND // units)
    for start in range(0, features, step):
        band, limit = peaks[start : start + step], critical[start : start + step]
        low = np.bitwise_or.reduce(band.T.view(np.uint32), axis=None) | np.bitwise_or.reduce(limit.view(np.uint32))
        # As integers, values of bfloat16 models keep their order and are ranked and counted in half the time.
        if not low & np.uint32(2**_NARROW - 1):
            if not _count_narrow(band, rank, limit, narrow_counts):
                _rank_narrow(band, rank, limit, narrow_counts)
            continue
        keys = band.copy(order="C")
        if rank:
            keys.partition(units - rank, axis=1)
            np.minimum(limit, keys[:, units - rank], out=limit)
        bits = np.minimum(keys, limit[:, None], out=keys).view(np.uint32).ravel()
        if (bits & np.uint32(2**_DROPPED - 1)).any():
            return critical, None
        counts += np.bincount(bits >> np.uint32(_DROPPED), minlength=BINS)
    return critical, counts


def _rank_narrow(band: Float32, rank: int, limit: Float32, counts: Counts) -> None:
    """Lower `limit` to the peaks of a rank and add to `counts`, by partial sorting."""
    keys = np.ascontiguousarray(_keys(band))
    if rank:
        keys.partition(keys.shape[1] - rank, axis=1)
        np.minimum(limit, _floats(keys[:, keys.shape[1] - rank]), out=limit)
    np.minimum(keys, _narrow(limit)[:, None], out=keys)
    counts += np.bincount(keys.view(np.uint16).ravel(), minlength=len(counts))


def _count_narrow(band: Float32, rank: int, limit: Float32, counts: Counts) -> bool:
    """The same from a histogram of each feature, which needs neither sorting nor transposing.

    Returns
    -------
    whether it was done: it is not where the peaks span too many bins for the histograms to be small
    """
    features, units = band.shape
    keys = _keys(band).T
    lowest = int(keys.min())
    bins = int(keys.max()) - lowest + 1
    if bins > max(_FEW_BINS, units // 2):
        return False
    # Each feature has bins of its own, one after another. Sums of 16 bits wrap around and come out right.
    kind: type[np.integer[Any]] = np.uint16 if features * bins <= 2**16 else np.int64
    own = (np.arange(features) * bins - lowest).astype(kind)
    per_feature = np.zeros(features * bins, np.int64)
    rows = max(1, _BAND // features)
    for row in range(0, units, rows):
        places = np.add(keys[row : row + rows].astype(kind), own)
        per_feature += np.bincount(places.ravel(), minlength=features * bins)
    each = per_feature.reshape(features, bins)
    reached = np.cumsum(each[:, ::-1], axis=1)[:, ::-1]  # peaks at or above each bin
    if rank:
        best = (np.count_nonzero(reached >= rank, axis=1) - 1 + lowest).astype(np.int16)
        np.minimum(limit, _floats(best), out=limit)
    # What lies above the critical magnitude counts as lying there.
    cap = _narrow(limit).astype(np.int64) - lowest
    below = np.where(np.arange(bins) < cap[:, None], each, 0).sum(axis=0)
    np.add.at(counts, np.arange(lowest, lowest + bins) % len(counts), below)
    above = np.where(cap < bins, reached[np.arange(features), np.clip(cap, 0, bins - 1)], 0)
    np.add.at(counts, (cap + lowest) % len(counts), above)
    return True


def _keys(band: Float32) -> npt.NDArray[np.int16]:
    """Leading half of the bits of each peak, in the memory order of the peaks."""
    return _narrow(band) if band.strides[1] == band.itemsize else _narrow(band.T).T


def _narrow(values: Float32) -> npt.NDArray[np.int16]:
    """Leading half of the bits of each value, which has no others."""
    halves: npt.NDArray[np.int16] = values.view(np.int16)[..., _LEADING::2].copy()
    return halves


def _floats(keys: npt.NDArray[np.int16]) -> Float32:
    """The reverse of `_narrow`."""
    return (keys.view(np.uint16).astype(np.uint32) << np.uint32(_NARROW)).view(np.float32)


def hit_steps(counts: Counts) -> HitSteps:
    """Step function of a histogram."""
    used = np.flatnonzero(counts[: BINS // 2])  # the other half has the sign bit: -inf, which is no hit
    value = (used.astype(np.uint32) << np.uint32(_DROPPED)).view(np.float32)
    return HitSteps(value, np.cumsum(counts[used][::-1])[::-1])
