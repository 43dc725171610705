"""Columns of the matrices that sublayers read: their peaks, and how many LLM.int8() keeps in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyze.question.checks import check_magnitude
from analyze.question.ranks import threshold
from analyze.reading.lazy import loaded
from analyze.types import Counts, Float32
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, SEQUENCE, SIGNAL, SITE

THRESHOLD: Final = "threshold"


def column_peaks(store: xr.Dataset, signal: str) -> Iterator[Float32]:
    """Largest magnitude over positions, sequence by sequence, from the stored peaks.

    Yields
    ------
    (layer, site, feature) float32; NaN where there was no number
    """
    yield from column_peaks_of(store[["layer_high", "layer_low"]].sel({SIGNAL: signal}))


def column_peaks_of(peaks: xr.Dataset) -> Iterator[Float32]:
    """The same of the peaks of a view, as from `view_peaks`."""
    high, low = peaks["layer_high"], peaks["layer_low"]
    for n in range(peaks.sizes[SEQUENCE]):
        yield np.fmax(np.abs(loaded(high.isel({SEQUENCE: n}))), np.abs(loaded(low.isel({SEQUENCE: n}))))


def checked_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Thresholds in ascending order, each once.

    Raises
    ------
    OutliersError
        One of them is no positive number.
    """
    for value in thresholds:
        check_magnitude(value, "threshold")
        if value == 0:
            raise OutliersError("threshold is 0, at which every column is kept; expected a positive number")
    return tuple(sorted({float(value) for value in thresholds}))


def kept_shares(store: xr.Dataset, thresholds: Sequence[float]) -> xr.DataArray:
    """Share of the columns of norm outputs that LLM.int8() keeps in 16 bits: those with any magnitude >= threshold.

    Exact at every threshold, since a column has such a value where its peak is one.

    Parameters
    ----------
    store : Dataset from `open_store`
    thresholds : of LLM.int8(), ascending; rounded to float32 as in `Criteria`

    Returns
    -------
    (threshold, layer, site) float64, mean over sequences

    References
    ----------
    Dettmers et al. 2022, LLM.int8(), section 3.2.
    """
    kept = kept_columns(column_peaks(store, "output"), thresholds) / (store.sizes[SEQUENCE] * store.sizes[FEATURE])
    coordinates = {THRESHOLD: list(thresholds), LAYER: store[LAYER].values, SITE: store[SITE].values}
    return xr.DataArray(kept, coordinates, (THRESHOLD, LAYER, SITE), name="kept_share", attrs=store.attrs)


def kept_columns(peaks: Iterable[Float32], thresholds: Sequence[float]) -> Counts:
    """How many columns have a magnitude at or above each threshold.

    Parameters
    ----------
    peaks : (layer, site, feature) float32 of each sequence, as from `column_peaks`
    thresholds : of LLM.int8(); rounded to float32

    Returns
    -------
    (threshold, layer, site) int64, over all sequences
    """
    limits = threshold(thresholds)
    parts = (np.array([np.count_nonzero(part >= limit, axis=-1) for limit in limits]) for part in peaks)
    return np.asarray(sum(parts), np.int64)
