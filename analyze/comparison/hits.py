"""Where each feature of a store hits, sequence by sequence, from one reading of its peaks.

At one magnitude this is all that any counting needs, of the sequences as they are or drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.peaks.lookup import view_peaks
from analyze.peaks.threads import in_threads
from analyze.question.criteria import Criteria
from analyze.question.ranks import required_hits, threshold
from analyze.question.units import round_bfloat16
from analyze.reading.lazy import loaded
from analyze.types import Counts, Float32, Progress
from capture.store.schema import FEATURE, POSITION, SEQUENCE

Words = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

_WORD: Final = 64
_MOST_KEPT: Final = 2**22  # position peaks of the strongest features that are kept in one reading, 16 MiB
_MOST_STRONG: Final = 64


@dataclass(frozen=True)
class Hits:
    """Hits of one criterion's magnitude in one store.

    Parameters
    ----------
    criteria : the criterion
    layer : (sequence, feature, word) uint64, a bit for each layer unit
    position : (sequence, feature) int64, number of positions with a hit
    units : number of layer units
    positions : (sequence,) int64, number of positions that count
    largest : (sequence, feature) float32, largest magnitude; NaN where there is no number
    above, below : (sequence, feature) bool, whether any hit is positive, and whether any is negative
    strong : position peaks of the strongest features, by feature: (sequence, position) float32
    """

    criteria: Criteria
    layer: Words
    position: Counts
    units: int
    positions: Counts
    largest: Float32
    above: Bools
    below: Bools
    strong: dict[int, Float32] = field(repr=False)

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return len(self.position)


def read_hits(
    store: xr.Dataset, criteria: Sequence[Criteria], *, use_cache: bool = True, progress: Progress | None = None
) -> list[Hits]:
    """Hits of several criteria, which share one reading of the peaks where they differ in nothing but rounding.

    Parameters
    ----------
    store : Dataset from `open_store`, or one that you chunked yourself
    criteria : resolved against the store
    use_cache, progress : as in `view_peaks`

    Raises
    ------
    OutliersError
        A view that the store cannot serve, or a damaged chunk.
    """
    found: list[Hits | None] = [None] * len(criteria)
    sources: dict[Any, list[int]] = {}
    for place, one in enumerate(criteria):
        sources.setdefault(_source(one).view, []).append(place)
    for source, places in sources.items():
        peaks = view_peaks(store, source, use_cache=use_cache, progress=progress)
        for place, hits in zip(places, _read(peaks, [criteria[place] for place in places]), strict=True):
            found[place] = hits
    return [hits for hits in found if hits is not None]


def _source(criteria: Criteria) -> Criteria:
    """What is read from disk: rounding is done here where it can be done to peaks."""
    return replace(criteria, rounding="none") if criteria.scale == "absolute" else criteria


def _rounded(values: Float32, criteria: Criteria) -> Float32:
    asked = criteria.rounding == "bfloat16" and criteria.scale == "absolute"
    return round_bfloat16(values) if asked else values


def _each(peaks: xr.Dataset, function: Callable[[xr.Dataset], Any]) -> Iterator[Any]:
    """A function of every sequence, by a few threads."""
    return in_threads(lambda n: function(peaks.isel({SEQUENCE: n})), range(peaks.sizes[SEQUENCE]))


def _read(peaks: xr.Dataset, criteria: list[Criteria]) -> list[Hits]:
    layers = [list(parts) for parts in zip(*_each(peaks, lambda part: _layer_hits(part, criteria)), strict=True)]
    strong = [_strongest(parts, one, peaks) for parts, one in zip(layers, criteria, strict=True)]
    positions = zip(*_each(peaks, lambda part: _position_hits(part, criteria, strong)), strict=True)
    return [
        Hits(
            criteria=one,
            layer=np.stack([part.bits for part in layer]),
            position=np.stack([counts for counts, _ in position]),
            units=layer[0].units,
            positions=peaks["counted"].values,
            largest=np.stack([part.largest for part in layer]),
            above=np.stack([part.above for part in layer]),
            below=np.stack([part.below for part in layer]),
            strong={f: np.stack([kept[:, i] for _, kept in position]) for i, f in enumerate(features)},
        )
        for one, layer, position, features in zip(criteria, layers, positions, strong, strict=True)
    ]


@dataclass(frozen=True)
class _LayerHits:
    bits: Words
    units: int
    largest: Float32
    above: Bools
    below: Bools


def _layer_hits(part: xr.Dataset, criteria: list[Criteria]) -> list[_LayerHits]:
    stored = [loaded(part[name]) for name in ("layer_high", "layer_low")]
    result = []
    for one in criteria:
        high, low = (_rounded(values, one) for values in stored)
        limit = threshold(one.magnitude)
        magnitude = np.fmax(np.abs(high), np.abs(low))
        hit = magnitude >= limit  # (layer, site, feature); a NaN never hits
        units = hit.reshape(-1, hit.shape[-1]) if one.layer_unit == "site" else np.logical_or.reduce(hit, axis=1)
        result.append(
            _LayerHits(
                pack_bits(units),
                len(units),
                np.fmax.reduce(magnitude, axis=(0, 1)),
                np.logical_or.reduce(high >= limit, axis=(0, 1)),
                np.logical_or.reduce(low <= -limit, axis=(0, 1)),
            )
        )
    return result


def _position_hits(part: xr.Dataset, criteria: list[Criteria], strong: list[list[int]]) -> list[tuple[Counts, Float32]]:
    stored = loaded(part["position_peak"])
    result = []
    for one, features in zip(criteria, strong, strict=True):
        values = _rounded(stored, one)
        counts = np.count_nonzero(values >= threshold(one.magnitude), axis=0)
        result.append((counts, values[:, features].copy()))
    return result


def pack_bits(units: Bools) -> Words:
    """(unit, feature) booleans as (feature, word) bits."""
    total, features = units.shape
    padded = np.zeros((features, -(-total // _WORD) * _WORD), bool)
    padded[:, :total] = units.T
    return np.packbits(padded, axis=1).view(np.uint64)


def _strongest(parts: list[_LayerHits], criteria: Criteria, peaks: xr.Dataset) -> list[int]:
    """Features with hits in enough layers of all sequences together, the largest magnitudes first, as many as fit."""
    bits = np.bitwise_or.reduce([part.bits for part in parts])
    enough = np.bitwise_count(bits).sum(axis=1, dtype=np.int64) >= required_hits(criteria.layers, parts[0].units)
    largest = np.where(enough, np.fmax.reduce([part.largest for part in parts]), -np.inf)
    most = min(_MOST_STRONG, max(1, _MOST_KEPT // (peaks.sizes[SEQUENCE] * peaks.sizes[POSITION])))
    order = np.argsort(-np.nan_to_num(largest, nan=-np.inf), kind="stable")[:most]
    return [int(f) for f in order if enough[f]]


def position_peaks(store: xr.Dataset, criteria: Criteria, feature: int, *, use_cache: bool = True) -> Float32:
    """(sequence, position) position peaks of one feature, for the rare one that `read_hits` did not keep."""
    peaks = view_peaks(store, criteria, use_cache=use_cache)["position_peak"]
    parts = in_threads(lambda n: loaded(peaks.isel({SEQUENCE: n, FEATURE: feature})), range(peaks.sizes[SEQUENCE]))
    return np.stack(list(parts))
