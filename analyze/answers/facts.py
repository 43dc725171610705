"""Facts that several answers carry: perplexity, values that are not finite, mean fractions."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import xarray as xr

from analyze.question.criteria import Criteria
from analyze.reading.lazy import loaded
from capture.store.schema import POSITION, SEQUENCE, SIGNAL

ROUNDED_NOTE: Final = "activations have {} mantissa bits; stored peaks and plain views are exact"
"""What a reader is told of a store whose activations were rounded when it was packed."""


def mean_fraction(hits: int, total: int, count: int) -> float:
    """Mean share of hits over `count` outliers with `total` places each, from an exact sum; NaN where count is 0."""
    return hits / (total * count) if count else math.nan


def perplexity(store: xr.Dataset, criteria: Criteria) -> float:
    """Exp of the mean negative log-likelihood over positions >= 1 of the view's sequences, summed in float64.

    NaN where the store cannot say: a single position, or a likelihood that is not a number.
    """
    nll = store["nll"]
    if criteria.sequences is not None:
        nll = nll.isel({SEQUENCE: list(criteria.sequences)})
    values = loaded(nll.isel({POSITION: slice(1, None)})).astype(np.float64)
    if values.size == 0:
        return math.nan
    with np.errstate(over="ignore"):
        return float(np.exp(values.mean()))


def nonfinite_count(store: xr.Dataset, criteria: Criteria) -> int:
    """Number of NaN and infinite values of the view's signal, sequences, layers and sites, at all positions."""
    counts = criteria.select(store[["nonfinite_count"]].sel({SIGNAL: criteria.signal}))["nonfinite_count"]
    return int(loaded(counts).sum(dtype=np.int64))
