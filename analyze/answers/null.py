"""What a criterion finds by chance: features permuted independently at each (sequence, layer, site, position)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.answers.find import find_outliers
from analyze.display.shown import Shown
from analyze.peaks.counted import counted_positions
from analyze.peaks.stream import stream_matrices
from analyze.peaks.threads import in_threads
from analyze.question.checks import check_repeats
from analyze.question.criteria import Criteria
from analyze.question.ranks import required_hits, threshold
from analyze.question.units import scale_unit, scaled
from analyze.reading.open import as_dataset
from analyze.types import Float32, Progress, Store
from capture.store.schema import FEATURE, LAYER, POSITION, SEQUENCE, SITE

Bools = npt.NDArray[np.bool_]
Hits = npt.NDArray[np.int64]

_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Null(Shown):
    """Outliers found beside those found after permutation.

    Parameters
    ----------
    criteria : the criterion
    repeats, seed : number of permutations, and where their randomness starts
    count, distinct_features : found in the store as it is
    null_counts, null_distinct : (repeat,) int64, found after each permutation
    """

    criteria: Criteria
    repeats: int
    seed: int
    count: int
    distinct_features: int
    null_counts: Hits = field(repr=False)
    null_distinct: Hits = field(repr=False)

    @property
    def mean(self) -> float:
        """Mean count after permutation."""
        return float(self.null_counts.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """2.5% and 97.5% quantiles of the counts after permutation."""
        low, high = np.quantile(self.null_counts, _INTERVAL)
        return float(low), float(high)

    @property
    def p_more(self) -> float:
        """Share of permutations with at least this count, the store counted as one (Phipson and Smyth 2010)."""
        return float(1 + np.count_nonzero(self.null_counts >= self.count)) / (1 + self.repeats)

    @property
    def p_fewer(self) -> float:
        """Share of permutations with at most this count: small where hits crowd into few features."""
        return float(1 + np.count_nonzero(self.null_counts <= self.count)) / (1 + self.repeats)

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        low, high = self.interval
        return [
            ("criterion", str(self.criteria)),
            ("outliers", f"{self.count:,} ({self.distinct_features:,} distinct features)"),
            ("after permutation", f"{self.mean:,.1f} on average, 95% of {self.repeats} in {low:g} to {high:g}"),
            ("p", f"{self.p_more:.3g} that chance finds as many, {self.p_fewer:.3g} that it finds as few"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers null --json` prints."""
        low, high = np.quantile(self.null_distinct, _INTERVAL)
        return {
            "count": self.count,
            "distinct_features": self.distinct_features,
            "null_mean": self.mean,
            "null_interval": list(self.interval),
            "null_distinct_mean": float(self.null_distinct.mean()),
            "null_distinct_interval": [float(low), float(high)],
            "p_more": self.p_more,
            "p_fewer": self.p_fewer,
            "repeats": self.repeats,
            "seed": self.seed,
            "criteria": self.criteria.to_dict(),
        }


def permutation_null(
    store: Store,
    criteria: Criteria | None = None,
    *,
    repeats: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Null:
    """Count outliers after permuting features independently at each (sequence, layer, site, position).

    A permutation keeps how many hits each token has at each site and breaks which features they fall on, so what the
    criterion still finds is what it finds without any coordination across layers and positions. Where hits are many,
    permutation spreads them over all features and finds more than the store has; coordination then shows in fewer
    outliers than by chance. One pass counts the
    hits; a permutation then draws as many features at random, without the activations.

    Parameters
    ----------
    store : path, or Dataset from `open_store` or one that you chunked yourself
    criteria : as in `find_outliers`
    repeats : number of permutations, 1 or more
    seed : the same seed gives the same counts, whatever the number of threads
    progress : called with (finished, all) steps of the pass, then of the permutations

    Raises
    ------
    OutliersError
        Bad repeats or seed, or a view that the store has no activations for.
    """
    check_repeats(repeats, seed)
    store = as_dataset(store)
    criteria = (Criteria() if criteria is None else criteria).resolve(store)
    found = find_outliers(store, criteria, progress=progress)
    hits = _hits(store, criteria, progress)
    counted = counted_positions(store, criteria).sum(axis=1, dtype=np.int64)
    width = store.sizes[FEATURE]

    def repeat(number: int) -> tuple[int, int]:
        return _permuted(hits, counted, criteria, width, seed, number)

    counts = np.empty((repeats, 2), np.int64)
    for number, result in enumerate(in_threads(repeat, range(repeats))):
        counts[number] = result
        if progress is not None:
            progress(number + 1, repeats)
    return Null(criteria, repeats, seed, found.count, found.distinct_features, counts[:, 0], counts[:, 1])


def _hits(store: xr.Dataset, criteria: Criteria, progress: Progress | None) -> Hits:
    """Number of hits of each token at each site: (sequence, layer, site, position)."""
    sizes = criteria.select(store).sizes
    hits = np.zeros(tuple(sizes[dim] for dim in (SEQUENCE, LAYER, SITE, POSITION)), np.int64)
    count = partial(_count, magnitude=float(criteria.magnitude), scale=criteria.scale)
    for n, layer, site, row in stream_matrices(store, criteria.view, count, progress):
        hits[n, layer, site] = row
    return hits


def _count(matrix: Float32, magnitude: float, scale: str) -> Hits:
    unit = None if scale == "absolute" else scale_unit(matrix, scale)
    hits: Hits = np.count_nonzero(scaled(np.abs(matrix), unit) >= threshold(magnitude), axis=1)
    return hits


def _permuted(hits: Hits, counted: Hits, criteria: Criteria, width: int, seed: int, number: int) -> tuple[int, int]:
    """Outliers and distinct features after one permutation; `counted` positions of each sequence count."""
    sequences, layers, sites, positions = hits.shape
    units = layers * (sites if criteria.layer_unit == "site" else 1)
    count, distinct = 0, np.zeros(width, bool)
    pooled_layers, pooled_positions = np.zeros((units, width), bool), np.zeros(width, np.int64)
    for n in range(sequences):
        # A stream of randomness for each sequence: results do not depend on who comes first.
        generator = np.random.default_rng((seed, number, n))
        layer_hit, position_hit = np.zeros((units, width), bool), np.zeros((positions, width), bool)
        for layer, site in np.ndindex(layers, sites):
            marks = random_subsets(generator, hits[n, layer, site], width)
            unit = layer * sites + site if criteria.layer_unit == "site" else layer
            layer_hit[unit] |= marks.any(axis=0)
            position_hit |= marks
        if criteria.counting == "pooled":
            pooled_layers |= layer_hit
            pooled_positions += position_hit.sum(axis=0)
        else:
            outlier = _enough(layer_hit.sum(axis=0), position_hit.sum(axis=0), criteria, units, int(counted[n]))
            count += int(outlier.sum())
            distinct |= outlier
    if criteria.counting == "pooled":
        distinct = _enough(pooled_layers.sum(axis=0), pooled_positions, criteria, units, int(counted.sum()))
        count = int(distinct.sum())
    return count, int(distinct.sum())


def _enough(layer_hits: Hits, position_hits: Hits, criteria: Criteria, units: int, positions: int) -> Bools:
    enough: Bools = (layer_hits >= required_hits(criteria.layers, units)) & (
        position_hits >= required_hits(criteria.positions, positions)
    )
    return enough


def random_subsets(generator: np.random.Generator, sizes: Hits, width: int) -> Bools:
    """Subsets of features, one a row, each uniform among those of its size.

    Parameters
    ----------
    generator : source of randomness
    sizes : (row,) int64, 0 to `width`
    width : number of features

    Returns
    -------
    (row, feature) bool

    Notes
    -----
    Robert Floyd's sampling, all rows at once (Bentley and Floyd 1987, Communications of the ACM 30(9)); of a row with
    more than half of the features the rest is drawn.
    """
    marks = np.zeros((len(sizes), width), bool)
    drawn = np.minimum(sizes, width - sizes)
    order = np.argsort(-drawn, kind="stable")
    ordered = drawn[order]
    active = len(order)
    for step in range(int(ordered[0]) if len(order) else 0):
        active = int(np.searchsorted(-ordered[:active], -step, side="left"))
        rows, last = order[:active], width - ordered[:active] + step
        chosen = generator.integers(0, last + 1)
        marks[rows, np.where(marks[rows, chosen], last, chosen)] = True
    marks[sizes > width - sizes] ^= True
    return marks
