"""The strongest features of a store, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from analyze.answers.facts import ROUNDED_NOTE
from analyze.answers.find import critical_by_feature
from analyze.display.shown import Shown
from analyze.display.text import jsonable
from analyze.peaks.lookup import view_peaks
from analyze.question.criteria import Criteria
from analyze.question.ranks import threshold
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset
from analyze.types import Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, SITE, mantissa_bits


@dataclass(frozen=True)
class FeatureMap(Shown):
    """The features with the largest critical magnitudes, by layers.

    Parameters
    ----------
    criteria : the criterion
    hidden_size : width of the model
    model : name of the model as captured; a stranger's text
    table : over `feature`, the strongest first:

        `critical_magnitude` (feature,) float32: pooled; or, per sequence, the largest of any sequence, so that the
        feature is an outlier of at least one sequence for every magnitude up to it;
        `peak` (feature, layer, site) float32: the value of largest magnitude over sequences and positions, with its
        sign; NaN where there is no number
    mantissa_bits : to which the store's activations were rounded when it was packed; None where they are exact
    """

    criteria: Criteria
    hidden_size: int
    model: str
    table: xr.Dataset
    mantissa_bits: int | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One row a feature.

        `feature`, `critical_magnitude`, `outlier`, `peak` (signed, over all layers), `peak_layer`, `peak_site`, and of
        the layers where a peak reaches the criterion's magnitude `first_layer` and `last_layer` (None without one).
        """
        limit = threshold(self.criteria.magnitude)
        layers, sites = self.table[LAYER].values, self.table[SITE].values
        rows = []
        for row, feature in enumerate(self.table[FEATURE].values):
            peak = self.table["peak"].values[row]
            magnitudes = np.nan_to_num(np.abs(peak), nan=-np.inf, posinf=np.inf)
            layer, site = np.unravel_index(int(np.argmax(magnitudes)), peak.shape)
            hit = layers[(magnitudes >= limit).any(axis=1)]
            critical = self.table["critical_magnitude"].values[row]
            rows.append(
                {
                    "feature": int(feature),
                    "critical_magnitude": float(critical),
                    "outlier": bool(critical >= limit),
                    "peak": float(peak[layer, site]),
                    "peak_layer": int(layers[layer]),
                    "peak_site": str(sites[site]),
                    "first_layer": int(hit[0]) if len(hit) else None,
                    "last_layer": int(hit[-1]) if len(hit) else None,
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers map --json` prints: strict JSON, peaks as lists by layer and site."""
        peaks = self.table["peak"].values
        rows = jsonable([{**row, "peaks": values} for row, values in zip(self.rows(), peaks, strict=True)])
        rounded = {} if self.mantissa_bits is None else {"mantissa_bits": self.mantissa_bits}
        return {
            "hidden_size": self.hidden_size,
            "layers": self.table[LAYER].values.tolist(),
            "sites": [str(site) for site in self.table[SITE].values],
            "features": rows,
            "criteria": self.criteria.to_dict(),
            **rounded,
        }

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        rows = [("criterion", str(self.criteria)), ("width", f"{self.hidden_size:,}")]
        if self.mantissa_bits is not None:
            rows.append(("rounded", ROUNDED_NOTE.format(self.mantissa_bits)))
        return rows


def feature_map(
    store: Store,
    criteria: Criteria | None = None,
    *,
    top: int = 20,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> FeatureMap:
    """Signed peaks of the strongest features in every layer and site.

    Parameters
    ----------
    store, use_cache, progress : as in `find_outliers`
    criteria : fractions, counting, layer unit and view; its magnitude marks outliers and hits
    top : number of features, those with the largest critical magnitudes (where they tie, the lower index)

    Raises
    ------
    OutliersError
        `top` below 1, or a view that the store cannot serve.
    """
    if top < 1:
        raise OutliersError(f"top is {top}; expected 1 or more features")
    store = as_dataset(store)
    criteria = (Criteria() if criteria is None else criteria).resolve(store)
    peaks = view_peaks(store, criteria, use_cache=use_cache, progress=progress)
    critical = critical_by_feature(peaks, criteria).max(axis=0)
    chosen = np.argsort(-critical, kind="stable")[:top]
    high, low = (loaded(peaks[name])[..., chosen] for name in ("layer_high", "layer_low"))
    high, low = np.fmax.reduce(high, axis=0), np.fmin.reduce(low, axis=0)
    signed = np.asarray(np.where(np.abs(high) >= np.abs(low), high, low), np.float32)
    peak = np.moveaxis(signed, -1, 0)
    table = xr.Dataset(
        {"critical_magnitude": (FEATURE, critical[chosen]), "peak": ((FEATURE, LAYER, SITE), peak)},
        {FEATURE: chosen, LAYER: peaks[LAYER], SITE: peaks[SITE]},
    )
    model = str(store.attrs.get("model_id", ""))
    return FeatureMap(criteria, store.sizes[FEATURE], model, table, mantissa_bits(store.attrs))
