"""What static scales lose on one matrix, and the sums of that over sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr

from analyze.peaks.counted import Bools
from analyze.quantization.errors import bands, column_squares, weighted, weights_of
from analyze.quantization.schemes import Scheme
from analyze.quantization.static_result import ClippedChannel, ClippedToken
from analyze.quantization.transforms import Place
from analyze.types import Counts, Float32, Float64
from capture.store.schema import LAYER, SITE

_LISTED: Final = 10


@dataclass(frozen=True)
class StaticLoss:
    """What static scales lose on one matrix; rows with a value that is not finite are left out.

    Parameters
    ----------
    squares : (2,) float64, sum of squares of the matrix, plain and weighted by the squares of the weights' norms
    errors : (scheme, limit, 2) float64, the same of what is lost with each limit
    own : (scheme, 2) float64, the same with the matrix's own largest magnitude
    clipped : (limit,) int64, number of values beyond each limit
    values : number of values
    channels : (feature,) int64, how often each clips at the highest limit
    tokens : (position,) bool, where any does
    """

    squares: Float64
    errors: Float64
    own: Float64
    clipped: Counts
    values: int
    channels: Counts
    tokens: Bools


@dataclass(frozen=True)
class StaticLossOf:
    """The loss of a matrix, as a function that other processes can be sent.

    Parameters
    ----------
    schemes : by tensor
    limits : (limit, layer, site) float32, ascending
    weight_norm : (layer, site, feature) float32; None where the store has none, and weighted sums are NaN
    """

    schemes: tuple[Scheme, ...]
    limits: Float32
    weight_norm: Float32 | None

    def __call__(self, matrix: Float32, place: Place) -> StaticLoss:
        """Loss of a (position, feature) float32 matrix at a (layer, site) of the view."""
        limits, alike = np.unique(self.limits[:, *place], return_inverse=True)
        finite = np.isfinite(matrix).all(axis=1)
        rows = matrix[finite]
        own = np.abs(rows).max(initial=0)
        weights = weights_of(self.weight_norm, place, matrix.shape[1])

        def sums(values: Float32) -> Float64:
            both: Float64 = weighted(column_squares(values)[None], weights)[0]
            return both

        squares, clipped = np.zeros(2), np.zeros(len(limits), np.int64)
        errors, own_errors = np.zeros((len(self.schemes), len(limits), 2)), np.zeros((len(self.schemes), 2))
        for band in bands(rows):
            part = rows[band]
            squares += sums(part)
            clipped += [np.count_nonzero(np.abs(part) > limit) for limit in limits]
            for s, scheme in enumerate(self.schemes):
                own_errors[s] += sums(part - scheme.quantised(part, own))
                for number, limit in enumerate(limits):
                    errors[s, number] += sums(part - scheme.quantised(part, limit))
        beyond = np.abs(rows) > limits[-1]
        tokens = np.zeros(len(matrix), bool)
        tokens[finite] = beyond.any(axis=1)
        return StaticLoss(
            squares,
            errors[:, alike],
            own_errors,
            clipped[alike],
            rows.size,
            np.count_nonzero(beyond, axis=0),
            tokens,
        )


class StaticTotal:
    """Sums of static losses over sequences.

    Parameters
    ----------
    schemes : how many
    shape : number of limits, layers and sites
    width : number of features
    """

    def __init__(self, schemes: int, shape: tuple[int, int, int], width: int) -> None:
        limits, *places = shape
        self._squares, self._values = np.zeros((2, *places)), np.zeros(places)
        self._own, self._errors = np.zeros((schemes, 2, *places)), np.zeros((schemes, limits, 2, *places))
        self._clipped = np.zeros((limits, *places))
        self._channels = np.zeros((*places, width), np.int64)
        self._tokens: dict[int, int] = {}

    def add(self, place: Place, loss: StaticLoss, token_id: Counts) -> None:
        """Add the loss of a matrix, whose positions hold these tokens, (position,)."""
        at = (..., *place)
        self._squares[at] += loss.squares
        self._values[place] += loss.values
        self._own[at] += loss.own
        self._errors[at] += loss.errors
        self._clipped[at] += loss.clipped
        self._channels[place] += loss.channels
        for token, count in zip(*np.unique(token_id[loss.tokens], return_counts=True), strict=True):
            self._tokens[int(token)] = self._tokens.get(int(token), 0) + int(count)

    def errors(self) -> Float64:
        """Share of the squares that is lost, plain and weighted, (scheme, limit, 2, layer, site)."""
        return _quotient(self._errors, self._squares)

    def own_errors(self) -> Float64:
        """The same with each matrix's own scale, (scheme, 2, layer, site)."""
        return _quotient(self._own, self._squares)

    def shares(self) -> Float64:
        """Share of the values that clip, (limit, layer, site)."""
        return _quotient(self._clipped, self._values)

    def top_channels(self, frame: xr.Dataset) -> tuple[ClippedChannel, ...]:
        """Features that clip most often at one place."""
        order = np.argsort(-self._channels, axis=None, kind="stable")[:_LISTED]
        places = [tuple(int(n) for n in np.unravel_index(number, self._channels.shape)) for number in order]
        return tuple(
            ClippedChannel(int(frame[LAYER].values[i]), str(frame[SITE].values[j]), f, int(self._channels[i, j, f]))
            for i, j, f in places
            if self._channels[i, j, f]
        )

    def top_tokens(self, texts: dict[int, str]) -> tuple[ClippedToken, ...]:
        """Tokens at whose positions something clips most often."""
        ranked = sorted(self._tokens.items(), key=lambda item: (-item[1], item[0]))[:_LISTED]
        return tuple(ClippedToken(token, texts.get(token), count) for token, count in ranked)


def _quotient(part: Float64, whole: Float64) -> Float64:
    """Shares; NaN where there is nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / whole
