"""Columns of the matrices that sublayers read: their peaks, and how many LLM.int8() keeps in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyze.question.checks import check_magnitude
from analyze.reading.lazy import loaded
from analyze.types import Float32
from capture.errors import OutliersError
from capture.store.schema import LAYER, SEQUENCE, SIGNAL, SITE

THRESHOLD: Final = "threshold"


def column_peaks(store: xr.Dataset, signal: str) -> Iterator[Float32]:
    """Largest magnitude over positions, sequence by sequence, from the stored peaks.

    Yields
    ------
    (layer, site, feature) float32; NaN where there was no number
    """
    high, low = (store[name].sel({SIGNAL: signal}) for name in ("layer_high", "layer_low"))
    for n in range(store.sizes[SEQUENCE]):
        yield np.fmax(np.abs(loaded(high.isel({SEQUENCE: n}))), np.abs(loaded(low.isel({SEQUENCE: n}))))


def checked_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Thresholds in ascending order, each once.

    Raises
    ------
    OutliersError
        One of them is no positive number.
    """
    for threshold in thresholds:
        check_magnitude(threshold, "threshold")
        if threshold == 0:
            raise OutliersError("threshold is 0, at which every column is kept; expected a positive number")
    return tuple(sorted({float(threshold) for threshold in thresholds}))


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
    limits = np.asarray(thresholds, np.float32)
    total = np.zeros((len(limits), store.sizes[LAYER], store.sizes[SITE]))
    for peaks in column_peaks(store, "output"):
        for number, limit in enumerate(limits):
            total[number] += (peaks >= limit).mean(axis=-1)
    coordinates = {THRESHOLD: list(thresholds), LAYER: store[LAYER].values, SITE: store[SITE].values}
    return xr.DataArray(
        total / store.sizes[SEQUENCE], coordinates, (THRESHOLD, LAYER, SITE), name="kept_share", attrs=store.attrs
    )
