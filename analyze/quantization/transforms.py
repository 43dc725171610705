"""What is done to features before a quantiser sees them, and undone after it: a rotation, or a scale for each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from analyze.types import Float32
from capture.errors import OutliersError

_LEAST: Final = 1e-5  # below which SmoothQuant's own code takes no maximum and no scale for true
_SEED: Final = re.compile("[0-9]{1,15}")  # numbers that float64 tells apart

Place = tuple[int, int]
"""Layer and site within a view."""


class Transform(Protocol):
    """A map of features that can be undone."""

    @property
    def name(self) -> str:
        """As the command line has it."""

    def forward(self, values: Float32, place: Place) -> Float32:
        """What the quantiser sees of (position, feature) values at a (layer, site)."""

    def back(self, values: Float32, place: Place) -> Float32:
        """The reverse."""


@dataclass(frozen=True)
class Plain:
    """Nothing is done."""

    name: str = "none"

    def forward(self, values: Float32, place: Place) -> Float32:
        """The values themselves."""
        return values

    def back(self, values: Float32, place: Place) -> Float32:
        """The values themselves."""
        return values


@dataclass(frozen=True)
class Hadamard:
    """Random signs, then a Walsh-Hadamard rotation: an outlier is spread over all features.

    A width that is no power of two is rotated in blocks, one for each power of two that it is the sum of, the largest
    first: 576 = 512 + 64.

    Parameters
    ----------
    name : as the command line has it
    signs : (feature,) float32, 1 or -1

    References
    ----------
    Ashkboos et al. 2024, QuaRot.
    """

    name: str
    signs: Float32

    def forward(self, values: Float32, place: Place) -> Float32:
        """Rotated values."""
        return rotated(values * self.signs)

    def back(self, values: Float32, place: Place) -> Float32:
        """Values rotated back."""
        result = rotated(values)
        result *= self.signs
        return result


@dataclass(frozen=True)
class Smooth:
    """SmoothQuant: each feature is divided by a scale of its own, and its weights take that up.

    Parameters
    ----------
    name : as the command line has it
    scales : (layer, site, feature) float32
    """

    name: str
    scales: Float32

    def forward(self, values: Float32, place: Place) -> Float32:
        """Values divided."""
        divided: Float32 = values / self.scales[place]
        return divided

    def back(self, values: Float32, place: Place) -> Float32:
        """Values multiplied."""
        multiplied: Float32 = values * self.scales[place]
        return multiplied


def power_blocks(width: int) -> Iterator[slice]:
    """Parts of a width, each a power of two long, the longest first."""
    start = 0
    while start < width:
        size = 1 << ((width - start).bit_length() - 1)
        yield slice(start, start + size)
        start += size


def rotated(values: Float32) -> Float32:
    """Walsh-Hadamard transform of the last dimension, orthonormal, so that it is its own inverse.

    Sums of two are added in the order of the butterfly, so that other libraries get the same numbers.

    Parameters
    ----------
    values : (position, feature) float32
    """
    result = np.empty_like(values)
    for block in power_blocks(values.shape[1]):
        size = block.stop - block.start
        # Positions go last: however near two features are, whole rows are added.
        part = np.array(values[:, block].T, order="C")
        spare = np.empty_like(part)
        half = 1
        while half < size:
            pairs, sums = (array.reshape(size // (2 * half), 2, half, -1) for array in (part, spare))
            np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
            np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
            part, spare = spare, part
            half *= 2
        result[:, block] = (part * np.float32(1 / math.sqrt(size))).T
    return result


def random_signs(width: int, seed: int) -> Float32:
    """(feature,) float32: 1 or -1, drawn from a seed."""
    return np.random.default_rng(seed).choice(np.array([1, -1], np.float32), width)


def smooth_scales(maxima: npt.NDArray[Any], weight_peak: npt.NDArray[Any], alpha: float) -> Float32:
    """S = max|x|^alpha / max|w|^(1 - alpha) of each feature.

    Parameters
    ----------
    maxima : (..., feature), largest magnitude of the feature; NaN counts as 0
    weight_peak : the same, largest magnitude of the weights that multiply it
    alpha : 0 to 1

    References
    ----------
    Xiao et al. 2022, SmoothQuant, equation 4; the least values are those of its code.
    """
    x = np.maximum(np.nan_to_num(maxima.astype(np.float64), nan=0.0), _LEAST)
    w = np.maximum(np.nan_to_num(weight_peak.astype(np.float64), nan=0.0), _LEAST)
    return np.maximum(x**alpha / w ** (1 - alpha), _LEAST).astype(np.float32)


def parse_transform(name: str) -> tuple[str, float]:
    """Kind and number of a transform's name.

    Parameters
    ----------
    name : `none`, `hadamard`, `hadamard:SEED` or `smooth:ALPHA`

    Raises
    ------
    OutliersError
        There is no such transform, or its number is out of range.
    """
    kind, colon, text = name.partition(":")
    if kind == "none" and not colon:
        return kind, 0.0
    if kind == "hadamard" and (not colon or _SEED.fullmatch(text)):
        return kind, float(text or 0)
    if kind == "smooth" and colon:
        try:
            alpha = float(text)
        except ValueError:
            alpha = math.nan
        if not 0 <= alpha <= 1:
            raise OutliersError(f"transform is {name!r}; expected smooth:A with A from 0 to 1, such as smooth:0.5")
        return kind, alpha
    raise OutliersError(
        f"transform is {name!r}; expected none, hadamard, hadamard:SEED (at most 15 digits) or smooth:A, such as "
        "smooth:0.5"
    )
