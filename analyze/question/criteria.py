"""The outlier criteria: thresholds, presets and exact arithmetic on peaks. NumPy only.

A magnitude threshold is rounded to float32, the stores' dtype, before it is compared; this is what NumPy and PyTorch do
with a Python number beside a float32 array. So a value that was written as 6.7 hits at 6.7.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

from analyze.question.checks import check_choice, check_fraction, check_magnitude
from analyze.question.view import View

COUNTINGS: Final = ("per-sequence", "pooled")
LAYER_UNITS: Final = ("site", "layer")
SATURATED: Final = 0.5
"""Share of the width above which a criterion says little about any one feature."""

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "study": {"signal": "output", "counting": "per-sequence", "layer_unit": "site", "rounding": "bfloat16"},
    "dettmers": {"signal": "output", "counting": "pooled", "layer_unit": "layer"},
}

_UNITS: Final = {"absolute": "", "rms": " RMS", "median": " medians"}

_MOST_NAMED: Final = 6  # tokens


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
        if self.skip_tokens:
            some = ", ".join(map(str, self.skip_tokens[:_MOST_NAMED]))
            rest = len(self.skip_tokens) - _MOST_NAMED
            parts.append(f"without the tokens {some}" + (f" and {rest:,} more" if rest > 0 else ""))
        if self.rounding != "none":
            parts.append(f"values rounded to {self.rounding}")
        return ", ".join(parts)
