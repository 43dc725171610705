"""Peaks of a view: all that a criterion needs to know about the activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from analyze.peaks import cache
from analyze.peaks.counted import counted_positions, refuse_none
from analyze.peaks.stream import SequencePeaks, stream_peaks
from analyze.question.units import rounded
from analyze.question.view import View
from analyze.types import Float32, Progress
from capture.store.schema import FEATURE, LAYER, POSITION, SEQUENCE, SIGNAL, SITE

LAYER_DIMS = (SEQUENCE, LAYER, SITE, FEATURE)
POSITION_DIMS = (SEQUENCE, POSITION, FEATURE)


def view_peaks(
    store: xr.Dataset, view: View, *, use_cache: bool = True, progress: Progress | None = None
) -> xr.Dataset:
    """Peaks of a view.

    Plain views (any signal, any sequences) are served from the stored peaks. Any other costs one pass over the
    activations; its result is cached where the Dataset is exactly what `open_store` gave.

    Parameters
    ----------
    store : Dataset from `open_store`, or one that you chunked yourself
    view : which values count
    use_cache : read and write cached views
    progress : called with (finished, all) steps of the pass

    Returns
    -------
    Dataset of `layer_high`, `layer_low` (sequence, layer, site, feature) and `position_peak` (sequence, position,
    feature), float32, in the view's unit, with coordinates that count within the store; and `counted` (sequence,)
    int64, how many positions of each count. Peaks of positions that do not count are NaN

    Raises
    ------
    OutliersError
        A view that the store cannot serve, or a damaged chunk (at the latest when the result is used).
    """
    view = view.view.resolve(store)
    counts = counted_positions(store, view)
    refuse_none(counts)
    if view.skip_tokens and np.array_equal(counts, counted_positions(store, replace(view, skip_tokens=()))):
        view = replace(view, skip_tokens=())  # none of them occurs, and stored peaks may serve
    return _peaks(store, view, use_cache, progress).assign(counted=(SEQUENCE, counts.sum(axis=1, dtype=np.int64)))


def _peaks(store: xr.Dataset, view: View, use_cache: bool, progress: Progress | None) -> xr.Dataset:
    if view.rounding != "none" and view.scale == "absolute":
        # Rounding keeps the order of values, so that peaks of rounded values are rounded peaks of the values.
        exact = _peaks(store, replace(view, rounding="none"), use_cache, progress)
        return exact.map(rounded, keep_attrs=True)
    if view.plain:
        names = ["layer_high", "layer_low", "position_peak"]
        return view.select(store[names].sel({SIGNAL: view.signal}).drop_vars(SIGNAL)).assign_attrs({})
    frame = view.select(store[["position_peak", "layer_high"]].isel({SIGNAL: 0}).drop_vars(SIGNAL))
    dims = {"layer_high": LAYER_DIMS, "layer_low": LAYER_DIMS, "position_peak": POSITION_DIMS}
    shapes = {name: tuple(frame.sizes[dim] for dim in places) for name, places in dims.items()}
    key = cache.cache_key(store, view) if use_cache else None
    if key is not None and not cache.writable():
        key = None
    arrays: Mapping[str, Any] | None = cache.read(key, shapes) if key is not None else None
    if arrays is None:
        parts = stream_peaks(store, view, progress)
        arrays = _gathered(shapes, parts) if key is None else cache.write(store, key, view, shapes, parts)
    return xr.Dataset({name: (dims[name], values) for name, values in arrays.items()}, coords=frame.coords)


def _gathered(shapes: dict[str, tuple[int, ...]], parts: Iterable[SequencePeaks]) -> dict[str, Float32]:
    """Peaks in memory, for a Dataset that cannot be recognised again."""
    arrays = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for part in parts:
        for name, target in arrays.items():
            values = getattr(part, name)
            target[part.start : part.start + len(values)] = values
    return arrays
