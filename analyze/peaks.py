"""Peaks of a view: all that a criterion needs to know about the activations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze import cache
from analyze.buffers import BUFFERS
from analyze.criteria import Criteria, rank_ready
from analyze.load import by_sequence
from analyze.rounding import rounded
from analyze.streaming import Progress, SequencePeaks, stream_peaks
from analyze.view import View
from capture.schema import FEATURE, LAYER, POSITION, SEQUENCE, SIGNAL, SITE

Float32 = npt.NDArray[np.float32]
Item = TypeVar("Item")
Result = TypeVar("Result")

LAYER_DIMS = (SEQUENCE, LAYER, SITE, FEATURE)
POSITION_DIMS = (SEQUENCE, POSITION, FEATURE)
_BLOCK = 2**26  # values of position peaks held at once by a pooled criterion: 256 MiB


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
    feature), float32, in the view's unit, with coordinates that count within the store

    Raises
    ------
    OutliersError
        A view that the store cannot serve, or a damaged chunk (at the latest when the result is used).
    """
    view = view.view.resolve(store)
    if view.rounding != "none" and view.scale == "absolute":
        # Rounding keeps the order of values, so that peaks of rounded values are rounded peaks of the values.
        exact = view_peaks(store, replace(view, rounding="none"), use_cache=use_cache, progress=progress)
        return exact.map(rounded, keep_attrs=True)
    if view.plain:
        names = ["layer_high", "layer_low", "position_peak"]
        return view.select(store[names].sel({SIGNAL: view.signal}).drop_vars(SIGNAL)).assign_attrs({})
    frame = view.select(store[["position_peak", "layer_high"]].isel({SIGNAL: 0}).drop_vars(SIGNAL))
    dims = {"layer_high": LAYER_DIMS, "layer_low": LAYER_DIMS, "position_peak": POSITION_DIMS}
    shapes = {name: tuple(frame.sizes[dim] for dim in places) for name, places in dims.items()}
    key = cache.cache_key(store, view) if use_cache else None
    arrays: Mapping[str, Any] | None = cache.read(store, key, shapes) if key is not None else None
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


@dataclass(frozen=True)
class Group:
    """Peaks that one count is taken over: those of a sequence, or, pooled, some features of all sequences.

    Parameters
    ----------
    sequence : number of the sequence; None where pooled
    features : which features, as a range
    layer : (feature, layer unit) float32 without NaN
    position : (feature, position) float32 without NaN, C-contiguous unless asked for as stored
    """

    sequence: int | None
    features: range
    layer: Float32
    position: Float32


def group_keys(peaks: xr.Dataset, criteria: Criteria) -> list[tuple[int | None, range]]:
    """Groups of a criterion: index of the sequence (None where pooled) and features."""
    width = peaks.sizes[FEATURE]
    if criteria.counting == "per-sequence":
        return [(n, range(width)) for n in range(peaks.sizes[SEQUENCE])]
    step = max(1, _BLOCK // (peaks.sizes[SEQUENCE] * peaks.sizes[POSITION]))
    return [(None, range(start, min(start + step, width))) for start in range(0, width, step)]


class GroupReader:
    """Reads the peaks of one group at a time; threads may share it.

    Parameters
    ----------
    peaks : of `view_peaks`
    criteria : says what a group is
    order : position peaks in C order, or as they are stored, which is F order
    """

    def __init__(self, peaks: xr.Dataset, criteria: Criteria, order: Literal["C", "F"] = "C") -> None:
        self._sequences, self._positions = peaks.sizes[SEQUENCE], peaks.sizes[POSITION]
        self._numbers = peaks[SEQUENCE].values
        self._values = by_sequence(*(peaks[name] for name in ("layer_high", "layer_low", "position_peak")))
        self._layer_unit, self._order = criteria.layer_unit, order

    def __call__(self, key: tuple[int | None, range]) -> Group:
        """The group of one of the `group_keys`."""
        index, features = key
        chosen = slice(features.start, features.stop)
        rows = range(self._sequences) if index is None else [index]
        shape = len(features), len(rows) * self._positions
        layer: Float32 | None = None
        position: Float32 | None = None
        if self._order == "C":
            position = BUFFERS.empty(shape, np.float32)
        elif len(rows) > 1:
            position = BUFFERS.empty(shape[::-1], np.float32).T
        for row, n in enumerate(rows):
            high, low, stored = self._values(n, chosen)
            magnitudes = np.fmax(np.abs(high), np.abs(low))
            layer = magnitudes if layer is None else np.fmax(layer, magnitudes)
            if position is None:  # one sequence, as it is stored
                position = stored.T
                continue
            target = position[:, row * self._positions : (row + 1) * self._positions]
            if self._order == "C":
                transpose(stored, target)
            else:
                target[...] = stored.T
        assert layer is not None
        assert position is not None
        units = layer.reshape(-1, len(features)) if self._layer_unit == "site" else np.fmax.reduce(layer, axis=1)
        sequence = None if index is None else int(self._numbers[index])
        return Group(sequence, features, rank_ready(np.ascontiguousarray(units.T)), rank_ready(position))


def of_groups(
    function: Callable[[Group], Result], peaks: xr.Dataset, criteria: Criteria, order: Literal["C", "F"] = "C"
) -> Iterator[Result]:
    """Results of a function of every group of a criterion, in order, computed by a few threads.

    Memory is bounded by the peaks of a few groups, and what the function makes of them.
    """
    keys, read = group_keys(peaks, criteria), GroupReader(peaks, criteria, order)
    # A pooled group is as large as it may be, whereas a sequence is as long as it is.
    most = 2 if keys[0][0] is None else 4
    return in_threads(lambda key: function(read(key)), keys, most)


def threads(most: int) -> int:
    """Threads for arithmetic on peaks, at most so many."""
    return min(most, os.cpu_count() or 1)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], most: int = 4) -> Iterator[Result]:
    """Results of a function of every item, in order, computed by a few threads.

    Where the caller stops early, for an error or Ctrl-C, what has not begun does not begin.
    """
    pool = ThreadPoolExecutor(threads(most))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def transpose(source: Float32, target: Float32) -> None:
    """Copy (row, column) to (column, row), tile by tile."""
    rows, columns = 128, 64
    # Rows of a wide matrix, a power of two apart, evict each other from a processor's cache; those of a tile do not.
    tile = np.empty((rows, columns), source.dtype)
    for row in range(0, source.shape[0], rows):
        for column in range(0, source.shape[1], columns):
            part = source[row : row + rows, column : column + columns]
            copy = tile[: part.shape[0], : part.shape[1]]
            copy[...] = part
            target[column : column + columns, row : row + rows] = copy.T
