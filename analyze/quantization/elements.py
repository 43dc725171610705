"""What a single value is rounded to: small integers and small floating-point numbers, in steps of one scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import ml_dtypes
import numpy as np

from analyze.types import Float32

FLOATS: Final[dict[str, Any]] = {"e4m3": ml_dtypes.float8_e4m3fn, "e2m1": ml_dtypes.float4_e2m1fn}


@dataclass(frozen=True)
class Element:
    """The numbers that a quantised value is one of, before its scale.

    Parameters
    ----------
    name : `int`, or one of `FLOATS`
    bits : of one value
    """

    name: str
    bits: int

    @property
    def largest(self) -> float:
        """The largest of the numbers; the smallest is its negative, also of the integers."""
        if self.name == "int":
            return 2.0 ** (self.bits - 1) - 1
        return float(ml_dtypes.finfo(FLOATS[self.name]).max)  # type: ignore[no-untyped-call]

    @property
    def largest_exponent(self) -> int:
        """Exponent of the largest power of two among the numbers."""
        return int(np.frexp(self.largest)[1]) - 1

    def rounded(self, values: Float32) -> Float32:
        """The nearest of the numbers, halfway cases to the even one; what lies beyond the largest becomes it.

        Parameters
        ----------
        values : float32 of any shape, changed in place; NaN is undefined
        """
        np.clip(values, -self.largest, self.largest, out=values)
        if self.name == "int":
            return np.rint(values, out=values)
        kind = FLOATS[self.name]
        with np.errstate(invalid="ignore"):
            codes = values.astype(kind).view(np.uint8)
        return np.take(_values(self.name), codes)


@cache
def _values(name: str) -> Float32:
    """The number of every code; looking one up takes a quarter of the time of a cast."""
    codes = np.arange(256, dtype=np.uint8) if name != "e2m1" else np.arange(16, dtype=np.uint8)
    numbers: Float32 = codes.view(FLOATS[name]).astype(np.float32)
    return numbers
