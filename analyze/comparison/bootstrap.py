"""Counts of outliers, of the sequences as they are and of sequences drawn again.

A capture's sequences are a sample of text. Drawing as many of them again, with replacement, many times over, says how
far a count or a mean would move with another sample (Efron 1979; percentile intervals). Sequences are drawn whole,
since the tokens of one are anything but independent. With few sequences, or texts that overlap, intervals are too
narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from analyze.comparison.hits import Bools, Hits
from analyze.question.ranks import required_hits
from analyze.types import Counts, Float64
from capture.errors import OutliersError

Interval = tuple[float, float]

LEVEL: Final = 0.95
STATISTICS: Final = ("count", "mean_layer_fraction", "mean_position_fraction")
UNKNOWN: Final[Interval] = (math.nan, math.nan)
_MOST_DRAWN: Final = 2**25  # sequences drawn in all resamples, 256 MiB
_WORDS_AT_ONCE: Final = 2**20  # 8 MiB


def draws(sequences: int, resamples: int, seed: int) -> Counts:
    """How often each sequence is drawn in each resample: (resample, sequence) int64, rows summing to `sequences`.

    Parameters
    ----------
    sequences : number of sequences
    resamples : number of resamples, 0 or more
    seed : of `numpy.random.default_rng`, from which `integers(sequences, size=(resamples, sequences))` are drawn
    """
    chosen = np.random.default_rng(seed).integers(sequences, size=(resamples, sequences))
    flat = (chosen + np.arange(resamples)[:, None] * sequences).ravel()
    return np.bincount(flat, minlength=resamples * sequences).reshape(resamples, sequences)


def check_bootstrap(resamples: int, seed: int, sequences: int = 0) -> None:
    """Refuse numbers that cannot be drawn with."""
    for name, value in (("resamples", resamples), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise OutliersError(f"{name} is {value!r}; expected a whole number, 0 or more")
    if resamples * sequences > _MOST_DRAWN:
        raise OutliersError(
            f"resamples is {resamples:,}; expected {_MOST_DRAWN // sequences:,} or fewer of {sequences:,} sequences"
        )


@dataclass(frozen=True)
class Resampled:
    """What a criterion finds in some sequences, several times over.

    Parameters
    ----------
    count : (resample,) int64, outliers, summed over sequences unless pooled
    mean_layer_fraction, mean_position_fraction : (resample,) float64, means over the outliers, NaN where there is none
    """

    count: Counts
    mean_layer_fraction: Float64
    mean_position_fraction: Float64


def tally(hits: Hits, weights: Counts) -> Resampled:
    """Count outliers in resampled sequences.

    Parameters
    ----------
    hits : of the sequences
    weights : (resample, sequence) int64, as from `draws`

    Notes
    -----
    Counted by sequence, everything is a sum over sequences. Pooled, hits at positions add up and the layer units hit
    are a union; both are taken anew for each resample, of the features that can be outliers at all. Time grows with
    resamples times sequences times these features.
    """
    if hits.criteria.counting == "per-sequence":
        outliers, layer_hits, position_hits = per_sequence(hits)
        totals = [np.where(outliers, values, 0).sum(axis=1) for values in (layer_hits, position_hits)]
        count = weights @ outliers.sum(axis=1)
        by_layer = _means(weights @ totals[0], hits.units, count)
        # As few quotients as there are different lengths; a mean over no outlier is NaN.
        shares = [
            _means(weights[:, same] @ totals[1][same], length, count)
            for length in np.unique(hits.positions[hits.positions > 0])
            for same in [hits.positions == length]
        ]
        return Resampled(count, by_layer, np.sum(shares, axis=0, dtype=np.float64))
    positions = weights @ hits.positions
    least_layers = required_hits(hits.criteria.layers, hits.units)
    least = _required(hits.criteria.positions, positions)
    # No resample has more hits than all sequences' units together, or a larger share than the best of its sequences.
    union = np.bitwise_or.reduce(hits.layer, axis=0)
    best = np.max(hits.position / np.maximum(hits.positions, 1)[:, None], axis=0)
    able = (_ones(union) >= least_layers) & (best >= hits.criteria.positions)
    bits, counts = hits.layer[:, able], hits.position[:, able]
    result = np.zeros((3, len(weights)), np.int64)
    step = max(1, _WORDS_AT_ONCE // max(1, bits[0].size))
    for start in range(0, len(weights), step):
        part = weights[start : start + step]
        units = np.zeros((len(part), *bits.shape[1:]), np.uint64)
        for n in range(hits.sequences):
            drawn = part[:, n] > 0
            units[drawn] |= bits[n]
        layer_hits, position_hits = _ones(units), part @ counts
        outliers = (layer_hits >= least_layers) & (position_hits >= least[start : start + step, None])
        for row, values in enumerate((outliers, layer_hits * outliers, position_hits * outliers)):
            result[row, start : start + step] = values.sum(axis=1)
    count = result[0]
    return Resampled(count, _means(result[1], hits.units, count), _means(result[2], positions, count))


def per_sequence(hits: Hits) -> tuple[Bools, Counts, Counts]:
    """Outliers of each sequence by itself, and every feature's hits: all (sequence, feature)."""
    layer_hits = _ones(hits.layer)
    outliers: Bools = (layer_hits >= required_hits(hits.criteria.layers, hits.units)) & (
        hits.position >= _required(hits.criteria.positions, hits.positions)[:, None]
    )
    return outliers, layer_hits, hits.position


def pooled(hits: Hits) -> tuple[Bools, Counts, Counts]:
    """Outliers of all sequences as one, and every feature's hits: all (1, feature)."""
    layer_hits = _ones(np.bitwise_or.reduce(hits.layer, axis=0, keepdims=True))
    position_hits = hits.position.sum(axis=0, keepdims=True)
    outliers: Bools = (layer_hits >= required_hits(hits.criteria.layers, hits.units)) & (
        position_hits >= required_hits(hits.criteria.positions, int(hits.positions.sum()))
    )
    return outliers, layer_hits, position_hits


def intervals(hits: Hits, weights: Counts) -> dict[str, Interval]:
    """Percentile intervals of `STATISTICS`; NaN where fewer than two sequences, or no resample, can tell.

    Resamples without any outlier have no mean, and are left out of the intervals of means.
    """
    if hits.sequences < 2:
        return dict.fromkeys(STATISTICS, UNKNOWN)
    found = tally(hits, weights)
    return {name: interval(getattr(found, name)) for name in STATISTICS}


def interval(values: npt.NDArray[np.generic]) -> Interval:
    """Percentile interval of resampled values, NaN left out."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return UNKNOWN
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _ones(bits: npt.NDArray[np.uint64]) -> Counts:
    """Number of bits set, summed over the last axis."""
    return np.asarray(np.bitwise_count(bits).sum(axis=-1, dtype=np.int64))


def _required(fraction: float, totals: Counts) -> Counts:
    """`required_hits` of each of many totals, few of which differ."""
    different, place = np.unique(totals, return_inverse=True)
    return np.array([required_hits(fraction, int(total)) for total in different], np.int64)[place]


def _means(hits: Counts, total: int | Counts, count: Counts) -> Float64:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(hits / (total * count), np.float64)
