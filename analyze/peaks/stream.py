"""One pass over the activations of a view: each chunk is read once, reduced, and let go."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import dask.threaded
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute
from dask.delayed import Delayed, delayed

from analyze.peaks.counted import counted_positions
from analyze.question.units import rounded, scale_unit, scaled
from analyze.question.view import View
from analyze.reading.activations import activations
from analyze.types import Float32, Progress
from capture.store.schema import FEATURE, POSITION, SEQUENCE

_ROWS = 2**18  # values in a band of rows: small enough to stay in a processor's cache through four reductions


@dataclass
class SequencePeaks:
    """Peaks of a run of consecutive sequences of a view.

    Parameters
    ----------
    start : index of the first of the sequences within the view
    layer_high, layer_low : (sequence, layer, site, feature) float32
    position_peak : (sequence, position, feature) float32
    """

    start: int
    layer_high: Float32
    layer_low: Float32
    position_peak: Float32


def stream_peaks(store: xr.Dataset, view: View, progress: Progress | None = None) -> Iterator[SequencePeaks]:
    """Peaks of a view from the activations, a few sequences at a time.

    Memory is bounded by a few chunks for each worker and one (position, feature) matrix for each sequence of a chunk,
    whatever the size of the store. The dask scheduler in force does the work: threads, or a distributed cluster.

    Parameters
    ----------
    store : Dataset from `open_store`, or one that you chunked yourself
    view : which values count; resolved against the store
    progress : told after every step

    Raises
    ------
    OutliersError
        No activations for this view, or a damaged chunk.
    """
    data = _counted(store, view)
    if view.scale != "absolute":
        data = data.chunk({POSITION: -1, FEATURE: -1})
    chunks = data.chunks
    assert chunks is not None
    starts = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in chunks]
    lanes = max(2, _workers())
    for step, (start, stop) in enumerate(itertools.pairwise(starts[0])):
        part = data.isel(sequence=slice(int(start), int(stop)))
        tasks = _lanes(part.data.to_delayed(optimize_graph=True), starts, view.scale, lanes)
        n, layers, sites, positions, features = part.shape
        result = SequencePeaks(
            int(start),
            np.full((n, layers, sites, features), np.nan, np.float32),
            np.full((n, layers, sites, features), np.nan, np.float32),
            np.full((n, positions, features), np.nan, np.float32),
        )
        for (p, f), peak, pieces in _compute(tasks):
            _merge(result.position_peak, (slice(None), p, f), peak, np.fmax)
            for place, high, low in pieces:
                _merge(result.layer_high, (slice(None), *place, f), high, np.fmax)
                _merge(result.layer_low, (slice(None), *place, f), low, np.fmin)
        if progress is not None:
            progress(step + 1, len(chunks[0]))
        yield result


def stream_matrices(
    store: xr.Dataset, view: View, function: Callable[[Float32], Any], progress: Progress | None = None
) -> Iterator[tuple[int, int, int, Any]]:
    """Apply a function to every (position, feature) matrix of a view, in one pass.

    Parameters
    ----------
    store, view, progress : as in `stream_peaks`; the view's rounding is applied, its scale is not
    function : of a (position, feature) float32 matrix, NaN at positions that do not count; what it returns is held
        until a few sequences are done

    Yields
    ------
    sequence, layer, site : indices within the view
    result : of the function
    """
    yield from stream_places(store, view, partial(_anywhere, function), progress)


def stream_places(
    store: xr.Dataset,
    view: View,
    function: Callable[[Float32, tuple[int, int]], Any],
    progress: Progress | None = None,
) -> Iterator[tuple[int, int, int, Any]]:
    """As `stream_matrices`, of a function that is told the (layer, site) of a matrix within the view as well."""
    data = _counted(store, view).chunk({POSITION: -1, FEATURE: -1})
    chunks = data.chunks
    assert chunks is not None
    task: Any = delayed(_apply, pure=False)
    starts = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in chunks[:3]]
    for step, (start, stop) in enumerate(itertools.pairwise(starts[0])):
        blocks = data.isel(sequence=slice(int(start), int(stop))).data.to_delayed(optimize_graph=True)
        corners = [(int(starts[1][i]), int(starts[2][j])) for _, i, j in np.ndindex(*blocks.shape[:3])]
        tasks = (
            task(block, function, corner) for block, corner in zip(blocks[..., 0, 0].ravel(), corners, strict=True)
        )
        for (layer, site), results in zip(corners, _compute(tasks), strict=True):
            for (n, i, j), result in results:
                yield int(start) + n, layer + i, site + j, result
        if progress is not None:
            progress(step + 1, len(chunks[0]))


def _counted(store: xr.Dataset, view: View) -> xr.DataArray:
    """Activations of the view, NaN at positions that do not count, rounded as the view asks, in chunks."""
    data = view.select(activations(store, view.signal).to_dataset(name="x"))["x"]
    if view.skip_tokens:  # behind the end of a sequence a store has NaN already
        data = data.where(xr.DataArray(counted_positions(store, view), dims=(SEQUENCE, POSITION)), np.float32(np.nan))
    return data if view.rounding == "none" else rounded(data)


def _anywhere(function: Callable[[Float32], Any], matrix: Float32, place: tuple[int, int]) -> Any:
    return function(matrix)


def _apply(
    block: Float32, function: Callable[[Float32, tuple[int, int]], Any], corner: tuple[int, int]
) -> list[tuple[tuple[int, ...], Any]]:
    """Results of a function of each (position, feature) matrix of a block that begins at a layer and site."""
    first_layer, first_site = corner
    return [
        ((n, i, j), function(block[n, i, j], (first_layer + i, first_site + j)))
        for n, i, j in np.ndindex(*block.shape[:3])
    ]


def _workers() -> int:
    """Workers of the scheduler in force."""
    if "distributed" in sys.modules:
        try:
            client = sys.modules["distributed"].get_client()
        except ValueError:
            pass  # imported, and no cluster in force
        else:
            return max(1, sum(int(cores) for cores in client.ncores().values()))
    return os.cpu_count() or 1


def _compute(tasks: Iterable[Delayed]) -> tuple[Any, ...]:
    """Results of tasks, by the scheduler in force."""
    # Left alone, or given a scheduler's name, dask imports dask.distributed to find that no cluster is in force.
    chosen = "distributed" in sys.modules or dask.config.get("scheduler", None) is not None
    return tuple(compute(*tasks) if chosen else compute(*tasks, scheduler=dask.threaded.get))


def _merge(target: Float32, place: tuple[Any, ...], values: Float32, function: Any) -> None:
    target[place] = function(target[place], values)


def _lanes(blocks: npt.NDArray[Any], starts: list[Any], scale: str, lanes: int) -> list[Delayed]:
    """Chains of tasks, each folding some of the blocks of one (position, feature) range."""
    _, layers, sites, positions, features = blocks.shape
    span = [[slice(int(a), int(b)) for a, b in itertools.pairwise(edges)] for edges in starts]
    tasks = []
    for p, f in np.ndindex(positions, features):
        order = list(np.ndindex(layers, sites))
        for lane in range(min(lanes, len(order))):
            fold: Any = delayed(_fold, pure=False)
            state: Any = ((span[3][p], span[4][f]), None, [])
            for layer, site in order[lane::lanes]:
                place = (span[1][layer], span[2][site])
                state = fold(state, blocks[0, layer, site, p, f], place, scale)
            tasks.append(state)
    return tasks


def _fold(state: Any, block: Float32, place: tuple[slice, slice], scale: str) -> Any:
    """Add one (sequence, layer, site, position, feature) block to the peaks of a lane."""
    corner, peak, pieces = state
    if peak is not None and not peak.flags.writeable:  # it came from another process
        peak = peak.copy()
    # Peaks grow in place: no other task has this state, and a maximum taken twice is the same maximum.
    high, low, peak = block_peaks(block, scale, peak)
    return corner, peak, [*pieces, (place, high, low)]


def block_peaks(
    block: Float32, scale: str = "absolute", peak: Float32 | None = None
) -> tuple[Float32, Float32, Float32]:
    """Peaks of one block.

    Parameters
    ----------
    block : (sequence, layer, site, position, feature) float32; whole (position, feature) matrices unless `absolute`
    scale : `absolute`, `rms` or `median`
    peak : (sequence, position, feature) float32 of other layers and sites, which is changed in place

    Returns
    -------
    high, low : (sequence, layer, site, feature) float32, largest and smallest value over positions
    peak : (sequence, position, feature) float32, largest magnitude over layers and sites

    Notes
    -----
    A NaN is passed over. Division by a positive unit keeps the order of values, so peaks are scaled, not values.
    """
    sequences, layers, sites, positions, features = block.shape
    high = np.empty((sequences, layers, sites, features), np.float32)
    low = np.empty_like(high)
    fresh = peak is None
    if peak is None:
        peak = np.empty((sequences, positions, features), np.float32)
    band = max(1, _ROWS // features)
    buffer = np.empty((band, features), np.float32)
    for n, layer, site in np.ndindex(sequences, layers, sites):
        matrix = block[n, layer, site]
        unit = None if scale == "absolute" else scale_unit(matrix, scale)
        first = fresh and layer == site == 0
        top, bottom = high[n, layer, site], low[n, layer, site]
        for start in range(0, positions, band):
            values = matrix[start : start + band]
            _reduce(np.fmax, values, top, start == 0)
            _reduce(np.fmin, values, bottom, start == 0)
            magnitudes = scaled(np.abs(values, out=buffer[: len(values)]), unit)
            target = peak[n, start : start + band]
            if first:
                target[...] = magnitudes
            else:
                np.fmax(target, magnitudes, out=target)
        high[n, layer, site], low[n, layer, site] = scaled(top, unit), scaled(bottom, unit)
    return high, low, peak


def _reduce(function: Any, values: Float32, target: Float32, first: bool) -> None:
    if first:
        function.reduce(values, axis=0, out=target)
    else:
        function(target, function.reduce(values, axis=0), out=target)
