"""The schemes of `analyze.quantization` for tensors of torch, value for value: what they are is defined there."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from analyze.quantization.elements import Element
from analyze.quantization.errors import Variant
from analyze.quantization.schemes import MX_EXPONENTS, Scheme
from analyze.quantization.transforms import Hadamard, Place, Smooth, Transform, power_blocks

_CASTS: Final = {"e4m3": torch.float8_e4m3fn}


def quantised(variant: Variant, values: Tensor, place: Place) -> Tensor:
    """What a model goes on with where its values are quantised, sequence by sequence.

    Parameters
    ----------
    variant : how
    values : (sequence, position, feature), of any float dtype, in which the result comes back
    place : layer and site, by which a transform knows its scales

    Returns
    -------
    values as `Variant.applied` gives them, rounded to the dtype of `values`
    """
    return torch.stack([_matrix(variant, matrix.float(), place).to(values.dtype) for matrix in values])


def _matrix(variant: Variant, values: Tensor, place: Place) -> Tensor:
    """The same of one (position, feature) float32 matrix."""
    seen = forward(variant.transform, values, place)
    magnitudes = seen.abs()
    result = seen.clone()
    if variant.limit is None:
        others = torch.ones(seen.shape[1], dtype=torch.bool, device=seen.device)
    else:
        others = ~(magnitudes >= variant.limit).any(dim=0)
    if bool(others.any()):
        result[:, others] = scheme_quantised(variant.scheme, seen[:, others], magnitudes.max())
    return back(variant.transform, result, place)


def scheme_quantised(scheme: Scheme, values: Tensor, largest: Tensor) -> Tensor:
    """`Scheme.quantised` of (position, feature) float32 values."""
    rows, width = values.shape
    size = scheme.block if scheme.share == "block" else width
    parts = torch.nn.functional.pad(values, (0, -width % size)).reshape(rows, -1, size)
    peaks = largest.reshape(1, 1, 1) if scheme.share == "tensor" else parts.abs().amax(dim=2, keepdim=True)
    scale = _scales(scheme, peaks, largest)
    result = rounded(scheme.element, parts / scale) * scale
    result = torch.where(torch.isfinite(scale), result, torch.nan)
    return result.reshape(rows, -1)[:, :width]


def _scales(scheme: Scheme, peaks: Tensor, largest: Tensor) -> Tensor:
    top = scheme.element.largest
    if scheme.scaling == "linear":
        scale = peaks / top
    elif scheme.scaling == "power":
        exponent = torch.frexp(peaks).exponent - 1 - scheme.element.largest_exponent
        # In float64, and rounded: float32's own powers of two may be a bit off.
        scale = torch.pow(2.0, exponent.clamp(*MX_EXPONENTS).double()).float()
        scale = torch.where(torch.isfinite(peaks), scale, torch.nan)
    else:
        small = Element("e4m3", 8)
        whole = largest / (top * small.largest)
        whole = torch.where(whole == 0, 1.0, whole)
        scale = rounded(small, peaks / top / whole) * whole
        scale = torch.where(torch.isfinite(peaks), scale, torch.nan)
    return torch.where(scale == 0, 1.0, scale)


def rounded(element: Element, values: Tensor) -> Tensor:
    """`Element.rounded` of float32 values of any shape."""
    values = values.clamp(-element.largest, element.largest)
    if element.name == "int":
        return values.round()
    if element.name in _CASTS:
        return values.to(_CASTS[element.name]).float()
    # e2m1, of which torch has no cast: steps of 0.5 up to 2, of 1 up to 4, of 2 up to 6.
    magnitudes = values.abs()
    step = torch.where(magnitudes < 2, 0.5, torch.where(magnitudes < 4, 1.0, 2.0))
    return (values / step).round() * step


def forward(transform: Transform, values: Tensor, place: Place) -> Tensor:
    """`Transform.forward` of (position, feature) float32 values."""
    if isinstance(transform, Hadamard):
        return rotated(values * _like(transform.signs, values))
    return values / _like(transform.scales[place], values) if isinstance(transform, Smooth) else values


def back(transform: Transform, values: Tensor, place: Place) -> Tensor:
    """`Transform.back` of (position, feature) float32 values."""
    if isinstance(transform, Hadamard):
        return rotated(values) * _like(transform.signs, values)
    return values * _like(transform.scales[place], values) if isinstance(transform, Smooth) else values


def _like(numbers: np.ndarray[tuple[int, ...], np.dtype[np.float32]], values: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(values.device)


def rotated(values: Tensor) -> Tensor:
    """`analyze.quantization.transforms.rotated`, the same sums in the same order."""
    parts = []
    for block in power_blocks(values.shape[1]):
        part = values[:, block]
        size, half = part.shape[1], 1
        while half < size:
            pairs = part.reshape(-1, size // (2 * half), 2, half)
            first, second = pairs[:, :, 0], pairs[:, :, 1]
            part = torch.stack([first + second, first - second], dim=2).reshape(-1, size)
            half *= 2
        parts.append(part * float(np.float32(1 / math.sqrt(size))))
    return torch.cat(parts, dim=1)
