"""Outlier features of a store at one threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from analyze.answers.facts import ROUNDED_NOTE, mean_fraction, nonfinite_count, perplexity
from analyze.display.shown import Shown
from analyze.display.text import jsonable, percent
from analyze.peaks.groups import Group, of_groups
from analyze.peaks.lookup import view_peaks
from analyze.question.criteria import SATURATED, Criteria
from analyze.question.ranks import critical_magnitude, required_hits, threshold
from analyze.reading.open import as_dataset
from analyze.types import Float32, Progress, Store
from capture.store.identity import store_id
from capture.store.schema import FEATURE, SEQUENCE, mantissa_bits


@dataclass(frozen=True)
class Outlier:
    """One outlier feature, of one sequence or, pooled, of all.

    Parameters
    ----------
    sequence : number of the sequence; None where pooled
    feature : index into the hidden dimension
    layer_fraction, position_fraction : shares of layer units and of positions with a hit
    max_magnitude : largest magnitude over the view
    critical_magnitude : largest threshold at which it still is an outlier; inf where both fractions asked for are 0
    """

    sequence: int | None
    feature: int
    layer_fraction: float
    position_fraction: float
    max_magnitude: float
    critical_magnitude: float


@dataclass(frozen=True)
class Outliers(Shown):
    """What a criterion finds in a store.

    Parameters
    ----------
    count : outlier features, summed over sequences unless pooled
    distinct_features : different features among them
    hidden_size : width of the model
    mean_layer_fraction, mean_position_fraction : means over the outliers; NaN where there is none
    perplexity : exp of the mean negative log-likelihood over positions >= 1 of the view's sequences; NaN if unknown
    nonfinite_count : NaN and infinite values among those that count (over all positions of the view's sequences)
    criteria : the criterion
    features : the outliers, those with the largest critical magnitude first
    store_id : name of the store that answered; None where it has none
    mantissa_bits : to which the store's activations were rounded when it was packed; None where they are exact
    """

    count: int
    distinct_features: int
    hidden_size: int
    mean_layer_fraction: float
    mean_position_fraction: float
    perplexity: float
    nonfinite_count: int
    criteria: Criteria
    features: tuple[Outlier, ...] = field(repr=False)
    mantissa_bits: int | None = None
    store_id: str | None = None

    @property
    def share(self) -> float:
        """Distinct outlier features as a share of the width."""
        return self.distinct_features / self.hidden_size

    @property
    def saturated(self) -> bool:
        """Whether more than half of the width qualifies, so that the criterion tells features apart no longer."""
        return self.share > SATURATED

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers find --json` prints: strict JSON, null for what is not a finite number."""
        result = {
            "count": self.count,
            "distinct_features": self.distinct_features,
            "hidden_size": self.hidden_size,
            "saturated": self.saturated,
            "mean_layer_fraction": jsonable(self.mean_layer_fraction),
            "mean_position_fraction": jsonable(self.mean_position_fraction),
            "perplexity": jsonable(self.perplexity),
            "criteria": self.criteria.to_dict(),
            "features": jsonable(self.rows()),
        }
        if self.nonfinite_count:
            result["nonfinite_count"] = self.nonfinite_count
        if self.mantissa_bits is not None:
            result["mantissa_bits"] = self.mantissa_bits
        if self.store_id is not None:
            result["store_id"] = self.store_id
        return result

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        rows = [
            ("criterion", str(self.criteria)),
            ("outliers", f"{self.count:,}"),
            (
                "distinct features",
                f"{self.distinct_features:,} of {self.hidden_size:,} ({self.share:.1%} of the width)",
            ),
            ("mean L%", percent(self.mean_layer_fraction)),
            ("mean S%", percent(self.mean_position_fraction)),
            ("perplexity", "unknown" if math.isnan(self.perplexity) else f"{self.perplexity:.2f}"),
        ]
        if self.nonfinite_count:
            rows.append(("not finite", f"{self.nonfinite_count:,} values are NaN or infinite; a NaN never hits"))
        if self.mantissa_bits is not None:
            rows.append(("rounded", ROUNDED_NOTE.format(self.mantissa_bits)))
        if self.saturated:
            rows.append(("saturated", "over half of the width qualifies: the criterion tells features apart no longer"))
        return rows

    def rows(self) -> list[dict[str, Any]]:
        """One record an outlier, the fields of `Outlier`."""
        return [dict(vars(row)) for row in self.features]


def find_outliers(
    store: Store, criteria: Criteria | None = None, *, use_cache: bool = True, progress: Progress | None = None
) -> Outliers:
    """Outlier features of a store.

    Parameters
    ----------
    store : path, or Dataset from `open_store` or one that you chunked yourself; subsets are chosen by `criteria`
    criteria : thresholds, counting and view; the defaults of `Criteria` where None
    use_cache, progress : as in `view_peaks`

    Raises
    ------
    OutliersError
        A store that cannot be read, or a view that it cannot serve.
    """
    store = as_dataset(store)
    criteria = (Criteria() if criteria is None else criteria).resolve(store)
    peaks = view_peaks(store, criteria, use_cache=use_cache, progress=progress)
    found = list(of_groups(partial(_find, criteria=criteria), peaks, criteria))
    rows = sorted(
        (row for part in found for row in part.rows),
        key=lambda row: (-row.critical_magnitude, -1 if row.sequence is None else row.sequence, row.feature),
    )
    return Outliers(
        count=len(rows),
        distinct_features=len({row.feature for row in rows}),
        hidden_size=peaks.sizes[FEATURE],
        mean_layer_fraction=mean_fraction(((part.layer_hits, part.layer_units) for part in found), len(rows)),
        mean_position_fraction=mean_fraction(((part.position_hits, part.positions) for part in found), len(rows)),
        perplexity=perplexity(store, criteria),
        nonfinite_count=nonfinite_count(store, criteria),
        criteria=criteria,
        features=tuple(rows),
        mantissa_bits=mantissa_bits(store.attrs),
        store_id=store_id(store.attrs),
    )


@dataclass(frozen=True)
class _Found:
    rows: list[Outlier]
    layer_hits: int
    position_hits: int
    layer_units: int
    positions: int


def _find(group: Group, criteria: Criteria) -> _Found:
    limit = threshold(criteria.magnitude)
    units, positions = group.layer.shape[1], group.positions
    layer_hits = np.count_nonzero(group.layer >= limit, axis=1)
    position_hits = np.count_nonzero(group.position >= limit, axis=1)
    found = np.flatnonzero(
        (layer_hits >= required_hits(criteria.layers, units))
        & (position_hits >= required_hits(criteria.positions, positions))
    )
    layer, position = group.layer[found], group.position[found]
    critical = critical_magnitude(layer, position, criteria.layers, criteria.positions, positions)
    rows = [
        Outlier(
            sequence=group.sequence,
            feature=group.features[int(f)],
            layer_fraction=int(layer_hits[f]) / units,
            position_fraction=int(position_hits[f]) / positions,
            max_magnitude=max(float(layer[i].max()), float(position[i].max())),
            critical_magnitude=float(critical[i]),
        )
        for i, f in enumerate(found)
    ]
    return _Found(rows, int(layer_hits[found].sum()), int(position_hits[found].sum()), units, positions)


def critical_magnitudes(
    store: Store, criteria: Criteria | None = None, *, use_cache: bool = True, progress: Progress | None = None
) -> xr.DataArray:
    """Largest magnitude at which each feature is an outlier, for the fractions of a criterion.

    The outliers at any magnitude m are the entries that are >= float32(m): one call answers every threshold exactly.

    Parameters
    ----------
    store, use_cache, progress : as in `find_outliers`
    criteria : fractions, counting, layer unit and view; its magnitude is not used

    Returns
    -------
    (sequence, feature) float32, or (feature,) where pooled; +inf where both fractions are 0, -inf where a feature has
    too few numbers (all others NaN), or no position of the sequence counts

    Raises
    ------
    OutliersError
        A store that cannot be read, or a view that it cannot serve.
    """
    store = as_dataset(store)
    criteria = (Criteria() if criteria is None else criteria).resolve(store)
    peaks = view_peaks(store, criteria, use_cache=use_cache, progress=progress)
    parts = list(of_groups(lambda group: group.critical(criteria), peaks, criteria))
    attributes = {"long_name": "critical magnitude", "criterion": str(criteria)}
    if criteria.counting == "pooled":
        return xr.DataArray(
            np.concatenate(parts), {FEATURE: peaks[FEATURE]}, (FEATURE,), "critical_magnitude", attributes
        )
    coordinates = {SEQUENCE: peaks[SEQUENCE], FEATURE: peaks[FEATURE]}
    return xr.DataArray(np.stack(parts), coordinates, (SEQUENCE, FEATURE), "critical_magnitude", attributes)


def critical_by_feature(peaks: xr.Dataset, criteria: Criteria) -> Float32:
    """Critical magnitudes of all features from the peaks of a view: (sequence, feature), one row where pooled."""
    parts = of_groups(lambda group: group.critical(criteria), peaks, criteria)
    return np.concatenate(list(parts)).reshape(-1, peaks.sizes[FEATURE])
