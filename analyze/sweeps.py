"""Outlier counts over many thresholds, exactly, from peaks alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.criteria import Criteria, check_fraction, check_magnitude, kth_largest, required_hits, tails, threshold
from analyze.find import Store, all_jsonable, as_dataset
from analyze.peaks import group_keys, read_group, threads, view_peaks
from analyze.streaming import Progress
from capture.schema import FEATURE, OutliersError

Float32 = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

_TABLE = 2**23  # entries of a (feature, threshold) table of hits: 64 MiB


@dataclass(frozen=True)
class Sweep:
    """Counts for every combination of thresholds.

    Parameters
    ----------
    criteria : what is not swept
    table : `count`, `distinct_features` (int64), `mean_layer_fraction`, `mean_position_fraction` (float64, NaN where
        there is no outlier) over dimensions `magnitude`, `layers`, `positions`
    hidden_size : width of the model
    critical : for each pair of fractions (layers, positions) the critical magnitudes of all features, float32,
        ascending: the exact step function behind `count`
    """

    criteria: Criteria
    table: xr.Dataset
    hidden_size: int
    critical: dict[tuple[float, float], Float32] = field(repr=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a combination, magnitudes fastest."""
        axes = [self.table[name].values.tolist() for name in ("magnitude", "layers", "positions")]
        values = {name: array.values.tolist() for name, array in self.table.data_vars.items()}
        return [
            {
                "magnitude": magnitude,
                "layers": layers,
                "positions": positions,
                **{str(name): array[i][j][k] for name, array in values.items()},
            }
            for j, layers in enumerate(axes[1])
            for k, positions in enumerate(axes[2])
            for i, magnitude in enumerate(axes[0])
        ]

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers sweep --json` prints: strict JSON."""
        return {"hidden_size": self.hidden_size, "criteria": self.criteria.to_dict(), "rows": all_jsonable(self.rows)}

    def _repr_html_(self) -> str:
        return str(self.table._repr_html_())


def sweep(
    store: Store,
    criteria: Criteria | None = None,
    magnitudes: Sequence[float] | None = None,
    layers: Sequence[float] | None = None,
    positions: Sequence[float] | None = None,
    *,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Sweep:
    """Count outliers for every combination of thresholds.

    Parameters
    ----------
    store, use_cache, progress : as in `find_outliers`
    criteria : counting, layer unit, view, and the thresholds that are not swept
    magnitudes, layers, positions : thresholds, in any order; None for that of `criteria`

    Raises
    ------
    OutliersError
        A threshold out of range or none at all, a store that cannot be read, or a view that it cannot serve.

    Notes
    -----
    A feature with critical magnitude c is an outlier at m where c >= m, and one of its places with peak p is a hit at m
    where p >= m. So the hits of outliers at m are the places with min(c, p) >= m.
    """
    store = as_dataset(store)
    criteria = (Criteria() if criteria is None else criteria).resolve(store)
    chosen = {
        "magnitude": [criteria.magnitude] if magnitudes is None else list(magnitudes),
        "layers": [criteria.layers] if layers is None else list(layers),
        "positions": [criteria.positions] if positions is None else list(positions),
    }
    for name, values in chosen.items():
        if not values:
            raise OutliersError(f"no {name} to sweep over; expected one number or more")
        for value in values:
            if name == "magnitude":
                check_magnitude(value)
            else:
                check_fraction(name, value)
    peaks = view_peaks(store, criteria, use_cache=use_cache, progress=progress)
    limits, place = np.unique(threshold(chosen["magnitude"]), return_inverse=True)

    def count(key: tuple[int | None, range]) -> _Part:
        group = read_group(peaks, criteria, key)
        return _count(group.layer, group.position, chosen["layers"], chosen["positions"], limits)

    keys = group_keys(peaks, criteria)
    with ThreadPoolExecutor(threads()) as pool:
        parts = list(pool.map(count, keys))
    critical = np.concatenate([part.critical for part in parts], axis=-1)
    width = peaks.sizes[FEATURE]
    # Groups are whole sequences, or the features of all sequences in order: either way rows of `width` features.
    best = critical.reshape(*critical.shape[:2], -1, width).max(axis=2)
    counted, distinct = _passing(critical, limits), _passing(best, limits)
    table = xr.Dataset(
        {
            "count": _array(counted, place, "outliers, summed over sequences unless pooled"),
            "distinct_features": _array(distinct, place, "different features among the outliers"),
            "mean_layer_fraction": _array(
                _means(parts, "layer_hits", parts[0].layer_units, counted),
                place,
                "mean share of layer units with a hit",
            ),
            "mean_position_fraction": _array(
                _means(parts, "position_hits", parts[0].positions, counted), place, "mean share of positions with a hit"
            ),
        },
        coords={name: np.asarray(values, dtype=np.float64) for name, values in chosen.items()},
        attrs={"criterion": str(criteria), "hidden_size": width, "model_id": str(store.attrs.get("model_id") or "")},
    )
    ordered = {
        (float(a), float(b)): np.sort(critical[j, k])
        for j, a in enumerate(chosen["layers"])
        for k, b in enumerate(chosen["positions"])
    }
    return Sweep(criteria, table, width, ordered)


@dataclass(frozen=True)
class _Part:
    """One group: critical magnitudes (layers, positions, feature), hits of outliers (layers, positions, limit)."""

    critical: Float32
    layer_hits: Counts
    position_hits: Counts
    layer_units: int
    positions: int


def _count(layer: Float32, position: Float32, layers: list[float], positions: list[float], limits: Float32) -> _Part:
    by_layer = kth_largest(layer, tuple(required_hits(a, layer.shape[1]) for a in layers))
    by_position = kth_largest(position, tuple(required_hits(b, position.shape[1]) for b in positions))
    critical = np.minimum(by_layer[:, None], by_position[None])
    passed = np.searchsorted(
        limits, critical, side="right"
    )  # limits at which a feature is an outlier: the first so many
    hits = [np.zeros((len(layers), len(positions), len(limits)), np.int64) for _ in range(2)]
    candidates = np.flatnonzero(passed.max(axis=(0, 1)))
    step = max(1, _TABLE // (len(limits) + 1))
    for start in range(0, len(candidates), step):
        chosen = candidates[start : start + step]
        counts = np.arange(len(limits)) < passed[:, :, chosen, None]
        for total, peaks in zip(hits, (layer, position), strict=True):
            per_feature = hits_per_limit(peaks[chosen], limits)
            for j, k in np.ndindex(len(layers), len(positions)):
                total[j, k] += np.where(counts[j, k], per_feature, 0).sum(axis=0)
    return _Part(critical, hits[0], hits[1], layer.shape[1], position.shape[1])


def hits_per_limit(peaks: Float32, limits: Float32) -> Counts:
    """Number of peaks of each feature that reach each limit.

    Parameters
    ----------
    peaks : (feature, unit) float32 without NaN
    limits : (limit,) float32, ascending, each once

    Returns
    -------
    (feature, limit) int64
    """
    bins = len(limits) + 1
    reached = np.searchsorted(limits, peaks.ravel(), side="right").reshape(peaks.shape)
    reached += np.arange(len(peaks))[:, None] * bins
    return tails(np.bincount(reached.ravel(), minlength=len(peaks) * bins).reshape(len(peaks), bins))


def _passing(critical: Float32, limits: Float32) -> Counts:
    """How many of the last axis are outliers at each limit: (layers, positions, limit)."""
    ordered = np.sort(critical, axis=-1)
    result = np.empty((*critical.shape[:2], len(limits)), np.int64)
    for place in np.ndindex(*critical.shape[:2]):
        result[place] = critical.shape[-1] - np.searchsorted(ordered[place], limits, side="left")
    return result


def _means(parts: list[_Part], name: str, total: int, count: Counts) -> npt.NDArray[np.float64]:
    hits = sum((getattr(part, name) for part in parts), start=np.zeros_like(count))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(hits / (total * count), dtype=np.float64)


def _array(values: npt.NDArray[Any], place: npt.NDArray[np.intp], description: str) -> xr.DataArray:
    """From (layers, positions, unique limit) to (magnitude, layers, positions) in the order asked for."""
    return xr.DataArray(
        np.moveaxis(values[..., place], -1, 0),
        dims=("magnitude", "layers", "positions"),
        attrs={"long_name": description},
    )
