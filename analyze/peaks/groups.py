"""Peaks in the groups that a count is taken over: a sequence each, or pooled some features of all sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from analyze.peaks.threads import Result, in_threads
from analyze.question.criteria import Criteria
from analyze.question.ranks import critical_magnitude, rank_ready
from analyze.reading.lazy import by_sequence
from analyze.types import Float32
from capture.store.schema import FEATURE, POSITION, SEQUENCE

_BLOCK = 2**26  # values of position peaks held at once by a pooled criterion: 256 MiB


@dataclass(frozen=True)
class Group:
    """Peaks that one count is taken over: those of a sequence, or, pooled, some features of all sequences.

    Parameters
    ----------
    sequence : number of the sequence; None where pooled
    features : which features, as a range
    layer : (feature, layer unit) float32 without NaN
    position : (feature, position) float32 without NaN, C-contiguous unless asked for as stored
    positions : how many positions count; the peaks of the others are -inf
    """

    sequence: int | None
    features: range
    layer: Float32
    position: Float32
    positions: int

    def critical(self, criteria: Criteria) -> Float32:
        """Critical magnitudes for the fractions of a criterion, (feature,) float32, as `critical_magnitude`."""
        return critical_magnitude(self.layer, self.position, criteria.layers, criteria.positions, self.positions)


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
        self._numbers, self._counted = peaks[SEQUENCE].values, peaks["counted"].values
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
            position = np.empty(shape, np.float32)
        elif len(rows) > 1:
            position = np.empty(shape[::-1], np.float32).T
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
        counted = int(self._counted[list(rows)].sum())
        return Group(sequence, features, rank_ready(np.ascontiguousarray(units.T)), rank_ready(position), counted)


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
