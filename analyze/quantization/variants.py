"""What is asked of a store: schemes, transforms and thresholds by their names, checked and made for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from analyze.display.text import plain
from analyze.peaks.lookup import view_peaks
from analyze.peaks.stream import stream_matrices
from analyze.quantization.columns import checked_thresholds, column_peaks_of
from analyze.quantization.errors import Variant
from analyze.quantization.schemes import schemes_for
from analyze.quantization.transforms import (
    Hadamard,
    Plain,
    Smooth,
    Transform,
    parse_transform,
    random_signs,
    smooth_scales,
)
from analyze.question.view import View
from analyze.reading.lazy import loaded
from analyze.types import Float32, Progress
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, SIGNAL, SITE


def outputs_view(view: View | None, data: xr.Dataset) -> View:
    """A view's layers, sites, sequences and positions, of norm outputs as they are; resolved against a store."""
    asked = View() if view is None else view.view
    return replace(asked, signal="output", scale="absolute", rounding="none").resolve(data)


def asked_variants(
    data: xr.Dataset,
    view: View,
    schemes: Sequence[str] | None,
    thresholds: Sequence[float],
    transforms: Sequence[str],
    progress: Progress | None,
) -> tuple[Variant, ...]:
    """Every combination of schemes, transforms and thresholds that is asked for.

    Parameters
    ----------
    data : Dataset from `open_store`
    view : of its norm outputs, resolved; what a transform is made from
    schemes, thresholds, transforms, progress : as for `quantize`

    Raises
    ------
    OutliersError
        One of them is unknown or out of range, or the store lacks what a transform needs.
    """
    found = schemes_for(schemes, data.sizes[FEATURE])
    limits = checked_thresholds(thresholds)
    if limits and not any(one.share == "token" for one in found):
        raise OutliersError("threshold is for schemes by token alone; add one, such as int8-token, or leave it out")
    if not transforms:
        raise OutliersError("no transform is given; expected one or more, such as none")
    made = [_made(data, view, name, progress) for name in dict.fromkeys(transforms)]
    return tuple(
        Variant(one, transform, limit)
        for transform in made
        for one in found
        for limit in (None, *(limits if one.share == "token" else ()))
    )


def _made(data: xr.Dataset, view: View, name: str, progress: Progress | None = None) -> Transform:
    """A transform for a view of a store.

    Raises
    ------
    OutliersError
        There is no such transform, or the store lacks what it needs.
    """
    kind, number = parse_transform(name)
    if kind == "none":
        return Plain()
    if kind == "hadamard":
        return Hadamard(name, random_signs(data.sizes[FEATURE], int(number)))
    if "weight_peak" not in data:
        raise OutliersError(f"transform {name} needs the weights' peaks, and {without_weights(data.attrs)}")
    maxima = _finite_maxima(data, view, progress)
    return Smooth(name, smooth_scales(maxima, loaded(view.select(data)["weight_peak"]), number))


def without_weights(attributes: Mapping[str, Any]) -> str:
    """Why a store has nothing about the weights, and what would help."""
    reason = attributes.get("weights_left_out")
    if reason is not None:
        return f"the capture left them out ({plain(str(reason))}); capture the model from other weights"
    return "the store has no weight_peak and weight_norm; capture again to have them"


def weight_norm(frame: xr.Dataset) -> Float32 | None:
    """Norms of the weights of a view's Dataset, (layer, site, feature) float32; None where there are none."""
    return loaded(frame["weight_norm"]) if "weight_norm" in frame else None


def channel_maxima(data: xr.Dataset, view: View, progress: Progress | None = None) -> Float32:
    """Largest magnitude of each feature over the sequences and positions of a view, (layer, site, feature)."""
    peaks = view_peaks(data, view, progress=progress)
    result = np.full(tuple(peaks.sizes[dim] for dim in (LAYER, SITE, FEATURE)), np.nan, np.float32)
    for part in column_peaks_of(peaks):
        np.fmax(result, part, out=result)
    return result


def _finite_maxima(data: xr.Dataset, view: View, progress: Progress | None) -> Float32:
    """The same of the rows that are quantised: those with a value that is not finite are left out."""
    counts = view.select(data[["nonfinite_count"]].sel({SIGNAL: view.signal}))["nonfinite_count"]
    if not loaded(counts).any():
        return channel_maxima(data, view, progress)
    frame = view.select(data)
    result = np.full(tuple(frame.sizes[dim] for dim in (LAYER, SITE, FEATURE)), np.nan, np.float32)
    for _, layer, site, row in stream_matrices(data, view, _row_maxima, progress):
        np.fmax(result[layer, site], row, out=result[layer, site])
    return result


def _row_maxima(matrix: Float32) -> Float32:
    """Largest magnitudes over the finite rows of a (position, feature) matrix; NaN where there are none."""
    rows = np.abs(matrix[np.isfinite(matrix).all(axis=1)])
    return rows.max(axis=0) if len(rows) else np.full(matrix.shape[1], np.nan, np.float32)
