"""What the figures of portraits share: colours, scales, ticks and headings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from analyze.display.figures import model_words, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

    from analyze.question.criteria import Criteria

# Okabe and Ito's palette, told apart by every kind of colour vision.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS: Final = ("o", "s", "^", "D", "v", "P")
MINUS: Final = "\N{MINUS SIGN}"
UNITS: Final = {"absolute": "", "rms": " in RMS", "median": " in medians"}


def magnitude_norm(values: npt.NDArray[Any]) -> Normalize:
    """Logarithmic over at most four decades; linear where there is nothing above zero."""
    from matplotlib.colors import LogNorm, Normalize

    known = values[np.isfinite(values) & (values > 0)]
    if not known.size:
        return Normalize(0, 1)
    high = float(known.max())
    low = max(float(np.quantile(known, 0.05)), high / 1e4)
    return LogNorm(low if low < high else high / 10, high)


def signed_norm(values: npt.NDArray[Any], linear: float = 1.0) -> Normalize:
    """Symmetric about zero; logarithmic above `linear` where the values go far beyond it."""
    from matplotlib.colors import Normalize, SymLogNorm

    known = np.abs(values[np.isfinite(values)])
    high = float(known.max()) if known.size and known.max() > 0 else 1.0
    if not 0 < linear < high / 5:
        return Normalize(-high, high)
    return SymLogNorm(linthresh=linear, vmin=-high, vmax=high)


def signed_axis(axes: Axes, values: npt.NDArray[Any], linear: float) -> None:
    """Make the y axis logarithmic on both sides of zero where values go far beyond `linear`."""
    known = values[np.isfinite(values)].astype(np.float64)
    if not known.size or not 0 < linear < float(np.abs(known).max()) / 10:
        return
    axes.set_yscale("symlog", linthresh=linear)
    axes.margins(y=0.06)
    low, high = axes.get_ylim()
    ticks = [tick for tick in signed_ticks(float(np.abs(known).max()), linear) if low <= tick <= high]
    axes.set_yticks(ticks, [signed_number(tick) for tick in ticks])
    axes.set_yticks([], minor=True)


def signed_ticks(high: float, linear: float) -> list[float]:
    """Powers of ten on both sides of zero, from `linear` up, on a symmetric logarithmic scale."""
    first, last = int(np.ceil(np.log10(linear))), int(np.floor(np.log10(high)))
    powers = [10.0**k for k in range(first, last + 1)]
    step = max(1, -(-len(powers) // 5))
    powers = powers[::-1][::step][::-1]
    return [*(-power for power in reversed(powers)), 0.0, *powers]


def layer_ticks(axis: Any, layers: npt.NDArray[Any], sites: int) -> None:
    """Label an axis that counts sites with its layers, at most sixteen of them."""
    step = -(-len(layers) // 16)
    axis.set_ticks((np.arange(len(layers))[::step] + 0.5) * sites, [str(layer) for layer in layers[::step]], fontsize=8)


def colour_map(name: str) -> Any:
    """A colour map of matplotlib that shows in grey what is no number."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad="0.6")


def signed_number(value: float) -> str:
    """A number in a cell or at a tick: three digits, or all before the point."""
    if not np.isfinite(value):
        return str(value)
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return digits.replace("-", MINUS) if digits != "-0" else "0"


def heading(head: str, model: str, criteria: Criteria, *, fractions: bool = False) -> str:
    """What is drawn, of which model, under which view."""
    c = criteria
    parts = [words(head), model_words(model), f"norm {c.signal}"]
    if c.skip_tokens:
        parts.append(f"without {len(c.skip_tokens):,} kinds of token")
    if c.skip_first:
        places = "position" if c.skip_first == 1 else f"{c.skip_first} positions"
        parts.append(f"without the first {places}")
    if fractions:
        parts.append(f"L ≥ {c.layers:g}, S ≥ {c.positions:g}, {c.counting}")
    return " · ".join(part for part in parts if part)
