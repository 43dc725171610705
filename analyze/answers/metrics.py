"""The field's measures of outlier features, massive activations and sinks, for each layer and site."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.peaks.counted import counted_positions, refuse_none
from analyze.peaks.stream import stream_matrices
from analyze.question.units import scale_unit
from analyze.question.view import View
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset, token_texts
from analyze.types import Float32, Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, POSITION, SEQUENCE, SITE

MASSIVE_MAGNITUDE: Final = 100.0
MASSIVE_RATIO: Final = 1000.0
SINK_RATIO: Final = 10.0
SINK_SHARE: Final = 0.5


# What makes one statistic of those of two sequences; None where `_add` has a rule of its own.
_OWN: Final[dict[str, Any]] = {"over": None}
_SUM: Final[dict[str, Any]] = {"over": np.add}
_MOST: Final[dict[str, Any]] = {"over": np.fmax}


@dataclass(frozen=True)
class MatrixStatistics:
    """What is kept of one (position, feature) matrix; values that are not finite are left out.

    Parameters
    ----------
    median, largest : median and largest magnitude; NaN without a finite value
    position, feature : where the largest magnitude is; -1 without a finite value
    massive : (feature,) int64, number of massive activations
    sink : (feature,) int64, number of positions at or above the sink's ratio
    squares, count : (feature,) float64 and int64, sum of squares over positions, and number of finite values
    ratio_sum, ratio_count : sum over positions of largest over median magnitude, and number of positions in it
    channel : (feature,) float32, largest magnitude; NaN without a finite value
    token_ratio : (position,) float64, largest magnitude of each position over the median of these; NaN where one is
        not known, or the median is zero
    """

    median: float = field(metadata=_OWN)
    largest: float = field(metadata=_OWN)
    position: int = field(metadata=_OWN)
    feature: int = field(metadata=_OWN)
    massive: npt.NDArray[np.int64] = field(metadata=_SUM)
    sink: npt.NDArray[np.int64] = field(metadata=_SUM)
    squares: npt.NDArray[np.float64] = field(metadata=_SUM)
    count: npt.NDArray[np.int64] = field(metadata=_SUM)
    ratio_sum: float = field(metadata=_SUM)
    ratio_count: int = field(metadata=_SUM)
    channel: Float32 = field(metadata=_MOST)
    token_ratio: npt.NDArray[np.float64] = field(metadata=_OWN)


def matrix_statistics(matrix: Float32, sink_ratio: float = SINK_RATIO) -> MatrixStatistics:
    """Statistics of one (position, feature) float32 matrix."""
    magnitudes = np.abs(matrix)
    finite = np.isfinite(magnitudes)
    whole = bool(finite.all())
    if not whole:
        magnitudes[~finite] = np.nan
        told = np.flatnonzero(finite.any(axis=1))
        if 0 < len(told) < len(matrix):  # positions that do not count may be most, and say nothing
            found = matrix_statistics(matrix[told], sink_ratio)
            ratio = np.full(len(matrix), np.nan)
            ratio[told] = found.token_ratio
            return replace(found, position=int(told[found.position]), token_ratio=ratio)
    median = scale_unit(matrix, "median")
    rows = np.fmax.reduce(magnitudes, axis=1)
    position = -1 if np.isnan(rows).all() else int(np.nanargmax(rows))
    feature = -1 if position < 0 else int(np.nanargmax(magnitudes[position]))
    middle = _row_medians(magnitudes) if whole else np.array([scale_unit(row, "median") for row in magnitudes])
    usable = middle > 0  # a token whose median is zero has no such ratio
    ratios = rows[usable].astype(np.float64) / middle[usable]
    known = magnitudes if whole else np.nan_to_num(magnitudes, nan=0.0)
    massive = (magnitudes > MASSIVE_MAGNITUDE) & (magnitudes >= MASSIVE_RATIO * median)
    # Where the median is zero a ratio says nothing.
    sink = magnitudes >= sink_ratio * median if median > 0 else np.zeros_like(finite)
    return MatrixStatistics(
        median=median,
        largest=float(rows[position]) if position >= 0 else math.nan,
        position=position,
        feature=feature,
        massive=np.count_nonzero(massive, axis=0),
        sink=np.count_nonzero(sink, axis=0),
        squares=np.einsum("pf,pf->f", known, known, dtype=np.float64),
        count=np.count_nonzero(finite, axis=0),
        ratio_sum=float(ratios.sum()),
        ratio_count=int(usable.sum()),
        channel=np.fmax.reduce(magnitudes, axis=0),
        token_ratio=_over_median(rows),
    )


def _over_median(rows: Float32) -> npt.NDArray[np.float64]:
    """Magnitudes in units of their median; NaN where that is zero."""
    middle = scale_unit(rows, "median")
    return np.where(middle > 0, rows, np.nan) / np.float64(middle if middle > 0 else 1)


def _row_medians(magnitudes: Float32) -> npt.NDArray[np.float64]:
    """Median of each row; the mean of two middle values is taken in float64, as in `scale_unit`."""
    width = magnitudes.shape[1]
    middle = sorted({(width - 1) // 2, width // 2})
    medians: npt.NDArray[np.float64] = np.partition(magnitudes, middle, axis=1)[:, middle].mean(
        axis=1, dtype=np.float64
    )
    return medians


def layer_metrics(
    store: Store,
    view: View | None = None,
    *,
    sink_ratio: float = SINK_RATIO,
    sink_share: float = SINK_SHARE,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Measures of every (layer, site) of a view, in one pass over its activations.

    Parameters
    ----------
    store : path, or Dataset from `open_store` or one that you chunked yourself
    view : which values count; its scale must be `absolute`
    sink_ratio, sink_share : a residual sink reaches this many median magnitudes at more than this share of positions
    progress : called with (finished, all) steps of the pass

    Returns
    -------
    Dataset over (layer, site), values that are not finite left out:

    `max_magnitude`, `median_magnitude` : largest magnitude; median over sequences of the median magnitude of each
    `massive_activations`, `massive_features` : number of values with magnitude above 100 and at least 1,000 times the
        median of their (position, feature) matrix, and of the features they are in (Sun et al. 2024, section 2)
    `kurtosis` : mean over features of s^4 over the square of the mean of s^2, with s the root mean square of a feature
        over tokens; 1 for equal features, the width for a single one (He et al. 2024, section 2)
    `max_median_ratio` : mean over tokens of largest over median magnitude of the features (He et al. 2024, section 2);
        tokens whose median is zero are left out
    `channel_max`, `channel_median` : largest and median over features of each feature's largest magnitude over tokens,
        the quantity that sets an activation scale (Xiao et al. 2022, SmoothQuant, section 4), which is also returned
        whole as `channel_maxima` (layer, site, feature)
    `residual_sinks` : number of features with persistently large magnitude (Qiu et al. 2026, arXiv 2601.22966, who give
        no threshold; the two numbers are ours)
    `extreme_sequence`, `extreme_position`, `extreme_feature`, `extreme_token_id` : where the largest magnitude is; -1
        where there is none
    `extreme_token_text` : its text, where the store keeps the text of tokens
    `token_ratio` (sequence, position) : largest over layers and sites of the largest magnitude of a position over the
        median of these (Chen et al. 2024, PrefixQuant, arXiv 2410.05265); NaN where the position does not count

    Raises
    ------
    OutliersError
        Another scale, or a view that the store has no activations for.
    """
    store = as_dataset(store)
    view = (View() if view is None else view).view.resolve(store)
    if view.scale != "absolute":
        raise OutliersError(f"scale is {view.scale!r}; metrics are defined on the values themselves: expected absolute")
    counted = counted_positions(store, view)
    refuse_none(counted)
    frame = view.select(store)
    shape = (frame.sizes[LAYER], frame.sizes[SITE])
    totals: dict[tuple[int, int], dict[str, Any]] = {}
    statistics = partial(matrix_statistics, sink_ratio=sink_ratio)
    ratio = np.full(counted.shape, np.nan)
    for n, layer, site, found in stream_matrices(store, view, statistics, progress):
        _add(totals, (layer, site), n, found)
        np.fmax(ratio[n], found.token_ratio, out=ratio[n])
    token_id = loaded(frame["token_id"])
    columns: dict[str, npt.NDArray[Any]] = {}
    channels = np.empty((*shape, frame.sizes[FEATURE]), np.float32)
    for place in np.ndindex(*shape):
        total = totals[place]
        channels[place] = total["channel"]
        row = _row(total, int(counted.sum()), sink_share)
        n, p = total["sequence"], total["position"]
        row["extreme_sequence"] = int(frame[SEQUENCE].values[n]) if n >= 0 else -1
        row["extreme_position"] = int(frame[POSITION].values[p]) if p >= 0 else -1
        row["extreme_feature"] = total["feature"]
        row["extreme_token_id"] = int(token_id[n, p]) if n >= 0 else -1
        for name, value in row.items():
            columns.setdefault(name, np.empty(shape, np.int64 if isinstance(value, int) else np.float64))[place] = value
    data: dict[str, Any] = {name: ((LAYER, SITE), values) for name, values in columns.items()}
    data["token_ratio"] = ((SEQUENCE, POSITION), ratio)
    data["channel_maxima"] = ((LAYER, SITE, FEATURE), channels)
    if texts := token_texts(store):
        found_texts = [texts.get(number, "") for number in columns["extreme_token_id"].ravel().tolist()]
        strings = np.array(found_texts, dtype=np.dtypes.StringDType()).reshape(shape)
        data["extreme_token_text"] = ((LAYER, SITE), strings)
    coordinates = {dim: frame[dim] for dim in (SEQUENCE, LAYER, SITE, POSITION, FEATURE)}
    return xr.Dataset(data, coords=coordinates, attrs={"signal": view.signal})


def _add(
    totals: dict[tuple[int, int], dict[str, Any]], place: tuple[int, int], n: int, found: MatrixStatistics
) -> None:
    total = totals.get(place)
    if total is None:
        total = totals[place] = {**vars(found), "medians": [], "sequence": n if found.position >= 0 else -1}
    else:
        for part in fields(found):
            combine = part.metadata["over"]  # a statistic that does not say would be that of the first sequence
            if combine is not None:
                total[part.name] = combine(total[part.name], getattr(found, part.name))
        if found.position >= 0 and not total["largest"] >= found.largest:
            total.update(largest=found.largest, sequence=n, position=found.position, feature=found.feature)
    total["medians"].append(found.median)


def _row(total: dict[str, Any], positions: int, sink_share: float) -> dict[str, Any]:
    medians = np.array(total["medians"])
    channel = total["channel"][~np.isnan(total["channel"])]
    with np.errstate(invalid="ignore", divide="ignore"):
        power = total["squares"] / total["count"]  # s^2 of each feature
        known = power[~np.isnan(power)]
        kurtosis = float(np.mean(known**2) / np.mean(known) ** 2) if known.size else math.nan
    return {
        "max_magnitude": float(total["largest"]),
        "median_magnitude": float(np.median(medians[~np.isnan(medians)])) if not np.isnan(medians).all() else math.nan,
        "massive_activations": int(total["massive"].sum()),
        "massive_features": int(np.count_nonzero(total["massive"])),
        "kurtosis": kurtosis,
        "max_median_ratio": total["ratio_sum"] / total["ratio_count"] if total["ratio_count"] else math.nan,
        "channel_max": float(channel.max()) if channel.size else math.nan,
        "channel_median": float(np.median(channel)) if channel.size else math.nan,
        "residual_sinks": int(np.count_nonzero(total["sink"] > sink_share * positions)),
    }


def metric_rows(metrics: xr.Dataset) -> list[dict[str, Any]]:
    """One row for each (layer, site), layer by layer, of what `layer_metrics` returns."""
    names = [str(name) for name, array in metrics.data_vars.items() if array.dims == (LAYER, SITE)]
    values = {name: metrics[name].values.tolist() for name in names}
    return [
        {"layer": int(layer), "site": str(site), **{name: values[name][i][j] for name in names}}
        for i, layer in enumerate(metrics[LAYER].values)
        for j, site in enumerate(metrics[SITE].values)
    ]
