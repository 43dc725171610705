"""Outlier counts over many thresholds, exactly, from peaks alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.answers.facts import by_total
from analyze.answers.sweep_steps import BINS, Steps, histogram, hit_steps, ranked_histogram, read_steps, write_steps
from analyze.display.shown import Shown
from analyze.display.text import jsonable
from analyze.peaks import cache
from analyze.peaks.groups import Group, of_groups
from analyze.peaks.lookup import view_peaks
from analyze.question.checks import check_fraction, check_magnitude
from analyze.question.criteria import Criteria
from analyze.question.ranks import Limits, kth_largest, required_hits, tails, threshold
from analyze.reading.open import as_dataset
from analyze.types import Counts, Float32, Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE

_BAND = 2**17  # peaks handled at once: all that is made of them stays in a processor's cache


@dataclass(frozen=True)
class Sweep(Shown):
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

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        c = self.criteria
        view = f"norm {c.signal}, scale {c.scale}, layer unit {c.layer_unit}; {c.conventions()}"
        return [("swept", view), ("width", f"{self.hidden_size:,}")]

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
        return {"hidden_size": self.hidden_size, "criteria": self.criteria.to_dict(), "rows": jsonable(self.rows())}


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
        chosen[name] = [float(value) for value in values]
    thresholds, place = np.unique(threshold(chosen["magnitude"]), return_inverse=True)
    counted = _from_steps(store, criteria, chosen, thresholds, use_cache, progress) or _from_peaks(
        view_peaks(store, criteria, use_cache=use_cache, progress=progress), criteria, chosen, thresholds
    )
    width = store.sizes[FEATURE]
    # Groups are whole sequences, or the features of all sequences in order: either way rows of `width` features.
    best = counted.critical.reshape(*counted.critical.shape[:2], -1, width).max(axis=2)
    count, distinct = _passing(counted.critical, thresholds), _passing(best, thresholds)
    means = [_means(hits, count) for hits in (counted.layer_hits, counted.position_hits)]
    table = xr.Dataset(
        {
            "count": _array(count, place, "outliers, summed over sequences unless pooled"),
            "distinct_features": _array(distinct, place, "different features among the outliers"),
            "mean_layer_fraction": _array(means[0], place, "mean share of layer units with a hit"),
            "mean_position_fraction": _array(means[1], place, "mean share of positions with a hit"),
        },
        coords={name: np.asarray(values, dtype=np.float64) for name, values in chosen.items()},
        attrs={"criterion": str(criteria), "hidden_size": width, "model_id": str(store.attrs.get("model_id") or "")},
    )
    ordered = {
        (float(a), float(b)): np.sort(counted.critical[j, k])
        for j, a in enumerate(chosen["layers"])
        for k, b in enumerate(chosen["positions"])
    }
    return Sweep(criteria, table, width, ordered)


def _from_steps(
    store: xr.Dataset,
    criteria: Criteria,
    chosen: dict[str, list[float]],
    limits: Float32,
    use_cache: bool,
    progress: Progress | None,
) -> _Counted | None:
    """Counts from kept step functions, made if need be; None where they cannot be kept."""
    if not use_cache or len(chosen["layers"]) * len(chosen["positions"]) > 1:
        return None
    single = replace(criteria, layers=chosen["layers"][0], positions=chosen["positions"][0])
    key = cache.cache_key(store, single, single.counting, single.layer_unit, single.layers, single.positions)
    if key is None:
        return None
    steps = read_steps(key)
    if steps is None:
        steps = _steps(view_peaks(store, single, progress=progress), single)
        if steps is None:
            return None
        write_steps(store, key, steps)
    hits = [kind.at(limits)[None, None] for kind in (steps.layer, steps.position)]
    return _Counted(steps.critical.reshape(1, 1, -1), {steps.layer_units: hits[0]}, {steps.positions: hits[1]})


def _steps(peaks: xr.Dataset, criteria: Criteria) -> Steps | None:
    """Step functions of a pair of fractions; None where the peaks have too many bits, or shares different totals."""
    if criteria.counting == "per-sequence" and len(np.unique(peaks["counted"])) > 1:
        return None

    def of_group(group: Group) -> tuple[Float32, Counts, Counts, tuple[int, int]] | None:
        units, positions = group.layer.shape[1], group.positions
        by_layer = kth_largest(group.layer, (required_hits(criteria.layers, units),))[0]
        critical, counts = ranked_histogram(group.position, required_hits(criteria.positions, positions), by_layer)
        layer = None if counts is None else histogram(group.layer, critical)
        return None if layer is None or counts is None else (critical, layer, counts, (units, positions))

    critical: list[Float32] = []
    totals = [np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)]
    for part in of_groups(of_group, peaks, criteria, "F"):
        if part is None:  # the groups behind those under way do not begin
            return None
        critical.append(part[0])
        for total, counts in zip(totals, part[1:3], strict=True):
            total[:: BINS // len(counts)] += counts  # those of bfloat16 models have fewer bins
        units, positions = part[3]
    return Steps(np.concatenate(critical), hit_steps(totals[0]), hit_steps(totals[1]), units, positions)


def _from_peaks(peaks: xr.Dataset, criteria: Criteria, chosen: dict[str, list[float]], thresholds: Float32) -> _Counted:
    """Counts from the peaks of every group."""
    limits = Limits(thresholds)

    def count(group: Group) -> _Part:
        return _count(group, chosen["layers"], chosen["positions"], limits)

    parts = list(of_groups(count, peaks, criteria))
    return _Counted(
        np.concatenate([part.critical for part in parts], axis=-1),
        by_total((part.layer_hits, part.layer_units) for part in parts),
        by_total((part.position_hits, part.positions) for part in parts),
    )


@dataclass(frozen=True)
class _Counted:
    """All groups: critical magnitudes, and hits of outliers by the number of places that they are out of."""

    critical: Float32
    layer_hits: dict[int, Counts]
    position_hits: dict[int, Counts]


@dataclass(frozen=True)
class _Part:
    """A group: critical magnitudes (layers, positions, feature), hits of outliers (layers, positions, limit)."""

    critical: Float32
    layer_hits: Counts
    position_hits: Counts
    layer_units: int
    positions: int


def _count(group: Group, layers: list[float], positions: list[float], limits: Limits) -> _Part:
    layer, position = group.layer, group.position
    by_layer = kth_largest(layer, tuple(required_hits(a, layer.shape[1]) for a in layers))
    by_position = kth_largest(position, tuple(required_hits(b, group.positions) for b in positions))
    critical = np.minimum(by_layer[:, None], by_position[None])
    # A feature is an outlier at the first `passed` limits.
    passed = np.searchsorted(limits.values, critical, side="right")
    bins = len(limits.values) + 1
    hits = [np.zeros((len(layers), len(positions), bins - 1), np.int64) for _ in range(2)]
    candidates = np.flatnonzero(passed.max(axis=(0, 1)))
    for total, peaks in zip(hits, (layer, position), strict=True):
        step = max(1, _BAND // peaks.shape[1])
        for start in range(0, len(candidates), step):
            chosen = candidates[start : start + step]
            reached = limits.reached(peaks[chosen])
            if len(layers) == len(positions) == 1:
                reached = np.minimum(reached, passed[0, 0, chosen, None])
                total[0, 0] += tails(np.bincount(reached.ravel(), minlength=bins))
                continue
            reached += np.arange(len(chosen))[:, None] * bins
            counts = np.bincount(reached.ravel(), minlength=len(chosen) * bins).reshape(len(chosen), bins)
            per_feature = tails(counts)
            for j, k in np.ndindex(len(layers), len(positions)):
                total[j, k] += np.where(np.arange(bins - 1) < passed[j, k, chosen, None], per_feature, 0).sum(axis=0)
    return _Part(critical, hits[0], hits[1], layer.shape[1], group.positions)


def _passing(critical: Float32, limits: Float32) -> Counts:
    """How many of the last axis are outliers at each limit: (layers, positions, limit)."""
    ordered = np.sort(critical, axis=-1)
    result = np.empty((*critical.shape[:2], len(limits)), np.int64)
    for place in np.ndindex(*critical.shape[:2]):
        result[place] = critical.shape[-1] - np.searchsorted(ordered[place], limits, side="left")
    return result


def _means(hits: dict[int, Counts], count: Counts) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        means: npt.NDArray[np.float64] = np.sum([part / (total * count) for total, part in hits.items()], axis=0)
    return means


def _array(values: npt.NDArray[Any], place: npt.NDArray[np.intp], description: str) -> xr.DataArray:
    """From (layers, positions, unique limit) to (magnitude, layers, positions) in the order asked for."""
    return xr.DataArray(
        np.moveaxis(values[..., place], -1, 0),
        dims=("magnitude", "layers", "positions"),
        attrs={"long_name": description},
    )
