"""The store's format: every name, dimension, dtype and description, in one place, free of torch."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Final

from capture.errors import OutliersError

FORMAT: Final = "outlier-features"
FORMAT_VERSION: Final = 1

SIGNALS: Final = ("input", "output")
SITES: Final = ("ln_attn", "ln_mlp", "ln_attn_mlp", "ln_block")
RAW_CHOICES: Final = ("input", "output", "both", "none")
COMPUTE_DTYPES: Final = ("float32", "bfloat16", "float16")

SEQUENCE: Final = "sequence"
LAYER: Final = "layer"
SITE: Final = "site"
POSITION: Final = "position"
FEATURE: Final = "feature"
SIGNAL: Final = "signal"
VARIABLE: Final = "variable"


def refuse_newer(what: str, version: int) -> None:
    """Refuse a store of a format version that a later release made.

    Parameters
    ----------
    what : what has the version, as the message is to name it
    version : its format version

    Raises
    ------
    OutliersError
        The version is above `FORMAT_VERSION`.
    """
    if version > FORMAT_VERSION:
        raise OutliersError(
            f"{what} has format version {version}, and this release reads up to {FORMAT_VERSION}; "
            "upgrade with: pip install -U outlier-features"
        )


@dataclass(frozen=True)
class Variable:
    """One array of the store.

    Parameters
    ----------
    dims : names of the dimensions, in order
    dtype : NumPy name of the element type
    units : unit in UDUNITS spelling; "1" is dimensionless
    description : one sentence for a reader who has only the store
    """

    dims: tuple[str, ...]
    dtype: str
    units: str
    description: str


_ACTIVATION: Final = (SEQUENCE, LAYER, SITE, POSITION, FEATURE)
_PARAMETER: Final = (LAYER, SITE, FEATURE)

VARIABLES: Final[dict[str, Variable]] = {
    "norm_input": Variable(
        _ACTIVATION,
        "float32",
        "1",
        "Residual stream as it enters the norm of the site, exactly as the model computed it",
    ),
    "norm_output": Variable(
        _ACTIVATION, "float32", "1", "What the sublayer's first linear maps receive, exactly as the model computed it"
    ),
    "final_input": Variable(
        (SEQUENCE, POSITION, FEATURE), "float32", "1", "Residual stream as it enters the last norm of the model"
    ),
    "norm_weight": Variable(
        _PARAMETER, "float32", "1", "Weight of the norm as stored in the model; ones where the norm has none"
    ),
    "norm_bias": Variable(_PARAMETER, "float32", "1", "Bias of the norm"),
    "weight_peak": Variable(
        _PARAMETER,
        "float32",
        "1",
        "Largest magnitude among the weights by which the linear maps that read the norm's output multiply the feature",
    ),
    "weight_norm": Variable(
        _PARAMETER,
        "float32",
        "1",
        "Euclidean norm of all weights by which the linear maps that read the norm's output multiply the feature",
    ),
    "layer_high": Variable(
        (SIGNAL, SEQUENCE, LAYER, SITE, FEATURE), "float32", "1", "Largest value over positions; NaN is passed over"
    ),
    "layer_low": Variable(
        (SIGNAL, SEQUENCE, LAYER, SITE, FEATURE), "float32", "1", "Smallest value over positions; NaN is passed over"
    ),
    "final_high": Variable(
        (SEQUENCE, FEATURE), "float32", "1", "Largest value of final_input over positions; NaN is passed over"
    ),
    "final_low": Variable(
        (SEQUENCE, FEATURE), "float32", "1", "Smallest value of final_input over positions; NaN is passed over"
    ),
    "position_peak": Variable(
        (SIGNAL, SEQUENCE, POSITION, FEATURE),
        "float32",
        "1",
        "Largest magnitude over layers and sites; NaN is passed over",
    ),
    "nonfinite_count": Variable(
        (SIGNAL, SEQUENCE, LAYER, SITE),
        "int32",
        "1",
        "Number of values that are NaN or infinite, over positions and features",
    ),
    "token_id": Variable((SEQUENCE, POSITION), "int32", "1", "Token that the model read"),
    "nll": Variable(
        (SEQUENCE, POSITION),
        "float32",
        "nat",
        "-log p(token given those before it), natural logarithm; NaN at position 0",
    ),
    "done": Variable((SEQUENCE,), "bool", "1", "Set last, once everything of the sequence is on disk"),
    "digest": Variable(
        (SEQUENCE, VARIABLE),
        "uint64",
        "1",
        "What binds the values of each of `variables` to this store and sequence; 0 where there is no such variable",
    ),
    "length": Variable(
        (SEQUENCE,),
        "int32",
        "1",
        "Number of valid positions of the sequence; behind them values are NaN and tokens -1",
    ),
}

WEIGHTS: Final = ("weight_peak", "weight_norm")
"""Variables that a store has where the weights can be read; else the attribute `weights_left_out` says why not."""

FINAL_PEAKS: Final = ("final_high", "final_low")
"""Variables that every store has but the oldest."""

OPTIONAL: Final = ("norm_bias", "length", *WEIGHTS, *FINAL_PEAKS, "digest")
"""Variables that a store has only where its model or its text calls for them, or where it is new enough."""

FIXED: Final = ("token_id", "length")
"""Variables of a sequence that are written whole when the store is created, and never changed."""

FILL: Final[dict[str, float]] = {"float32": math.nan, "int32": -1, "uint64": 0, "bool": False}
"""What stands where nothing was written, by dtype."""

COORDINATES: Final[dict[str, Variable]] = {
    SIGNAL: Variable((SIGNAL,), "str", "1", "Which side of the norm the values were taken from"),
    SITE: Variable(
        (SITE,),
        "str",
        "1",
        "Where a sublayer reads the residual stream: ln_attn, ln_mlp, ln_attn_mlp (both), ln_block",
    ),
}

VOCABULARY: Final = "vocabulary"
"""Subgroup with the text of every token that occurs: `id` (token,) int32, ascending, and `text` (token,) strings.

Apart from the variables, so that every one of those is numeric; optional.
"""

RAW_VARIABLES: Final[dict[str, tuple[str, ...]]] = {
    "input": ("norm_input", "final_input"),
    "output": ("norm_output", "final_input"),
    "both": ("norm_input", "norm_output", "final_input"),
    "none": (),
}

PER_SEQUENCE: Final = ("layer_high", "layer_low", "position_peak", "nonfinite_count", "nll", *FINAL_PEAKS)
"""What every sequence has beside its raw activations, whatever `--raw` says; the oldest stores lack `FINAL_PEAKS`."""

DIGESTED: Final = (*RAW_VARIABLES["both"], *PER_SEQUENCE)
"""What `digest` speaks of, along its dimension `variable`."""

ROUNDED: Final = "rounded"
"""Attribute of a store whose raw activations are rounded: an object with `mantissa_bits` and `variables`."""

SPECIAL_TOKENS: Final = "special_tokens"
"""Attribute with the numbers of special tokens: an object of lists `bos`, `eos` and `special`, all of them.

Optional; an empty list says that the tokenizer has none.
"""

MANTISSA: Final = 23
"""Explicit mantissa bits of float32."""

SIGNIFICANT: Final = {"bfloat16": 7, "float16": 10, "float32": MANTISSA}
"""Explicit mantissa bits of the dtypes that models compute in."""


@dataclass(frozen=True)
class Sizes:
    """Lengths of the store's dimensions.

    Parameters
    ----------
    sequences, layers, positions, features : lengths
    sites : names of the sites of each layer, in order
    """

    sequences: int
    layers: int
    sites: tuple[str, ...]
    positions: int
    features: int

    def shape(self, dims: tuple[str, ...]) -> tuple[int, ...]:
        """Shape of an array with these dimensions."""
        lengths = {
            SIGNAL: len(SIGNALS),
            SEQUENCE: self.sequences,
            LAYER: self.layers,
            SITE: len(self.sites),
            POSITION: self.positions,
            FEATURE: self.features,
            VARIABLE: len(DIGESTED),
        }
        return tuple(lengths[dim] for dim in dims)


def stored_variables(raw: str, present: Container[str] = ()) -> tuple[str, ...]:
    """Names of the variables of a store, in the order of `VARIABLES`.

    Parameters
    ----------
    raw : as given to the capture; a store without raw activations keeps no `final_input` either
    present : those of `OPTIONAL` that the store has; other names in it say nothing
    """
    absent = set(RAW_VARIABLES["both"]) - set(RAW_VARIABLES[raw])
    absent |= {name for name in OPTIONAL if name not in present}
    return tuple(name for name in VARIABLES if name not in absent)


def mantissa_bits(attributes: Mapping[str, Any]) -> int | None:
    """Mantissa bits of a store's raw activations; None where nothing was rounded.

    Raises
    ------
    OutliersError
        The label is not one that was written here.
    """
    label = attributes.get(ROUNDED)
    if label is None:
        return None
    bits = label.get("mantissa_bits") if isinstance(label, Mapping) else None
    if type(bits) is not int or not 1 <= bits < MANTISSA:
        raise OutliersError(f"attribute {ROUNDED} is {label!r}; expected mantissa_bits from 1 to {MANTISSA - 1}")
    return bits


ABLATION: Final = "ablation"
QUANTIZATION: Final = "quantization"
RECORDS: Final = (ABLATION, QUANTIZATION)
"""Folders of a store with records of what its model did when it was run again."""


CHECKSUMS = "SHA256SUMS"
"""File that `sha256sum --check` reads: everything that is written when the store is created, and never changed."""
