"""Quantisation schemes, as functions of a matrix: which values share a scale, and how that scale is chosen.

All are symmetric, round halfway cases to the even number and compute in float32, as a quantiser on a GPU does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from analyze.quantization.elements import Element
from analyze.types import Float32
from capture.errors import OutliersError

_INT_BITS: Final = range(4, 9)
_MX_BLOCK: Final = 32
_NV_BLOCK: Final = 16
MX_EXPONENTS: Final = (-127, 127)
"""Least and largest exponent of a scale of OCP Microscaling, E8M0."""
_SCALE_BITS: Final = {"linear": 16, "power": 8, "double": 8}
DEFAULT_SCHEMES: Final = (
    "int8-tensor",
    "int8-token",
    "int6-token",
    "int4-token",
    "int8-group32",
    "int4-group128",
    "int4-group32",
    "fp8-tensor",
    "fp8-token",
    "mxfp8",
    "mxfp4",
    "nvfp4",
)
"""What is compared where nothing is asked for; groups wider than a model are left out."""


@dataclass(frozen=True)
class Scheme:
    """One way to quantise a (position, feature) matrix.

    Parameters
    ----------
    name : as the command line has it
    element : what each scaled value is rounded to
    share : whose largest magnitude sets a scale: the `tensor`, a `token` (one position), or a `block` of features
    block : number of features in a block; 0 for the others
    scaling : `linear` (largest magnitude / largest number), `power` (a power of two: OCP Microscaling 1.0, section
        6.3), or `double` (rounded to e4m3 below a scale of the tensor: NVFP4)
    """

    name: str
    element: Element
    share: Literal["tensor", "token", "block"]
    block: int = 0
    scaling: Literal["linear", "power", "double"] = "linear"

    def bits(self, width: int, kept_share: float = 0.0) -> float:
        """Bits that one value takes, with its part of the scales of its token or block.

        Parameters
        ----------
        width : features of a matrix
        kept_share : share of the columns that are kept in 16 bits
        """
        shared = {"tensor": np.inf, "token": width, "block": min(self.block, width) if self.block else width}
        own = self.element.bits + _SCALE_BITS[self.scaling] / float(shared[self.share])
        return float((1 - kept_share) * own + kept_share * 16)

    def quantised(self, values: Float32, largest: np.float32) -> Float32:
        """Values as they come back from the quantiser.

        Parameters
        ----------
        values : (position, feature) float32, all or some rows of a matrix
        largest : largest magnitude of the whole matrix, which sets the scales of tensors

        Returns
        -------
        (position, feature) float32; NaN throughout a tensor, token or block with a value that is not finite
        """
        rows, width = values.shape
        size = self.block if self.share == "block" else width
        parts = np.pad(values, ((0, 0), (0, -width % size))) if width % size else values
        parts = parts.reshape(rows, -1, size)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scale = self._scale(parts, largest)
            result = self.element.rounded(parts / scale)
            result *= scale
        if not np.isfinite(scale).all():  # a code of four bits cannot say that it is no number
            result *= np.where(np.isfinite(scale), np.float32(1), np.float32(np.nan))
        return result.reshape(rows, -1)[:, :width]

    def _scale(self, parts: Float32, largest: np.float32) -> Float32:
        """Scales of (position, block, feature) values; 1 where there is nothing to scale."""
        if self.share == "tensor":
            peaks = np.full((1, 1, 1), largest, np.float32)
        else:
            peaks = np.abs(parts).max(axis=2, keepdims=True)
        return scales(self, peaks, np.float32(largest))


def scales(scheme: Scheme, peaks: Float32, largest: np.float32) -> Float32:
    """What one step of the element stands for, given what it must reach.

    Parameters
    ----------
    scheme : says how a scale is chosen
    peaks : float32, largest magnitudes of those that share a scale
    largest : largest magnitude of the whole matrix
    """
    top = np.float32(scheme.element.largest)
    if scheme.scaling == "linear":
        scale = peaks / top
    elif scheme.scaling == "power":
        exponent = np.frexp(peaks)[1] - 1 - scheme.element.largest_exponent
        scale = np.ldexp(np.float32(1), np.clip(exponent, *MX_EXPONENTS).astype(np.int32))
        scale = np.where(np.isfinite(peaks), scale, np.float32(np.nan))
    else:
        small = Element("e4m3", 8)
        whole = largest / np.float32(top * np.float32(small.largest))
        whole = np.float32(1) if whole == 0 else whole
        scale = small.rounded(peaks / top / whole) * whole
        scale = np.where(np.isfinite(peaks), scale, np.float32(np.nan))
    return np.where(scale == 0, np.float32(1), scale)


def scheme(name: str) -> Scheme:
    """The scheme of a name.

    Parameters
    ----------
    name : `intB-tensor`, `intB-token` or `intB-groupG` with B from 4 to 8, `fp8-tensor`, `fp8-token`, `mxfp8`,
        `mxfp4` or `nvfp4`

    Raises
    ------
    OutliersError
        There is no such scheme.
    """
    floats = {"fp8": Element("e4m3", 8), "fp4": Element("e2m1", 4)}
    if name in ("mxfp8", "mxfp4"):
        return Scheme(name, floats[name[2:]], "block", _MX_BLOCK, "power")
    if name == "nvfp4":
        return Scheme(name, floats["fp4"], "block", _NV_BLOCK, "double")
    if name in ("fp8-tensor", "fp8-token"):
        return Scheme(name, floats["fp8"], "tensor" if name.endswith("tensor") else "token")
    found = re.fullmatch(r"int(0|[1-9][0-9]{0,8})-(tensor|token|group(0|[1-9][0-9]{0,8}))", name)
    if found is None:
        raise OutliersError(
            f"scheme is {name!r}; expected intB-tensor, intB-token or intB-groupG (such as int4-group32), fp8-tensor, "
            "fp8-token, mxfp8, mxfp4 or nvfp4"
        )
    bits, share, group = int(found[1]), found[2], found[3]
    if bits not in _INT_BITS:
        raise OutliersError(f"scheme {name} has {bits} bits; expected {_INT_BITS[0]} to {_INT_BITS[-1]}")
    element = Element("int", bits)
    if group is None:
        return Scheme(name, element, "tensor" if share == "tensor" else "token")
    if int(group) < 1:
        raise OutliersError(f"scheme {name} has groups of {group} features; expected 1 or more")
    return Scheme(name, element, "block", int(group))


def schemes_for(names: Sequence[str] | None, width: int) -> tuple[Scheme, ...]:
    """The schemes of names, or the default ones, for a model of some width.

    Raises
    ------
    OutliersError
        There is no such scheme, or a group is wider than the model.
    """
    if names is None:
        every = [scheme(name) for name in DEFAULT_SCHEMES]
        return tuple(one for one in every if "group" not in one.name or one.block <= width)
    if not names:
        raise OutliersError("no scheme is given; expected one or more, such as int8-token")
    chosen = tuple(scheme(name) for name in dict.fromkeys(names))
    for one in chosen:
        if "group" in one.name and one.block > width:
            raise OutliersError(
                f"scheme {one.name} has groups of {one.block} features, and the model is {width} wide; use smaller ones"
            )
    return chosen
