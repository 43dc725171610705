"""What a norm returns for what it receives, in the model's own arithmetic, in NumPy alone."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError
from capture.store.rounding import BFLOAT16, round_mantissa

KINDS: Final = ("rms", "layer", "none")
ROUNDING_ORDERS: Final = ("last", "normalized", "weight")
"""Where a norm rounds to the compute dtype, beside its result.

last : nowhere else; everything before is float32 (Gemma, gpt-oss, every LayerNorm of PyTorch)
normalized : the normalised value, before the weight multiplies it (Llama and its kin)
weight : the sum of weight and offset (Nemotron)
"""

Float32 = npt.NDArray[np.float32]


def rounded(values: npt.NDArray[Any], dtype: str) -> Float32:
    """Round float32 values to the nearest ones of `dtype`, ties to even, and return them as float32.

    Parameters
    ----------
    values : any float32 values, also infinite or NaN
    dtype : "float32", "bfloat16" or "float16"
    """
    values = np.asarray(values, dtype=np.float32)
    if dtype == "float32":
        return values
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype != "bfloat16":
        raise OutliersError(f"compute dtype {dtype!r} is unknown; expected float32, bfloat16 or float16; capture again")
    return round_mantissa(values, BFLOAT16, overflow="inf")


def derive_norm_output(
    norm_input: npt.NDArray[Any],
    weight: npt.NDArray[Any] | None,
    bias: npt.NDArray[Any] | None,
    kind: str,
    epsilon: float | None,
    weight_offset: float,
    compute_dtype: str,
    rounding: str = "last",
) -> Float32:
    """Derive what the sublayer reads from the residual stream that enters its norm.

    Parameters
    ----------
    norm_input : (..., feature), values of `compute_dtype`
    weight, bias : (feature,), as stored in the model; None where the norm has none
    kind : "rms", "layer" or "none"
    epsilon : added to the mean square or variance; None only for kind "none"
    weight_offset : added to the weight (Gemma's 1)
    compute_dtype : "float32", "bfloat16" or "float16"
    rounding : one of `ROUNDING_ORDERS`

    Returns
    -------
    float32 array of the shape of `norm_input`: within 1e-5 of the model's own values in float32, and equal to them
    but for rare single rounding steps in bfloat16.
    """
    values = np.asarray(norm_input, dtype=np.float32)
    if kind == "none":
        return values
    if kind not in KINDS or rounding not in ROUNDING_ORDERS or epsilon is None:
        raise OutliersError(
            f"norm kind {kind!r} with rounding {rounding!r} and epsilon {epsilon} cannot be derived; expected kind "
            f"{', '.join(KINDS)} and rounding {', '.join(ROUNDING_ORDERS)}; capture with --raw output or both"
        )
    if kind == "layer":
        # The mean must not lose the small features beside an outlier: it is summed in float64.
        values = values - np.mean(values, axis=-1, dtype=np.float64, keepdims=True).astype(np.float32)
    square = np.mean(np.square(values), axis=-1, dtype=np.float64, keepdims=True)
    result = values * (1.0 / np.sqrt(square + epsilon)).astype(np.float32)
    if rounding == "normalized":
        result = rounded(result, compute_dtype)
    if weight is not None:
        scale = np.asarray(weight, dtype=np.float32) + np.float32(weight_offset)
        result = result * (rounded(scale, compute_dtype) if rounding == "weight" else scale)
        if rounding == "normalized" and bias is not None:
            result = rounded(result, compute_dtype)
    if bias is not None:
        result = result + np.asarray(bias, dtype=np.float32)
    return rounded(result, compute_dtype)
