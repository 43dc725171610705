"""What quantisers lose on one matrix: squared errors of every scheme, transform and threshold asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.quantization.columns import checked_thresholds
from analyze.quantization.schemes import Scheme, scheme
from analyze.quantization.transforms import Place, Transform, parse_transform
from analyze.types import Float32, Float64

VariantKey = tuple[str, str, float | None]
"""Names of scheme and transform, and the threshold."""

_SEPARATOR = "|"
_BAND = 2**16  # values handled at once: all that is made of them stays in a processor's cache


@dataclass(frozen=True)
class Variant:
    """One way to quantise.

    Parameters
    ----------
    scheme : how values are rounded
    transform : what is done to features before
    threshold : columns with any magnitude >= this are kept in 16 bits and leave the others' scales; None keeps none
    """

    scheme: Scheme
    transform: Transform
    threshold: float | None = None

    @property
    def label(self) -> str:
        """A name that no other variant has."""
        threshold = "" if self.threshold is None else repr(self.threshold)
        return _SEPARATOR.join((self.scheme.name, self.transform.name, threshold))

    def applied(self, values: Float32, place: Place) -> Float32:
        """What comes out where a matrix is quantised: the definition, which `LossOf` computes the errors of.

        Parameters
        ----------
        values : (position, feature) float32
        place : layer and site, by which a transform knows its scales
        """
        seen = self.transform.forward(values, place)
        magnitudes = np.abs(seen)
        kept: npt.NDArray[np.bool_] = np.zeros(seen.shape[1], bool)
        if self.threshold is not None:
            kept = np.asarray((magnitudes >= np.float32(self.threshold)).any(axis=0))
        result = seen.copy()
        if not kept.all():
            result[:, ~kept] = self.scheme.quantised(seen[:, ~kept], magnitudes.max())
        return self.transform.back(result, place)


def label_key(label: str) -> VariantKey:
    """What a `Variant.label` says.

    Raises
    ------
    ValueError, OutliersError
        It is no label.
    """
    scheme_name, transform, text = label.split(_SEPARATOR)
    parse_transform(transform)
    limit = None if text == "" else checked_thresholds([float(text)])[0]
    if limit is not None and repr(limit) != text:
        raise ValueError(f"threshold {text} is not written as it should be")
    return scheme(scheme_name).name, transform, limit


@dataclass(frozen=True)
class Loss:
    """What variants lose on one matrix; rows with a value that is not finite are left out.

    Parameters
    ----------
    squares : (2,) float64, sum of squares of the matrix, plain and weighted by the squares of the weights' norms
    errors : (variant, 2) float64, the same of what is lost
    kept : (variant,) float64, share of the columns that are kept in 16 bits
    rows : number of rows that count
    left_out : number of rows that do not
    """

    squares: Float64
    errors: Float64
    kept: Float64
    rows: int
    left_out: int


@dataclass(frozen=True)
class LossOf:
    """The loss of a matrix, as a function that other processes can be sent.

    Parameters
    ----------
    variants : what is asked for
    weight_norm : (layer, site, feature) float32 of the view; None where the store has none, and weighted sums are NaN
    """

    variants: tuple[Variant, ...]
    weight_norm: Float32 | None

    def __call__(self, matrix: Float32, place: Place) -> Loss:
        """Loss of a (position, feature) float32 matrix at a (layer, site) of the view."""
        finite = np.isfinite(matrix).all(axis=1)
        rows = matrix if finite.all() else matrix[finite]
        weights = np.full((2, rows.shape[1]), np.nan)
        weights[0] = 1
        if self.weight_norm is not None:
            weights[1] = np.square(self.weight_norm[place], dtype=np.float64)
        errors, kept = np.zeros((len(self.variants), 2)), np.zeros(len(self.variants))
        for transform in dict.fromkeys(variant.transform.name for variant in self.variants):
            chosen = [n for n, variant in enumerate(self.variants) if variant.transform.name == transform]
            part = [self.variants[n] for n in chosen]
            squares, kept[chosen] = _transformed(rows, place, part)
            errors[chosen] = _weighted(squares, weights)
        return Loss(_weighted(column_squares(rows)[None], weights)[0], errors, kept, len(rows), len(matrix) - len(rows))


def _transformed(rows: Float32, place: Place, variants: Sequence[Variant]) -> tuple[Float64, Float64]:
    """Squared errors of each feature, (variant, feature), and shares of kept columns, of variants of one transform."""
    transform, width = variants[0].transform, rows.shape[1]
    errors, kept = np.zeros((len(variants), width)), np.zeros(len(variants))
    if not len(rows):
        return errors, kept
    values = np.empty_like(rows)
    for band in bands(rows):
        values[band] = transform.forward(rows[band], place)
    peaks = np.maximum(values.max(axis=0), -values.min(axis=0))
    order = np.argsort(peaks, kind="stable")
    counts = [width if v.threshold is None else int(np.sum(peaks < np.float32(v.threshold))) for v in variants]
    for band in bands(rows):
        ordered = _Ordered(values[band], order) if min(counts) < width else None
        # Equal columns are kept at many thresholds, and then nothing is new.
        known: dict[tuple[str, int], Float64] = {}
        for number, (variant, count) in enumerate(zip(variants, counts, strict=True)):
            key = variant.scheme.name, count
            if key not in known:
                if count == width or ordered is None:
                    lost = values[band] - variant.scheme.quantised(values[band], peaks.max())
                else:
                    lost = ordered.lost(variant.scheme, count)
                known[key] = column_squares(transform.back(lost, place))
            errors[number] += known[key]
    kept[:] = 1 - np.array(counts) / width
    return errors, kept


class _Ordered:
    """A band of rows whose columns stand by ascending peak, so that those not kept come first.

    Parameters
    ----------
    values : (row, feature) float32
    order : features by ascending peak over the whole matrix
    """

    def __init__(self, values: Float32, order: npt.NDArray[np.intp]) -> None:
        self._values, self._back = values[:, order], np.argsort(order)
        self._reach = np.maximum.accumulate(np.abs(self._values), axis=1)
        self._whole: tuple[str, Float32] = ("", values)

    def lost(self, scheme: Scheme, count: int) -> Float32:
        """What a scheme by token loses where `count` columns are quantised, in the columns' own order."""
        values, zero = self._values, np.float32(0)  # of which no token takes notice
        if self._whole[0] != scheme.name:
            self._whole = scheme.name, values - scheme.quantised(values, zero)
        result = np.zeros_like(values)
        if count:
            result[:, :count] = self._whole[1][:, :count]
            # A row whose largest magnitude is in no kept column has the scale that it had: nothing else changes.
            changed = self._reach[:, count - 1] < self._reach[:, -1]
            if changed.any():
                part = values[changed, :count]
                result[changed, :count] = part - scheme.quantised(part, zero)
        return np.take(result, self._back, axis=1)


def bands(rows: Float32) -> Iterator[slice]:
    """Runs of rows, few enough that all that is made of them stays in a processor's cache."""
    step = max(1, _BAND // rows.shape[1])
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def _weighted(squares: Float64, weights: Float64) -> Float64:
    """Sums of (variant, feature) squares under each of the (2, feature) weights, (variant, 2)."""
    # Not as a matrix product, whose last bits depend on what else is asked for.
    return np.stack([(squares * weight).sum(axis=1) for weight in weights], axis=1)


def column_squares(values: Float32) -> Float64:
    """Sum of squares of each column, in float64."""
    result: Float64 = np.einsum("pf,pf->f", values, values, dtype=np.float64)
    return result
