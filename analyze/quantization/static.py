"""What is lost where scales do not follow the data: those of a calibration text, applied to another text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr

from analyze.peaks.lookup import view_peaks
from analyze.peaks.stream import stream_places
from analyze.quantization.errors import bands, column_squares
from analyze.quantization.schemes import Scheme, schemes_for
from analyze.quantization.static_result import ClippedChannel, ClippedToken, StaticQuantization
from analyze.quantization.transforms import Place
from analyze.quantization.variants import outputs_view
from analyze.question.checks import whole
from analyze.question.view import View
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset, token_texts
from analyze.types import Counts, Float32, Float64, Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, SEQUENCE, SITE

DEFAULT_SCHEMES: Final = ("int8-tensor", "fp8-tensor")
_LISTED: Final = 10


def quantize_static(
    store: Store,
    calibration: Store,
    schemes: Sequence[str] | None = None,
    *,
    view: View | None = None,
    resamples: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> StaticQuantization:
    """Quantise norm outputs of one store with the scales of another: the largest magnitude of each layer and site.

    Magnitudes beyond it become it: they clip. A calibration of n sequences has the largest of its n maxima, so that
    one pass, with the scale of every calibration sequence, answers for any number of them.

    Parameters
    ----------
    store : what is quantised: path, or Dataset from `open_store`
    calibration : whose norm outputs set the scales; its peaks are enough
    schemes : by tensor: `intB-tensor` or `fp8-tensor`; int8 and fp8 where None
    view : which layers, sites, sequences and positions of `store` count; its signal, scale and rounding do not
    resamples : how often calibration sequences are drawn anew, with replacement, 1 or more
    seed : of the draws
    progress : called with (finished, all) steps of the pass

    Returns
    -------
    StaticQuantization

    Raises
    ------
    OutliersError
        The stores are of different models, a scheme is not by tensor, or the calibration has an infinite value.
    """
    if whole("resamples", resamples) < 1:
        raise OutliersError(f"resamples is {resamples}; expected 1 or more")
    data, other = as_dataset(store), as_dataset(calibration)
    _check_same(data, other)
    found = schemes_for(DEFAULT_SCHEMES if schemes is None else schemes, data.sizes[FEATURE])
    for one in found:
        if one.share != "tensor":
            raise OutliersError(
                f"scheme {one.name} takes its scales from what it quantises; scales of another store are for schemes "
                "by tensor, such as int8-tensor"
            )
    chosen = outputs_view(view, data)
    frame = chosen.select(data)
    maxima = _sequence_maxima(other, chosen)
    limits = np.sort(maxima, axis=0)
    total = _Total(len(found), maxima.shape, frame.sizes[FEATURE])
    token_id = loaded(frame["token_id"])
    for n, layer, site, loss in stream_places(data, chosen, StaticLossOf(found, limits), progress):
        total.add((layer, site), loss, token_id[n])
    numbers = _numbers(len(maxima))
    shares, errors = total.shares(), total.errors()
    generator = np.random.default_rng(seed)
    # The same sequences are drawn at every place: those of a calibration go through the model together.
    ranks = np.argsort(np.argsort(maxima, axis=0, kind="stable"), axis=0)
    drawn = {
        count: np.stack([ranks[generator.integers(len(maxima), size=count)].max(axis=0) for _ in range(resamples)])
        for count in numbers
    }
    return StaticQuantization(
        name=str(data.encoding.get("source", "")),
        calibration=str(other.encoding.get("source", "")),
        schemes=tuple(one.name for one in found),
        layers=tuple(int(layer) for layer in frame[LAYER].values),
        sites=tuple(str(site) for site in frame[SITE].values),
        error=errors[:, -1],
        own_error=total.own / total.squares,
        clipped_share=shares[-1],
        by_number={
            count: (
                np.stack([_at(values, rank).mean(axis=(1, 2)) for values in errors]),
                _at(shares, rank).mean(axis=(1, 2)),
            )
            for count, rank in drawn.items()
        },
        channels=total.top_channels(frame),
        tokens=total.top_tokens(token_texts(data)),
    )


def _check_same(data: xr.Dataset, other: xr.Dataset) -> None:
    """Refuse stores of different models."""
    named = [str(one.attrs.get("model_id")) for one in (data, other)]
    same = all(data.sizes[dim] == other.sizes[dim] for dim in (LAYER, SITE, FEATURE)) and np.array_equal(
        loaded(data["norm_weight"]), loaded(other["norm_weight"])
    )
    if not same:
        raise OutliersError(
            f"the calibration store is of another model: its norms are not those of {named[0]} (it says {named[1]}); "
            "capture the calibration text with the same model"
        )


def _sequence_maxima(other: xr.Dataset, view: View) -> Float32:
    """Largest magnitude at each place of each sequence of the calibration, (sequence, layer, site)."""
    places = View(signal="output", layer_range=view.layer_range, sites=view.sites)
    peaks = places.select(view_peaks(other, View(signal="output")))
    result = np.stack(
        [
            np.fmax.reduce([np.abs(loaded(peaks[name].isel({SEQUENCE: n}))) for name in ("layer_high", "layer_low")])
            for n in range(peaks.sizes[SEQUENCE])
        ]
    )
    largest: Float32 = np.fmax.reduce(result, axis=3)
    if not np.isfinite(largest).all():
        n, layer, site = np.argwhere(~np.isfinite(largest))[0]
        raise OutliersError(
            f"the calibration store has no finite largest magnitude in sequence {n} at layer {layer}, site {site}, "
            "counted within the view; calibrate with another text or dtype"
        )
    return largest


def _numbers(sequences: int) -> list[int]:
    """Numbers of calibration sequences that are looked at: powers of two, and all."""
    return sorted({*(2**k for k in range(sequences.bit_length()) if 2**k <= sequences), sequences})


def _at(values: Float64, rank: Counts) -> Float64:
    """Values (sequence, layer, site) of the drawn maxima, (draw, layer, site)."""
    return np.take_along_axis(values, rank, axis=0)


@dataclass(frozen=True)
class StaticLoss:
    """What static scales lose on one matrix; rows with a value that is not finite are left out.

    Parameters
    ----------
    squares : sum of squares of the matrix
    errors : (scheme, limit) float64, sum of squares of what is lost with each limit
    own : (scheme,) float64, the same with the matrix's own largest magnitude
    clipped : (limit,) int64, number of values beyond each limit
    values : number of values
    channels : (feature,) int64, how often each clips at the highest limit
    tokens : (position,) bool, where any does
    """

    squares: float
    errors: Float64
    own: Float64
    clipped: Counts
    values: int
    channels: Counts
    tokens: Any


@dataclass(frozen=True)
class StaticLossOf:
    """The loss of a matrix, as a function that other processes can be sent.

    Parameters
    ----------
    schemes : by tensor
    limits : (limit, layer, site) float32, ascending
    """

    schemes: tuple[Scheme, ...]
    limits: Float32

    def __call__(self, matrix: Float32, place: Place) -> StaticLoss:
        """Loss of a (position, feature) float32 matrix at a (layer, site) of the view."""
        limits = self.limits[:, place[0], place[1]]
        finite = np.isfinite(matrix).all(axis=1)
        rows = matrix[finite]
        own = np.abs(rows).max(initial=0)
        errors, own_errors = np.zeros((len(self.schemes), len(limits))), np.zeros(len(self.schemes))
        clipped, squares = np.zeros(len(limits), np.int64), 0.0
        beyond = np.abs(rows) > limits[-1]
        for band in bands(rows):
            part = rows[band]
            squares += float(column_squares(part).sum())
            magnitudes = np.abs(part)
            for number, limit in enumerate(limits):
                if number and limit == limits[number - 1]:
                    continue
                clipped[number] += np.count_nonzero(magnitudes > limit)
            for s, scheme in enumerate(self.schemes):
                own_errors[s] += column_squares(part - scheme.quantised(part, own)).sum()
                for number, limit in enumerate(limits):
                    if not number or limit != limits[number - 1]:
                        errors[s, number] += column_squares(part - scheme.quantised(part, limit)).sum()
        first = np.searchsorted(limits, limits)  # of equal limits
        tokens = np.zeros(len(matrix), bool)
        tokens[finite] = beyond.any(axis=1)
        return StaticLoss(
            squares,
            errors[:, first],
            own_errors,
            clipped[first],
            rows.size,
            np.count_nonzero(beyond, axis=0),
            tokens,
        )


class _Total:
    """Sums of static losses over sequences."""

    def __init__(self, schemes: int, shape: tuple[int, ...], width: int) -> None:
        sequences, layers, sites = shape
        self.squares, self.values = np.zeros((layers, sites)), np.zeros((layers, sites))
        self.own, self._errors = np.zeros((schemes, layers, sites)), np.zeros((schemes, sequences, layers, sites))
        self._clipped = np.zeros((sequences, layers, sites))
        self._channels = np.zeros((layers, sites, width), np.int64)
        self._tokens: dict[int, int] = {}

    def add(self, place: Place, loss: StaticLoss, token_id: Any) -> None:
        """Add the loss of a matrix, whose positions hold these tokens."""
        at = (..., *place)
        self.squares[place] += loss.squares
        self.values[place] += loss.values
        self.own[at] += loss.own
        self._errors[at] += loss.errors
        self._clipped[at] += loss.clipped
        self._channels[place] += loss.channels
        for token, count in zip(*np.unique(token_id[loss.tokens], return_counts=True), strict=True):
            self._tokens[int(token)] = self._tokens.get(int(token), 0) + int(count)

    def errors(self) -> Float64:
        """Share of the squares that is lost, (scheme, limit, layer, site)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._errors / self.squares

    def shares(self) -> Float64:
        """Share of the values that clip, (limit, layer, site)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._clipped / self.values

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
