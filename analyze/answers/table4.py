"""The columns of Table 4 and the quantity of Figure 4a of Dettmers et al. 2022, LLM.int8()."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from analyze.answers.find import Outlier, Outliers, find_outliers
from analyze.display.shown import Shown
from analyze.display.text import cell, jsonable, percent
from analyze.peaks.lookup import view_peaks
from analyze.peaks.stream import stream_matrices
from analyze.question.criteria import Criteria
from analyze.question.ranks import threshold
from analyze.reading.activations import has_activations
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset
from analyze.types import Float32, Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, SEQUENCE, SITE


@dataclass(frozen=True)
class DettmersTable(Shown):
    """One row of Table 4.

    Parameters
    ----------
    outliers : number of outlier features, counted pooled
    one_sided : outlier features whose hits all have the same sign
    layers, positions : mean shares of layers and positions with a hit; NaN without an outlier
    most_common : the outlier feature with hits at the most positions (then in the most layers, then the strongest)
    quartiles : first quartile, median and third quartile of the most common outlier over its hits, with their signs
    largest : the outlier feature with the largest magnitude
    largest_median : median magnitude of the largest outlier feature over its hits (Figure 4a)
    criteria : pooled, whatever else was asked for
    """

    outliers: int
    one_sided: int
    layers: float
    positions: float
    most_common: int | None
    quartiles: tuple[float, float, float] | None
    largest: int | None
    largest_median: float
    criteria: Criteria

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON."""
        result: dict[str, Any] = jsonable({**vars(self), "criteria": self.criteria.to_dict()})
        return result

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        quartiles = "-" if self.quartiles is None else " / ".join(f"{value:.4g}" for value in self.quartiles)
        pairs = [
            ("Table 4 of Dettmers et al.", str(self.criteria)),
            ("outliers, one-sided", f"{self.outliers:,}, {self.one_sided:,}"),
            ("layers, positions", f"{percent(self.layers)}, {percent(self.positions)}"),
            ("most common outlier", f"{self.most_common}, quartiles of its hits {quartiles}"),
            ("largest outlier", f"{self.largest}, median magnitude of its hits {cell('', self.largest_median)}"),
        ]
        return pairs if self.outliers else pairs[:2]


def dettmers_table(
    store: Store, criteria: Criteria | None = None, *, progress: Progress | None = None
) -> DettmersTable:
    """Columns of Table 4 for the outliers of a criterion.

    Parameters
    ----------
    store : path, or Dataset from `open_store` or one that you chunked yourself
    criteria : thresholds, layer unit and view, `Criteria.preset("dettmers")` where None; counted pooled in any case
    progress : called with (finished, all) steps of the pass that gathers the hits of two features

    Returns
    -------
    The columns; quartiles and median are None and NaN where the store keeps no activations for the view

    Raises
    ------
    OutliersError
        A scale other than absolute, or a view that the store cannot serve.
    """
    store = as_dataset(store)
    criteria = Criteria.preset("dettmers") if criteria is None else criteria
    if criteria.scale != "absolute":
        raise OutliersError(f"scale is {criteria.scale!r}; quartiles are of the values themselves: expected absolute")
    criteria = Criteria(**{**vars(criteria), "counting": "pooled"}).resolve(store)
    found = find_outliers(store, criteria, progress=progress)
    if not found.features:
        return DettmersTable(0, 0, math.nan, math.nan, None, None, None, math.nan, criteria)
    common = max(found.features, key=_commonness).feature
    largest = max(found.features, key=lambda row: row.max_magnitude).feature
    quartiles, largest_median = None, math.nan
    if has_activations(store, criteria.signal):
        hits: list[list[Float32]] = [[], []]
        gather = partial(_hits, features=(common, largest), limit=float(criteria.magnitude))
        for _, _, _, parts in stream_matrices(store, criteria.view, gather, progress):
            for kept, part in zip(hits, parts, strict=True):
                kept.append(part)
        values, magnitudes = np.concatenate(hits[0]), np.abs(np.concatenate(hits[1]))
        if values.size:
            low, middle, high = np.quantile(values.astype(np.float64), (0.25, 0.5, 0.75))
            quartiles = (float(low), float(middle), float(high))
            largest_median = float(np.median(magnitudes.astype(np.float64)))
    return DettmersTable(
        found.count,
        _one_sided(store, found),
        found.mean_layer_fraction,
        found.mean_position_fraction,
        common,
        quartiles,
        largest,
        largest_median,
        criteria,
    )


def _commonness(row: Outlier) -> tuple[float, float, float]:
    return row.position_fraction, row.layer_fraction, row.critical_magnitude


def _hits(matrix: Float32, features: tuple[int, ...], limit: float) -> list[Float32]:
    level = threshold(limit)
    return [matrix[:, f][np.abs(matrix[:, f]) >= level] for f in features]


def _one_sided(store: Any, found: Outliers) -> int:
    """Outlier features without hits of both signs, from the largest and smallest values alone."""
    peaks = view_peaks(store, found.criteria)
    limit = threshold(found.criteria.magnitude)
    features = [row.feature for row in found.features]
    dims = (SEQUENCE, LAYER, SITE)
    # fmax and fmin pass over NaN, as a NaN never hits.
    high, low = (
        loaded(peaks[name].isel({FEATURE: features}).transpose(..., FEATURE)) for name in ("layer_high", "layer_low")
    )
    axes = tuple(range(len(dims)))
    above = np.fmax.reduce(high, axis=axes) >= limit
    below = np.fmin.reduce(low, axis=axes) <= -limit
    return int(np.count_nonzero(~(above & below)))
