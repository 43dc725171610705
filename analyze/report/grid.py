"""The magnitudes that a report embeds: round numbers over the range of the peaks, as dense as its size allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from analyze.question.checks import check_magnitude
from analyze.question.ranks import threshold
from capture.errors import OutliersError

# Steps within a decade, as (from, up to, step), the densest grid first. Every one has 1 and 6, Dettmers' magnitude.
DENSITIES: Final = (
    ((1, 2, 0.05), (2, 4, 0.1), (4, 10, 0.25)),
    ((1, 2, 0.05), (2, 4, 0.2), (4, 10, 0.5)),
    ((1, 2, 0.1), (2, 4, 0.2), (4, 10, 0.5)),
    ((1, 2, 0.1), (2, 4, 0.25), (4, 10, 1)),
    ((1, 2, 0.2), (2, 4, 0.25), (4, 10, 1)),
    ((1, 2, 0.2), (2, 4, 0.4), (4, 10, 1)),
    ((1, 2, 0.2), (2, 4, 0.5), (4, 10, 1)),
    ((1, 2, 0.2), (2, 4, 0.5), (4, 10, 2)),
    ((1, 2, 0.25), (2, 4, 1), (4, 10, 2)),
    ((1, 2, 0.5), (2, 4, 1), (4, 10, 2)),
)
DECADES: Final = 5
"""Most decades that a grid spans: what is smaller by more than this is of no interest beside the largest."""
_MOST: Final = 2000


def grid(low: float, high: float, density: int) -> list[float]:
    """Round magnitudes from at most `low` to above `high`, ascending.

    Parameters
    ----------
    low : smallest magnitude of interest, above 0
    high : largest magnitude that occurs
    density : index into `DENSITIES`

    Returns
    -------
    magnitudes; the last one is above `high`, so that nothing hits there. 6 is always among them.
    """
    low, high = min(low, 6.0), max(high, 6.0)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    mantissas = [
        round(start + i * step, 2)
        for start, stop, step in DENSITIES[density]
        for i in range(round((stop - start) / step))
    ]
    # Written as a decimal number and read, so that each is the float64 that a user's own "6.5" is.
    values = [float(f"{mantissa}e{exponent}") for exponent in range(first, last + 1) for mantissa in mantissas]
    start = max(i for i, value in enumerate(values) if value <= low)
    stop = next(i for i, value in enumerate(values) if value > high)
    return values[start : stop + 1]


def chosen(magnitudes: Sequence[float]) -> list[float]:
    """A user's own magnitudes, ascending, each once.

    Raises
    ------
    OutliersError
        None at all, too many, or one that is no threshold.
    """
    for value in magnitudes:
        check_magnitude(value)
    values = sorted({float(value) for value in magnitudes})
    if not 1 <= len(values) <= _MOST:
        raise OutliersError(f"{len(values):,} magnitudes to embed; expected 1 to {_MOST:,}")
    if len(np.unique(threshold(values))) < len(values):
        raise OutliersError("two of the magnitudes to embed are the same float32 number; expected different ones")
    return values
