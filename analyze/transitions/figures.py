"""Figures of transition tests. Everything drawn here was computed elsewhere."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from analyze.display.figures import in_own_style, words
from analyze.transitions.grid import CONVENTIONS, TransitionGrid
from analyze.transitions.transition import Transition, axis_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Y_LABELS: Final = {"layers": "mean L%", "positions": "mean S%"}
_X_LABELS: Final = {"total": "total parameters", "active": "active parameters", "perplexity": "perplexity"}
_COLOURS: Final = {"step": "#D55E00", "smooth": "#0072B2", "none": "0.45"}  # of Okabe and Ito
_DASHES: Final = {"step": "-", "smooth": "--", "none": ":"}

# Colour, symbol, colour of the symbol, name.
_TILES: Final = {
    "step": ("#D55E00", "\u25b2", "white", "step"),
    "onset": ("#E69F00", "\u25b3", "black", "step where features begin to qualify"),
    "smooth": ("#0072B2", "/", "white", "smooth trend"),
    "none": ("#C8C8C8", "\u2013", "black", "no trend"),
    "undecided": ("#FFFFFF", "?", "0.35", "undecided"),
    "empty": ("#FFFFFF", "", "black", "no outlier in any model"),
}


@in_own_style
def transition_figure(results: Sequence[Transition]) -> Figure:
    """L% and S% of each family with its fits: one column a family, the verdict above.

    Parameters
    ----------
    results : from `transition` or `published_transition`, one or more; stores are solid points, published ones hollow
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 4.6 * len(results), 7.2), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False, sharex="col")
    for column, result in enumerate(results):
        for row, outcome in enumerate(_Y_LABELS):
            _draw_points(axes[row][column], result, outcome)
        axes[1][column].set_xlabel(_X_LABELS[result.against])
    return figure


def _draw_points(axes: Axes, result: Transition, outcome: str) -> None:
    points = [(point.x, point.y(outcome, result.absent)) for point in result.points]
    hollow = result.family != "stores"
    axes.set_xscale("log")
    test = result.tests.get(outcome)
    step = None if test is None else test.best("step")
    if test is not None:
        for kind in ("none", "smooth", "step"):
            fit = test.best(kind)
            if fit is None or math.isnan(fit.aicc):  # with too few points it would follow all of them
                continue
            strong = kind == test.verdict
            style: Any = {"color": _COLOURS[kind], "linewidth": 2.2 if strong else 1.2, "alpha": 1 if strong else 0.75}
            label = f"{kind}: {fit.name}, weight {test.weights[kind]:.2f}"
            if kind == "step" and fit.between is not None:
                low, high = fit.between
                below = test.x <= low
                axes.plot(test.x[below], fit.values[below], **style, label=label)
                axes.plot(test.x[~below], fit.values[~below], **style)
                if test.verdict == "step":
                    axes.axvspan(low, high, color=_COLOURS["step"], alpha=0.15, linewidth=0)
            else:
                axes.plot(test.x, fit.values, **style, linestyle=_DASHES[kind], label=label)
    axes.plot(
        *zip(*points, strict=True),
        linestyle="none",
        marker="o",
        markersize=6.5,
        markerfacecolor="white" if hollow else "black",
        markeredgecolor="black",
        markeredgewidth=1.2,
        zorder=5,
    )
    axes.set_ylim(-4, 104)
    axes.set_ylabel(_Y_LABELS[outcome])
    _ticks(axes, result, [x for x, _ in points])
    family = words(result.family)
    heading = "" if outcome == "positions" else f"{family}, {len(points)} models\n"
    axes.set_title(heading + textwrap.fill(words(result.sentence(outcome), 1000), 58), fontsize=9, loc="left")
    if axes.get_legend_handles_labels()[0]:
        place: Any = "upper right" if step is not None and step.size is not None and step.size < 0 else "upper left"
        axes.legend(fontsize=7.5, frameon=False, loc=place)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _ticks(axes: Axes, result: Transition, x: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    places: list[float] = []
    for value in sorted(x):  # where the models are, but not closer than a reader can tell apart
        if not places or np.log10(value / places[-1]) > 0.09 * max(np.log10(max(x) / min(x)), 1e-9):
            places.append(value)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, [axis_value(result.against, place) for place in places], fontsize=8)


@in_own_style
def transition_grid_figure(grid: TransitionGrid, outcome: str = "layers") -> Figure:
    """Does the phase transition survive the threshold: one tile for each verdict, one panel for each convention.

    Parameters
    ----------
    grid : from `transition_grid`
    outcome : `layers` (L%), `positions` (S%) or `count`
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    width, height = len(grid.magnitudes), len(grid.layers)
    tile = 0.22 if width <= 24 else 0.16
    size = (max(8.4, 2 * tile * width + 1.2), max(1.4, tile * height + 0.5) * 4 + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(4, 2, sharex=True, sharey=True)
    for panel, convention in zip(axes.ravel(), CONVENTIONS, strict=True):
        _draw_tiles(panel, grid, outcome, convention)
    for panel in axes[-1]:
        panel.set_xlabel("magnitude threshold", fontsize=9)
    for panel in axes[:, 0]:
        panel.set_ylabel("least share of layers", fontsize=9)
    present = {row["verdict"] for row in grid.cells if row["outcome"] == outcome}
    handles = []
    for name, (colour, symbol, _, meaning) in _TILES.items():
        if name in present:
            label = f"{symbol}  {meaning}" if symbol else meaning
            handles.append(Patch(facecolor=colour, edgecolor="0.6", label=label, linewidth=0.6))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    name = {"layers": "L%", "positions": "S%", "count": "the number of outliers"}[outcome]
    where = "with" if grid.at is None else f"at {axis_value(grid.against, grid.at)}"
    figure.suptitle(
        f"Does {name} step {where} {_X_LABELS[grid.against]}? {len(grid.models)} models\n"
        "small numbers: models with outliers, where not all",
        fontsize=9,
    )
    return figure


def _draw_tiles(axes: Axes, grid: TransitionGrid, outcome: str, convention: tuple[str, str, str]) -> None:
    from matplotlib.patches import Rectangle

    order = [sorted(values) for values in (grid.magnitudes, grid.layers)]
    size = 7 if len(grid.magnitudes) <= 24 else 5
    for row in grid.cells:
        if row["outcome"] != outcome or (row["signal"], row["counting"], row["layer_unit"]) != convention:
            continue
        x, y = order[0].index(row["magnitude"]), order[1].index(row["layers"])
        colour, symbol, ink, _ = _TILES[row["verdict"]]
        if row["verdict"] == "step" and row["size"] < 0:
            symbol = "\u25bc"
        if row["verdict"] == "smooth" and row["spearman"] < 0:
            symbol = "\\"
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="0.85", linewidth=0.5))
        with_outliers = len(grid.models) - row["without_outliers"]
        some = 0 < row["without_outliers"] < len(grid.models)
        axes.text(x, y + (0.12 if some else 0), symbol, color=ink, ha="center", va="center", fontsize=size)
        if some:
            axes.text(x + 0.44, y - 0.44, str(with_outliers), color=ink, ha="right", va="bottom", fontsize=0.65 * size)
    axes.set_xlim(-0.5, len(order[0]) - 0.5)
    axes.set_ylim(-0.5, len(order[1]) - 0.5)
    axes.set_title("norm {}, {}, {}".format(*convention), fontsize=8.5)
    for set_ticks, values, most in ((axes.set_xticks, order[0], 8), (axes.set_yticks, order[1], 10)):
        every = -(-len(values) // most)
        places = range(0, len(values), every)
        set_ticks(list(places), [f"{values[place]:g}" for place in places], fontsize=8)
    axes.tick_params(length=2)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
