"""What quantisers lose on one matrix: squared errors of every scheme, transform and threshold asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from analyze.quantization.columns import checked_thresholds
from analyze.quantization.schemes import Scheme, scheme
from analyze.quantization.transforms import Place, Transform, parse_transform
from analyze.question import ranks
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

    @property
    def limit(self) -> float | None:
        """The threshold as the float32 number that magnitudes are compared with."""
        return None if self.threshold is None else float(ranks.threshold(self.threshold))

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
        if self.limit is not None:
            kept = np.asarray((magnitudes >= self.limit).any(axis=0))
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
        weights = weights_of(self.weight_norm, place, rows.shape[1])
        errors, kept = np.zeros((len(self.variants), 2)), np.zeros(len(self.variants))
        for transform in dict.fromkeys(variant.transform.name for variant in self.variants):
            chosen = [n for n, variant in enumerate(self.variants) if variant.transform.name == transform]
            part = [self.variants[n] for n in chosen]
            squares, kept[chosen] = _transformed(rows, place, part)
            errors[chosen] = weighted(squares, weights)
        return Loss(weighted(column_squares(rows)[None], weights)[0], errors, kept, len(rows), len(matrix) - len(rows))


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
    stays = [np.zeros(width, bool) if v.limit is None else peaks >= v.limit for v in variants]
    for band in bands(rows):
        quantised = _Band(values[band], peaks.max())
        # Equal columns are kept at many thresholds, and then nothing is new.
        known: dict[tuple[str, bytes], Float64] = {}
        for number, (variant, columns) in enumerate(zip(variants, stays, strict=True)):
            key = variant.scheme.name, columns.tobytes()
            if key not in known:
                known[key] = column_squares(transform.back(quantised.lost(variant.scheme, columns), place))
            errors[number] += known[key]
    kept[:] = [columns.mean() for columns in stays]
    return errors, kept


class _Band:
    """Rows of a matrix, and what schemes lose on them.

    Parameters
    ----------
    values : (row, feature) float32
    largest : largest magnitude of the whole matrix
    """

    def __init__(self, values: Float32, largest: np.float32) -> None:
        self._values, self._largest = values, largest
        self._whole: tuple[str, Float32] = ("", values)

    def lost(self, scheme: Scheme, kept: npt.NDArray[np.bool_]) -> Float32:
        """What a scheme loses, (row, feature) float32, where some columns stay as they are.

        Parameters
        ----------
        scheme : by token where any column is kept
        kept : (feature,) bool
        """
        if self._whole[0] != scheme.name:
            self._whole = scheme.name, self._values - scheme.quantised(self._values, self._largest)
        if not kept.any():
            return self._whole[1]
        result = np.where(kept, np.float32(0), self._whole[1])
        # A row whose largest magnitude is in no kept column has the scale that it had: nothing else changes.
        changed = np.abs(self._values[:, kept]).max(axis=1) >= self._row_peaks
        if changed.any() and not kept.all():
            place = np.ix_(changed, ~kept)
            part = self._values[place]
            result[place] = part - scheme.quantised(part, self._largest)
        return result

    @cached_property
    def _row_peaks(self) -> Float32:
        """Largest magnitude of each row."""
        return np.asarray(np.abs(self._values).max(axis=1))


def bands(rows: Float32) -> Iterator[slice]:
    """Runs of rows, few enough that all that is made of them stays in a processor's cache."""
    step = max(1, _BAND // rows.shape[1])
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def weights_of(weight_norm: Float32 | None, place: Place, width: int) -> Float64:
    """What squares of features are summed with, (2, feature) float64: ones, and the squares of the weights' norms.

    Parameters
    ----------
    weight_norm : (layer, site, feature) float32; None where a store has none, and the second row is NaN
    place : layer and site
    width : number of features
    """
    norms = np.full(width, np.nan) if weight_norm is None else np.square(weight_norm[place], dtype=np.float64)
    return np.stack([np.ones(width), norms])


def weighted(squares: Float64, weights: Float64) -> Float64:
    """Sums of (variant, feature) squares under each of the (2, feature) weights, (variant, 2)."""
    # Not as a matrix product, whose last bits depend on what else is asked for.
    return np.stack([(squares * weight).sum(axis=1) for weight in weights], axis=1)


def column_squares(values: Float32) -> Float64:
    """Sum of squares of each column, in float64."""
    result: Float64 = np.einsum("pf,pf->f", values, values, dtype=np.float64)
    return result
