"""Number formats that a model may be run in, and which magnitudes they cannot hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from analyze.question.checks import check_choice
from analyze.types import Float32
from capture.errors import OutliersError

FLOATS: Final[dict[str, Any]] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
FORMATS: Final = (*FLOATS, "int8")
_INT8: Final = 127
_MOST_HALVINGS: Final = 300  # more than float32 has powers of two


@dataclass(frozen=True)
class NumberFormat:
    """A number format without any scaling but what is said here.

    Parameters
    ----------
    name : one of `FORMATS`
    scale : of `int8`: what one step stands for; None for the others

    Raises
    ------
    OutliersError
        An unknown name, or a scale that is missing, not positive or not wanted.
    """

    name: str
    scale: float | None = None

    def __post_init__(self) -> None:
        check_choice("format", self.name, FORMATS)
        if self.name != "int8":
            if self.scale is not None:
                raise OutliersError(f"scale is {self.scale!r}, and {self.name} has none; give it with int8 alone")
            return
        if self.scale is None:
            raise OutliersError("format int8 needs a scale; give what one step stands for, such as --scale 0.05")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise OutliersError(f"scale is {self.scale!r}; expected a positive number")

    @property
    def largest(self) -> float:
        """The largest number."""
        return _INT8 * self.scale if self.scale is not None else float(ml_dtypes.finfo(FLOATS[self.name]).max)  # type: ignore[no-untyped-call]

    def overflows(self, magnitudes: Float32) -> npt.NDArray[np.bool_]:
        """Which magnitudes are rounded to no number: beyond the largest by half a step, or not finite as they are.

        Parameters
        ----------
        magnitudes : float32 of any shape, 0 or more
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if self.scale is not None:
                return ~(np.rint(magnitudes.astype(np.float64) / self.scale) <= _INT8)
            fits: npt.NDArray[np.bool_] = np.isfinite(magnitudes.astype(FLOATS[self.name]))
            return ~fits

    def rescale(self, magnitude: float) -> float:
        """The smallest power of two, 1 or more, by which a magnitude divided fits; NaN where it is not finite."""
        if not math.isfinite(magnitude):
            return math.nan
        powers = 2.0 ** np.arange(_MOST_HALVINGS)
        return float(powers[np.argmin(self.overflows((magnitude / powers).astype(np.float32)))])
