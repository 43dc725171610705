"""Facts that several answers carry: perplexity, values that are not finite, mean fractions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from analyze.peaks.counted import lengths
from analyze.question.criteria import Criteria
from analyze.reading.lazy import loaded
from analyze.types import Float64
from capture.store.schema import SEQUENCE, SIGNAL

ROUNDED_NOTE: Final = "activations have {} mantissa bits; stored peaks and plain views are exact"
"""What a reader is told of a store whose activations were rounded when it was packed."""


def mean_fraction(hits: Iterable[tuple[int, int]], count: int) -> float:
    """Mean share of hits over `count` outliers; NaN where there is none.

    Parameters
    ----------
    hits : for some of the outliers at a time their number of hits, and how many places each of them has
    count : all outliers
    """
    return math.fsum(n / (total * count) for total, n in by_total(hits).items()) if count else math.nan


def by_total(hits: Iterable[tuple[Any, int]]) -> dict[int, Any]:
    """Exact sums of hits by the number of places that they are out of: the fewest quotients that a mean can have."""
    sums: dict[int, Any] = {}
    for n, total in hits:
        if total:
            sums[total] = sums[total] + n if total in sums else n
    return sums


def perplexity(store: xr.Dataset, criteria: Criteria) -> float:
    """Exp of the mean negative log-likelihood over positions >= 1 of the view's sequences, summed in float64.

    NaN where the store cannot say: a single position, no likelihoods, or one that is not a number.
    """
    values = np.concatenate(losses(store, criteria.sequences))
    if values.size == 0:
        return math.nan
    with np.errstate(over="ignore"):
        return float(np.exp(values.mean()))


def losses(store: xr.Dataset, sequences: Sequence[int] | None = None) -> list[Float64]:
    """Negative log-likelihoods of each sequence, from position 1 to its end, float64; of all sequences where None.

    Without any where the Dataset has none: not every one that answers for outliers was captured.
    """
    if "nll" not in store:
        return [np.empty(0)] * (store.sizes[SEQUENCE] if sequences is None else len(sequences))
    nll, ends = store["nll"], lengths(store)
    if sequences is not None:
        nll, ends = nll.isel({SEQUENCE: list(sequences)}), ends[list(sequences)]
    values = loaded(nll).astype(np.float64)
    return [row[1:end] for row, end in zip(values, ends, strict=True)]


def nonfinite_count(store: xr.Dataset, criteria: Criteria) -> int:
    """Number of NaN and infinite values of the view's signal, sequences, layers and sites, at all positions."""
    counts = criteria.select(store[["nonfinite_count"]].sel({SIGNAL: criteria.signal}))["nonfinite_count"]
    return int(loaded(counts).sum(dtype=np.int64))
