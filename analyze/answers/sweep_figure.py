"""Figures of results. Everything drawn here was computed elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from analyze.display.figures import in_own_style, model_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analyze.answers.sweep import Sweep

AXES: Final = ("magnitude", "layers", "positions")
_LABELS: Final = {
    "magnitude": "magnitude threshold",
    "layers": "least share of layer units",
    "positions": "least share of positions",
}
_MOST_LINES: Final = 6


def steps(critical: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Corners of the count as a function of magnitude, for `drawstyle="steps-pre"`.

    Parameters
    ----------
    critical : critical magnitudes, ascending

    Returns
    -------
    magnitude, count : each count holds up to and with its magnitude
    """
    magnitude, first = np.unique(critical, return_index=True)
    return magnitude, (critical.size - first).astype(np.int64)


@in_own_style
def sweep_figure(result: Sweep) -> Figure:
    """Count against magnitude as exact steps, and a heat map where two thresholds or more are swept.

    Parameters
    ----------
    result : from `sweep`
    """
    from matplotlib.figure import Figure

    swept = [name for name in AXES if result.table.sizes[name] > 1]
    panels = [
        name for name, wanted in (("steps", "magnitude" in swept or not swept), ("heat", len(swept) > 1)) if wanted
    ]
    if not panels:
        panels = ["line"]
    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout="constrained")
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        if panel == "steps":
            _draw_steps(axes, result)
        elif panel == "line":
            _draw_line(axes, result, swept[0])
        else:
            _draw_heat(axes, result, swept)
    figure.suptitle(_title(result), fontsize=9)
    return figure


def _draw_steps(axes: Axes, result: Sweep) -> None:
    from matplotlib import colormaps

    magnitudes = result.table["magnitude"].values
    low, high = float(magnitudes.min()), float(magnitudes.max())
    if low == high:
        low, high = 0.0, max(2 * high, 1.0)
    chosen = _spread(list(result.critical), _MOST_LINES)
    top = 0
    for row, pair in enumerate(chosen):
        critical = result.critical[pair]
        x, _ = steps(critical)
        # The curve is closed at both ends of the axis, whatever corners lie outside.
        edge = [low, *x[(x > low) & (x < high)].tolist(), high]
        counts = [int(critical.size - np.searchsorted(critical, np.float32(value), side="left")) for value in edge]
        top = max(top, *counts)
        axes.plot(
            edge,
            counts,
            drawstyle="steps-pre",
            color=colormaps["viridis"](0.1 + 0.75 * row / max(1, len(chosen) - 1)),
            linewidth=1.6,
            label=f"L >= {pair[0]:.4g}, S >= {pair[1]:.4g}",
        )
    axes.axhline(result.hidden_size, color="0.45", linewidth=1, linestyle=":", label=f"width, {result.hidden_size:,}")
    if top > 100:
        axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlim(low, high)
    axes.set_xlabel(_LABELS["magnitude"])
    axes.set_ylabel("outliers")
    axes.legend(fontsize=8, frameon=False)


def _draw_line(axes: Axes, result: Sweep, name: str) -> None:
    axes.plot(
        result.table[name].values, result.table["count"].values.ravel(), marker="o", color="#0072B2", linewidth=1.6
    )
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_LABELS[name])
    axes.set_ylabel("outliers")


def _draw_heat(axes: Axes, result: Sweep, swept: list[str]) -> None:
    from matplotlib.colors import SymLogNorm

    across, up = swept[:2]
    table = result.table["count"].isel({name: 0 for name in AXES if name not in (across, up)})
    table = table.sortby([across, up]).transpose(up, across)
    counts = table.values
    norm = SymLogNorm(linthresh=1, vmin=0, vmax=max(1, int(counts.max())))
    mesh = axes.pcolormesh(
        _edges(table[across].values), _edges(table[up].values), counts, cmap="viridis", norm=norm, rasterized=True
    )
    bar = axes.figure.colorbar(mesh, ax=axes, label="outliers")
    bar.minorticks_off()
    if counts.size <= 120:
        for (row, column), count in np.ndenumerate(counts):
            dark = norm(count) < 0.6
            x, y = float(table[across].values[column]), float(table[up].values[row])
            axes.text(x, y, f"{count:,}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xlabel(_LABELS[across])
    axes.set_ylabel(_LABELS[up])
    fixed = swept[2:]
    if fixed:
        axes.set_title(", ".join(f"{name} {result.table[name].values[0]:g}" for name in fixed), fontsize=9)


def _edges(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Borders of cells around ascending centres."""
    middles = (centres[1:] + centres[:-1]) / 2
    first, last = centres[0] - (middles[0] - centres[0]), centres[-1] + (centres[-1] - middles[-1])
    return np.concatenate([[first], middles, [last]])


def _spread(items: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _title(result: Sweep) -> str:
    c = result.criteria
    model = model_words(result.table.attrs.get("model_id", ""))
    parts = [model, f"norm {c.signal}", f"{c.counting} counting", f"layer unit {c.layer_unit}", f"scale {c.scale}"]
    return " · ".join(part for part in parts if part)
