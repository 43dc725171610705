"""The outlier criteria: thresholds, presets and exact arithmetic on peaks. NumPy only.

A magnitude threshold is rounded to float32, the stores' dtype, before it is compared; this is what NumPy and PyTorch do
with a Python number beside a float32 array. So a value that was written as 6.7 hits at 6.7.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from analyze.view import View, check_choice
from capture.schema import OutliersError

COUNTINGS: Final = ("per-sequence", "pooled")
LAYER_UNITS: Final = ("site", "layer")
SATURATED: Final = 0.5
"""Share of the width above which a criterion says little about any one feature."""

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "study": {"signal": "output", "counting": "per-sequence", "layer_unit": "site", "rounding": "bfloat16"},
    "dettmers": {"signal": "output", "counting": "pooled", "layer_unit": "layer"},
}

_UNITS: Final = {"absolute": "", "rms": " RMS", "median": " medians"}

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Criteria(View):
    """When a feature is an outlier: hits in enough layers and at enough positions of a view.

    Parameters
    ----------
    magnitude : a value hits where `abs(x) >= magnitude`; finite, 0 or more
    layers : least share of layer units with a hit, 0 to 1
    positions : least share of positions with a hit, 0 to 1
    counting : `per-sequence` (each sequence by itself) or `pooled` (all sequences as one long one)
    layer_unit : `site` (each (layer, site) pair) or `layer` (hit where any of its sites is)

    Raises
    ------
    OutliersError
        A threshold outside its range, or an unknown word.

    References
    ----------
    Dettmers et al. 2022, LLM.int8(), section 4: magnitude 6.0, 25% of layers, 6% of positions.
    """

    magnitude: float = 6.0
    layers: float = 0.25
    positions: float = 0.06
    counting: Literal["per-sequence", "pooled"] = "per-sequence"
    layer_unit: Literal["site", "layer"] = "site"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_magnitude(self.magnitude)
        check_fraction("layers", self.layers)
        check_fraction("positions", self.positions)
        check_choice("counting", self.counting, COUNTINGS)
        check_choice("layer_unit", self.layer_unit, LAYER_UNITS)
        for name in ("magnitude", "layers", "positions"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def preset(cls, name: str | None, **changes: Any) -> Self:
        """Criteria of a preset (`study`, `dettmers`, or None for the defaults), with changes on top."""
        if name is None:
            return cls(**changes)
        check_choice("preset", name, tuple(PRESETS))
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        places = {"site": "(layer, site) pairs", "layer": "layers"}[self.layer_unit]
        return (
            f"|norm {self.signal}| >= {self.magnitude:g}{_UNITS[self.scale]} in at least {self.layers * 100:g}% of "
            f"{places} and at {self.positions * 100:g}% of positions; {self.conventions()}"
        )

    def conventions(self) -> str:
        """The counting and the view in words, without thresholds."""
        parts = [{"per-sequence": "each sequence by itself", "pooled": "all sequences as one"}[self.counting]]
        if self.layer_range is not None:
            parts.append(f"layers {self.layer_range[0]} to {self.layer_range[1] - 1}")
        if self.sites is not None:
            parts.append(f"sites {', '.join(self.sites)}")
        if self.sequences is not None:
            parts.append(f"{len(self.sequences)} chosen sequences")
        if self.skip_first:
            parts.append(f"without the first {self.skip_first} positions")
        if self.rounding != "none":
            parts.append(f"values rounded to {self.rounding}")
        return ", ".join(parts)


def check_magnitude(value: float) -> None:
    """Refuse a magnitude threshold that is not a finite number of 0 or more."""
    if not _is_number(value) or not math.isfinite(value) or value < 0:
        raise OutliersError(f"magnitude is {value!r}; expected a finite number, 0 or more")


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction outside 0 to 1."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise OutliersError(f"{name} is {value!r}; expected a fraction from 0 to 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def threshold(magnitude: npt.ArrayLike) -> Float32:
    """Magnitudes as the float32 numbers that values are compared with."""
    with np.errstate(over="ignore"):  # a threshold beyond float32 becomes infinite, and only infinities hit
        return np.asarray(magnitude, dtype=np.float64).astype(np.float32)


def required_hits(fraction: float, total: int) -> int:
    """Smallest integer k with `k / total >= fraction`, the quotient taken in float64."""
    hits = min(max(math.ceil(fraction * total), 0), total)
    while hits > 0 and (hits - 1) / total >= fraction:
        hits -= 1
    while hits / total < fraction:
        hits += 1
    return hits


def rank_ready(peaks: Float32) -> Float32:
    """Peaks with NaN (no number at all) replaced by -inf, so that they rank last and never hit."""
    # One cheap reduction first: almost no array has a NaN.
    return np.fmax(peaks, np.float32(-np.inf)) if peaks.size and np.isnan(peaks.min()) else peaks


def kth_largest(peaks: Float32, ranks: tuple[int, ...]) -> Float32:
    """The k-th largest along the last axis, for several k at once.

    Parameters
    ----------
    peaks : (..., unit) float32 without NaN
    ranks : values of k, 0 to the number of units

    Returns
    -------
    (rank, ...) float32; +inf where k is 0, because nothing is asked for
    """
    total = peaks.shape[-1]
    result = np.full((len(ranks), *peaks.shape[:-1]), np.inf, dtype=np.float32)
    asked = sorted({total - k for k in ranks if k > 0})
    if asked:
        if asked == [total - 1]:
            ordered, asked = peaks.max(axis=-1, keepdims=True), [0]
            at = {total - 1: 0}
        else:
            ordered = np.partition(peaks, asked, axis=-1)
            at = {place: place for place in asked}
        for row, k in enumerate(ranks):
            if k > 0:
                result[row] = ordered[..., at[total - k]]
    return result


def critical_magnitude(layer_peaks: Float32, position_peaks: Float32, layers: float, positions: float) -> Float32:
    """Largest magnitude at which each feature is still an outlier.

    Parameters
    ----------
    layer_peaks : (feature, layer unit) float32 without NaN, largest magnitude of each unit
    position_peaks : (feature, position) float32 without NaN
    layers, positions : least share of units and of positions with a hit

    Returns
    -------
    (feature,) float32: an outlier for every magnitude up to this one and for none above; +inf where both fractions
    are 0

    Notes
    -----
    A share of hits is at least a exactly where the k-th largest peak hits, k being `required_hits(a, total)`.
    """
    by_layer = kth_largest(layer_peaks, (required_hits(layers, layer_peaks.shape[-1]),))[0]
    by_position = kth_largest(position_peaks, (required_hits(positions, position_peaks.shape[-1]),))[0]
    critical: Float32 = np.minimum(by_layer, by_position)
    return critical


def tails(per_bin: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Cumulate counts of entries that pass exactly 0...M limits (last axis) to those that pass each of the M limits."""
    return np.flip(np.cumsum(np.flip(per_bin, -1), axis=-1), -1)[..., 1:]
