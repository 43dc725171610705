"""Peaks reduced to what a report needs: how many of them reach each magnitude of a grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.peaks.groups import GroupReader
from analyze.peaks.threads import in_threads
from analyze.question.criteria import Criteria
from analyze.question.ranks import Limits, kth_largest, rank_ready, required_hits, threshold
from analyze.reading.lazy import loaded
from analyze.types import Float32, Progress
from capture.store.schema import FEATURE, LAYER, POSITION, SEQUENCE, SITE

Counts = npt.NDArray[np.unsignedinteger[Any]]

MOST_BUCKETS: Final = 64
_BAND = 2**22  # peaks that are looked up at once
_FLOOR = 0.01
_MARGIN = 4.0


@dataclass(frozen=True)
class LevelCounts:
    """Everything that a report embeds of one signal of a store.

    A peak's level is the number of magnitudes of the grid that it reaches. The counts are of peaks at each level from
    1 on: those at level i + 1 reach magnitude i and not the next, so that the hits at magnitude i are the sum of the
    counts from i on.

    Features are ordered by size, because deflate packs like beside like: a tenth less.

    Parameters
    ----------
    order : (feature,) number of the feature at each index of the others
    layer : (magnitude, feature, sequence) layers whose largest site is at the level
    extra : the same of (layer, site) pairs, less `layer`; never negative, because each layer hit is a pair hit too
    position : (magnitude, feature, sequence) positions at the level
    largest : (feature, sequence) float32, largest magnitude
    profile : (layer * site, feature) level of the largest magnitude over sequences
    negative : (layer * site, feature) whether the value of that magnitude is negative
    buckets : (bucket, feature) level of the largest magnitude over sequences, layers, sites and a bucket's positions
    """

    order: Counts
    layer: Counts
    extra: Counts
    position: Counts
    largest: Float32
    profile: Counts
    negative: Counts
    buckets: Counts

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays by name."""
        return dict(vars(self))


def bucket_starts(positions: int) -> list[int]:
    """First position of each bucket: one for each position, or, of many positions, one for the first, the rest shared.

    The first token has a bucket of its own because attention sinks live there.
    """
    if positions <= MOST_BUCKETS:
        return list(range(positions))
    return [0, *(1 + i * (positions - 1) // (MOST_BUCKETS - 1) for i in range(MOST_BUCKETS - 1))]


def span(peaks: xr.Dataset, criteria: Criteria) -> tuple[float, float]:
    """Magnitudes between which a view goes from saturation to nothing, from its layer peaks alone.

    Returns
    -------
    low : a quarter of the magnitude that all but 1% of the features reach in as many layers as the criterion asks for
    high : largest finite magnitude; 0 where there is none
    """
    low, high = [np.zeros(1, np.float32)], 0.0
    for n in range(peaks.sizes[SEQUENCE]):
        layer = _magnitudes(peaks.isel({SEQUENCE: n}))
        units = rank_ready(layer.reshape(-1, layer.shape[-1]))
        high = max(high, float(units.max(initial=0, where=np.isfinite(units))))
        rank = max(1, required_hits(criteria.layers, len(units)))
        low.append(kth_largest(np.ascontiguousarray(units.T), (rank,))[0])
    reached = np.concatenate(low[1:])
    reached = reached[np.isfinite(reached)]
    return (float(np.quantile(reached, _FLOOR)) / _MARGIN if reached.size else 0.0), high


def _magnitudes(part: xr.Dataset) -> Float32:
    return np.asarray(np.fmax(np.abs(loaded(part["layer_high"])), np.abs(loaded(part["layer_low"]))))


def tally(
    peaks: xr.Dataset, criteria: Criteria, magnitudes: list[float], progress: Progress | None = None
) -> LevelCounts:
    """Levels of a view's peaks, counted.

    Parameters
    ----------
    peaks : of `view_peaks`
    criteria : its view; thresholds, counting and layer unit are not used
    magnitudes : the grid, ascending
    progress : called with (finished, all) sequences

    Raises
    ------
    OutliersError
        A damaged chunk.
    """
    limits = Limits(threshold(magnitudes))
    sequences, width, positions = (peaks.sizes[dim] for dim in (SEQUENCE, FEATURE, POSITION))
    layers, sites = peaks.sizes[LAYER], peaks.sizes[SITE]
    starts = bucket_starts(positions)
    shape = (len(magnitudes), width, sequences)
    layer, extra, position = (np.zeros(shape, least_dtype(most)) for most in (layers, layers * (sites - 1), positions))
    largest = np.empty((width, sequences), np.float32)
    profile = np.full((layers * sites, width), -np.inf, np.float32)
    negative = np.zeros(profile.shape, np.uint8)
    buckets = np.full((len(starts), width), -np.inf, np.float32)
    single = replace(criteria, counting="per-sequence", layer_unit="site")
    work = partial(_of_sequence, peaks=peaks, read=GroupReader(peaks, single), limits=limits, starts=starts)
    for n, part in enumerate(in_threads(work, range(sequences))):
        layer[..., n], extra[..., n], position[..., n] = part.layer, part.extra, part.position
        largest[:, n] = part.largest
        above = part.profile > profile
        profile[above], negative[above] = part.profile[above], part.negative[above]
        np.maximum(buckets, part.buckets, out=buckets)
        if progress is not None:
            progress(n + 1, sequences)
    levels = [limits.reached(values).astype(least_dtype(len(magnitudes))) for values in (profile, buckets)]
    size = np.arange(len(magnitudes)) @ position.sum(axis=2, dtype=np.int64)
    order = np.argsort(size, kind="stable")
    return LevelCounts(
        order=order.astype(least_dtype(width)),
        layer=layer[:, order],
        extra=extra[:, order],
        position=position[:, order],
        largest=largest[order],
        profile=levels[0][:, order],
        negative=negative[:, order],
        buckets=levels[1][:, order],
    )


@dataclass(frozen=True)
class _Part:
    layer: Counts
    extra: Counts
    position: Counts
    largest: Float32
    profile: Float32
    negative: npt.NDArray[np.bool_]
    buckets: Float32


def _of_sequence(n: int, *, peaks: xr.Dataset, read: GroupReader, limits: Limits, starts: list[int]) -> _Part:
    width, sites = peaks.sizes[FEATURE], peaks.sizes[SITE]
    group = read((n, range(width)))
    part = peaks.isel({SEQUENCE: n})
    high, low = (loaded(part[name]).reshape(-1, width) for name in ("layer_high", "layer_low"))
    by_layer = np.ascontiguousarray(group.layer.reshape(width, -1, sites).max(axis=2))
    layer = level_counts(by_layer, limits)
    return _Part(
        layer=layer,
        extra=level_counts(group.layer, limits) - layer,
        position=level_counts(group.position, limits),
        largest=np.maximum(group.layer.max(axis=1), group.position.max(axis=1)),
        profile=np.ascontiguousarray(group.layer.T),
        negative=np.where(np.abs(low) > np.abs(high), low, high) < 0,
        buckets=np.ascontiguousarray(np.maximum.reduceat(group.position, starts, axis=1).T),
    )


def level_counts(magnitudes: Float32, limits: Limits) -> Counts:
    """How many peaks of each feature reach each limit and not the next.

    Parameters
    ----------
    magnitudes : (feature, place) float32 without NaN, C-contiguous
    limits : the grid

    Returns
    -------
    (limit, feature)
    """
    bins = len(limits.values) + 1
    result = np.empty((bins - 1, len(magnitudes)), np.uint32)
    for band in _bands(magnitudes.shape):
        levels = limits.reached(magnitudes[band])
        levels += np.arange(len(levels))[:, None] * bins
        counts = np.bincount(levels.ravel(), minlength=len(levels) * bins).reshape(-1, bins)
        result[:, band] = counts[:, 1:].T
    return result


def _bands(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _BAND // max(1, shape[1]))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def least_dtype(most: int) -> np.dtype[Any]:
    """Smallest unsigned integers that hold 0 to `most`."""
    return np.min_scalar_type(most)
