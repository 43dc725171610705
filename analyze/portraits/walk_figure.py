"""The figure of a walk through one sublayer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from analyze.display.figures import in_own_style, model_words, words
from analyze.portraits.drawing import COLOURS, MARKERS, colour_map, signed_axis, signed_norm, signed_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from analyze.portraits.walk import Walk

_MOST_CELLS: Final = 240  # of a matrix whose values are printed


@in_own_style
def walk_figure(found: Walk) -> Figure:
    """Stream + contribution = stream after it, values printed in their cells; below, the feature at every norm.

    Parameters
    ----------
    found : from `walk`
    """
    from matplotlib.figure import Figure

    rows, columns = found.before.shape
    cell = 0.62 if rows * columns <= _MOST_CELLS else 0.2
    width, height = max(10.0, 3 * columns * cell + 2), max(1.3, rows * min(cell, 0.42)) + 0.9
    figure = Figure(figsize=(min(width, 40), min(height, 30) + 3.2), layout="constrained")
    grid = figure.add_gridspec(2, 5, height_ratios=(height, 3.0), width_ratios=(columns, 0.45, columns, 0.45, columns))
    matrices: tuple[npt.NDArray[Any], ...] = (found.before, found.contribution, found.after)
    norm = signed_norm(np.concatenate([m.astype(np.float64).ravel() for m in matrices]))
    titles = (f"stream at layer {found.layer}, {found.site}", "what is added", f"stream at {found.next_site}")
    for place, (matrix, title) in enumerate(zip(matrices, titles, strict=True)):
        axes = figure.add_subplot(grid[0, 2 * place])
        _draw_matrix(axes, found, matrix, norm)
        axes.set_title(words(title), fontsize=9)
        if place:
            axes.set_yticks([])
        else:
            axes.set_ylabel("position")
    for place, sign in ((1, "+"), (3, "=")):
        axes = figure.add_subplot(grid[0, place])
        axes.axis("off")
        axes.text(0.5, 0.5, sign, ha="center", va="center", fontsize=18)
    _draw_stream(figure.add_subplot(grid[1, :]), found)
    parts = (f"feature {found.feature}", model_words(found.model), f"sequence {found.sequence}")
    figure.suptitle(" · ".join(part for part in parts if part), fontsize=10)
    return figure


def _draw_matrix(axes: Axes, found: Walk, matrix: npt.NDArray[Any], norm: Normalize) -> None:
    from matplotlib.patches import Rectangle

    colours = colour_map("PuOr_r")
    axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, norm=norm, aspect="auto")
    axes.set_xticks(range(len(found.features)), [str(f) for f in found.features], fontsize=8)
    axes.set_yticks(range(len(found.positions)), [str(p) for p in found.positions], fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel("feature")
    if matrix.size <= _MOST_CELLS:
        for (row, column), value in np.ndenumerate(matrix):
            red, green, blue, _ = colours(norm(value)) if np.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(
                column,
                row,
                signed_number(value),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    if found.feature in found.features:
        column = found.features.index(found.feature) - 0.5
        axes.add_patch(
            Rectangle((column, -0.5), 1, len(found.positions), fill=False, edgecolor="black", linewidth=1.8)
        ).set_clip_on(False)


def _draw_stream(axes: Axes, found: Walk) -> None:
    from matplotlib import colormaps

    stream = found.stream.values
    stations = np.arange(len(stream))
    for number, position in enumerate(found.positions):
        few = len(found.positions) <= len(COLOURS)
        colour = COLOURS[number] if few else colormaps["viridis"](number / len(found.positions))
        axes.plot(
            stations, stream[:, number], color=colour, linewidth=1.4, label=f"position {position}",
            marker=MARKERS[number] if few else None, markersize=3,
        )  # fmt: skip
    sites = (len(stream) - 1) // (int(found.stream["layer"].values.max()) + 1)
    labels = [str(label) for label in found.stream["site"].values[:sites]]
    here = found.layer * sites + labels.index(found.site)
    axes.axvspan(here, here + 1, color="0.85", zorder=0, linewidth=0)
    layers = np.arange((len(stream) - 1) // sites)
    step = -(-len(layers) // 16)
    axes.set_xticks([*(layers[::step] * sites), len(stream) - 1], [*map(str, layers[::step]), "last\nnorm"], fontsize=8)
    axes.set_xlim(-0.5, len(stream) - 0.5)
    signed_axis(axes, stream, 1.0)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"feature {found.feature}")
    axes.set_title("the feature at every norm; grey: the step above", fontsize=9)
    if len(found.positions) <= 8:
        axes.legend(fontsize=8, frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
