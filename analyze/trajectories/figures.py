"""A trajectory drawn: counts, shares and perplexity over the training, and the features that become outliers."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from analyze.display.figures import in_own_style, model_words, words
from analyze.display.text import parameters
from analyze.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS: Final = (
    ("count", "outliers", 1),
    ("mean_layer_fraction", "mean L%", 100),
    ("mean_position_fraction", "mean S%", 100),
    ("perplexity", "perplexity", 1),
)
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")  # Okabe, Ito
_WIDE: Final = 50
"""Ratio of the last step to the first above 0, from which the axis is logarithmic."""
_MARGIN: Final = 0.03  # of the training's extent, on either side of it


@in_own_style
def trajectory_figure(result: Trajectory) -> Figure:
    """Outliers, L%, S% and perplexity over the training with 95% intervals, and critical magnitudes of features.

    Parameters
    ----------
    result : from `trajectory`; checkpoints that have duplicates are hollow points
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 9), layout="constrained")
    grid = figure.add_gridspec(3, 2)
    places = [_place(result, row) for row in result.checkpoints]
    doubtful = {step for one in result.duplicates for step in one.steps}
    for number, (name, label, factor) in enumerate(_PANELS):
        axes = figure.add_subplot(grid[number // 2, number % 2])
        _draw(axes, result, places, doubtful, name, factor)
        axes.set_ylabel(label)
        if name == "perplexity":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        _finish(axes, result, places)
    below = figure.add_subplot(grid[2, :])
    _draw_features(below, result, places)
    _finish(below, result, places)
    title = (model_words(result.model), words(str(result.criteria), 1000))
    figure.suptitle("\n".join(textwrap.fill(line, 110) for line in title), fontsize=9)
    return figure


def _place(result: Trajectory, row: dict[str, Any]) -> float:
    return float(row[result.by])


def _draw(axes: Axes, result: Trajectory, places: list[float], doubtful: set[int], name: str, factor: float) -> None:
    columns = [[row[f"{name}{end}"] for row in result.checkpoints] for end in ("", "_low", "_high")]
    middle, low, high = np.asarray(columns, np.float64) * factor
    axes.fill_between(places, low, high, color=_COLOURS[0], alpha=0.2, linewidth=0)
    axes.plot(places, middle, color=_COLOURS[0], linewidth=1.4)
    for place, value, row in zip(places, middle, result.checkpoints, strict=True):
        inside = "white" if row["step"] in doubtful else _COLOURS[0]
        axes.plot(place, value, "o", markersize=5, color=_COLOURS[0], markerfacecolor=inside)


def _draw_features(axes: Axes, result: Trajectory, places: list[float]) -> None:
    """Critical magnitudes of the features that are ever outliers, the strongest in colour, and the threshold."""
    ever = sorted(result.births(), key=lambda row: -row["largest_critical"])
    for number, row in enumerate(ever):
        values = result.critical.sel(feature=row["feature"]).values
        named = number < len(_COLOURS)
        axes.plot(
            places,
            np.where(np.isfinite(values), values, np.nan),
            color=_COLOURS[number] if named else "0.75",
            linewidth=1.6 if named else 0.7,
            zorder=3 if named else 2,
            label=f"feature {row['feature']}" if named else None,
        )
    axes.axhline(result.criteria.magnitude, color="0.3", linewidth=1, linestyle="--")
    axes.set_yscale("symlog", linthresh=max(result.criteria.magnitude, 1.0))
    axes.set_ylabel("critical magnitude")
    if ever:
        axes.legend(fontsize=8, frameon=False, ncols=4, loc="upper left")


def _finish(axes: Axes, result: Trajectory, places: list[float]) -> None:
    positive = [place for place in places if place > 0]
    if positive and max(positive) / min(positive) >= _WIDE:
        axes.set_xscale("symlog", linthresh=10 ** math.floor(math.log10(min(positive))))
    # The whole training in every panel, though a share is known only where there are outliers, and nothing before it.
    scale = axes.xaxis.get_transform()
    first, last = scale.transform(np.array([min(places), max(places)]))
    if first < last:
        margin = _MARGIN * (last - first)
        axes.set_xlim(*scale.inverted().transform(np.array([first - margin, last + margin])))
    axes.set_xlabel("training step" if result.by == "step" else "tokens")
    if result.by == "tokens":
        axes.xaxis.set_major_formatter(lambda value, _: parameters(round(value)) if value else "0")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
