"""Figures of portraits and maps. Everything drawn was computed elsewhere, but for what makes it fit on paper."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from analyze.display.figures import in_own_style, words
from analyze.portraits.drawing import (
    COLOURS,
    MARKERS,
    MINUS,
    UNITS,
    colour_map,
    heading,
    layer_ticks,
    magnitude_norm,
    signed_axis,
    signed_norm,
    signed_number,
    signed_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analyze.portraits.map import FeatureMap
    from analyze.portraits.portrait import Portrait

_MOST_COLUMNS: Final = 512  # of a heat map: more are narrower than what a printer or a screen shows


@in_own_style
def portrait_figure(found: Portrait) -> Figure:
    """Layers by positions, magnitude by layer with its sign, the strongest tokens, and the rank among features.

    Parameters
    ----------
    found : from `portrait`
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1), width_ratios=(1.1, 1, 0.9))
    _draw_positions(figure.add_subplot(grid[0, :]), found)
    _draw_layers(figure.add_subplot(grid[1, 0]), found)
    _draw_tokens(figure.add_subplot(grid[1, 1]), found)
    _draw_ranking(figure.add_subplot(grid[1, 2]), found)
    figure.suptitle(heading(f"feature {found.feature}", found.model, found.criteria), fontsize=10)
    return figure


@in_own_style
def map_figure(found: FeatureMap) -> Figure:
    """Signed peaks of the strongest features by layers and sites, beside their critical magnitudes.

    Parameters
    ----------
    found : from `feature_map`
    """
    from matplotlib.colors import SymLogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    features, layers, sites = (found.table[name].values for name in ("feature", "layer", "site"))
    peak = found.table["peak"].values.reshape(len(features), -1)
    figure = Figure(figsize=(10, 1.6 + 0.24 * max(8, len(features))), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(3.4, 1))
    axes, side = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])

    mesh = axes.pcolormesh(peak, cmap=colour_map("PuOr_r"), norm=signed_norm(peak, found.criteria.magnitude))
    mesh.set_rasterized(True)
    axes.invert_yaxis()
    names = [f"{row['feature']} {MINUS if row['peak'] < 0 else '+'}" for row in found.rows()]
    axes.set_yticks(np.arange(len(features)) + 0.5, names, fontsize=8)
    axes.set_ylabel("feature, and sign of its largest peak")
    layer_ticks(axes.xaxis, layers, len(sites))
    axes.set_xlabel("layer" + (f" (each: {', '.join(words(str(s)) for s in sites)})" if len(sites) > 1 else ""))
    label = f"value of largest magnitude{UNITS[found.criteria.scale]}"
    bar = figure.colorbar(mesh, ax=axes, location="left", label=label, pad=0.02, aspect=30)
    bar.minorticks_off()
    if isinstance(mesh.norm, SymLogNorm):
        ticks = signed_ticks(float(mesh.norm.vmax or 1), mesh.norm.linthresh)
        bar.set_ticks(ticks, labels=[signed_number(tick) for tick in ticks])

    critical = found.table["critical_magnitude"].values
    shown = np.where(np.isfinite(critical), critical, 0)
    colours = [COLOURS[0] if row["outlier"] else "0.75" for row in found.rows()]
    side.barh(np.arange(len(features)) + 0.5, shown, height=0.7, color=colours)
    side.set_ylim(axes.get_ylim())
    side.set_yticks([])
    limit = found.criteria.magnitude
    if (shown > 0).any() and shown.max() > 20 * shown[shown > 0].min():
        side.set_xscale("log")
    side.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.axvline(limit, color="black", linewidth=1, linestyle=":")
    side.set_title(f"dotted: threshold {limit:g}", fontsize=8)
    side.set_xlabel("critical magnitude")
    side.spines[["top", "right"]].set_visible(False)
    head = "strongest feature" if len(features) == 1 else f"{len(features)} strongest of {found.hidden_size:,} features"
    figure.suptitle(heading(head, found.model, found.criteria, fractions=True), fontsize=10)
    return figure


def _draw_positions(axes: Axes, found: Portrait) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    layers, sites, positions = (found.magnitudes[name].values for name in ("layer", "site", "position"))
    values = found.magnitudes.values.reshape(len(layers) * len(sites), len(positions))
    width = -(-len(positions) // _MOST_COLUMNS)
    starts = np.arange(0, len(positions), width)
    values = np.fmax.reduceat(values, starts, axis=1)
    edges = np.append(positions[starts], positions[-1] + 1) - 0.5
    norm = magnitude_norm(values)
    mesh = axes.pcolormesh(
        edges, np.arange(len(values) + 1), np.maximum(values, norm.vmin or 0), cmap=colour_map("magma_r"), norm=norm
    )
    mesh.set_rasterized(True)
    layer_ticks(axes.yaxis, layers, len(sites))
    axes.set_ylabel("layer" + (f"\n(each: {', '.join(words(str(s)) for s in sites)})" if len(sites) > 1 else ""))
    axes.set_xlabel("position" + (f" (each column the largest of {width})" if width > 1 else ""))
    kind = "" if found.exact else ", upper bounds: the store keeps no activations"
    axes.set_title(f"magnitude in sequence {found.sequence}{kind}", fontsize=9)
    bar = axes.figure.colorbar(mesh, ax=axes, label=f"|x|{UNITS[found.criteria.scale]}", pad=0.01)
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    limit = found.criteria.magnitude
    if norm.vmin is not None and norm.vmax is not None and norm.vmin < limit < norm.vmax:
        bar.ax.axhline(limit, color="#56B4E9", linewidth=2)
        bar.ax.annotate(
            "threshold", (0, limit), xycoords=("axes fraction", "data"), xytext=(-3, 0), textcoords="offset points",
            fontsize=7, ha="right", va="center", rotation=90,
        )  # fmt: skip


def _draw_layers(axes: Axes, found: Portrait) -> None:
    layers = found.layers["layer"].values
    for number, site in enumerate(found.layers["site"].values):
        colour = COLOURS[number % len(COLOURS)]
        for name in ("high", "low"):
            values = found.layers[name].values[:, :, number].astype(np.float64)
            with np.errstate(invalid="ignore"):
                middle = np.median(values, axis=0)
            axes.fill_between(
                layers, np.fmin.reduce(values), np.fmax.reduce(values), color=colour, alpha=0.25, linewidth=0
            )
            axes.plot(
                layers, middle, color=colour, linewidth=1.3, marker=MARKERS[number % len(MARKERS)], markersize=2.5,
                label=words(str(site)) if name == "high" else None,
            )  # fmt: skip
    _threshold_lines(axes, found.criteria.magnitude, found.layers.to_array().values)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"value{UNITS[found.criteria.scale]}")
    several = found.layers.sizes["sequence"] > 1
    axes.set_title("smallest and largest value" + (": median and range of sequences" if several else ""), fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _draw_tokens(axes: Axes, found: Portrait) -> None:
    from matplotlib.ticker import FuncFormatter

    rows = found.tokens[:12]
    finite = [row["magnitude"] if np.isfinite(row["magnitude"]) else 0 for row in rows]
    axes.barh(np.arange(len(rows)), finite, color=COLOURS[0], height=0.7)
    labels = []
    for row in rows:
        token = f"id {row['token_id']}"
        if "token_text" in row:
            whole = row["token_text"]
            token = json.dumps(whole if len(whole) <= 14 else whole[:13] + "…", ensure_ascii=False)
        labels.append(f"{words(token)}  {row['sequence']}:{row['position']}")
    axes.set_yticks(np.arange(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    if found.criteria.magnitude <= 1.5 * max(finite, default=0):
        axes.axvline(found.criteria.magnitude, color="0.3", linewidth=1, linestyle=":")
    axes.set_xlabel(f"|x|{UNITS[found.criteria.scale]}, largest over layers")
    axes.set_title("strongest tokens (sequence:position)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _draw_ranking(axes: Axes, found: Portrait) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    rank = np.arange(1, found.ranking.size + 1)
    drawn = np.isfinite(found.ranking) & (found.ranking > 0)
    axes.plot(rank[drawn], found.ranking[drawn], color="0.55", linewidth=1.6)
    own = found.pooled_critical_magnitude
    if np.isfinite(own) and own > 0:
        axes.plot([found.pooled_rank], [own], marker="o", color=COLOURS[1], markersize=7)
        right = found.pooled_rank**2 > found.ranking.size  # on the right half of a logarithmic axis
        axes.annotate(
            f"rank {found.pooled_rank:,}: {own:.4g}", (found.pooled_rank, own), xytext=(-8 if right else 8, 6),
            textcoords="offset points", fontsize=8, ha="right" if right else "left",
        )  # fmt: skip
    axes.axhline(found.criteria.magnitude, color="0.3", linewidth=1, linestyle=":")
    axes.margins(y=0.1)
    if drawn.any():
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.set_xlabel("rank among features")
    axes.set_ylabel("critical magnitude")
    axes.set_title("all sequences as one", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _threshold_lines(axes: Axes, magnitude: float, values: npt.NDArray[Any]) -> None:
    signed_axis(axes, values, magnitude)
    known = np.abs(values[np.isfinite(values)])
    if known.size and magnitude <= 1.5 * float(known.max()):
        for level in (magnitude, -magnitude):
            axes.axhline(level, color="0.3", linewidth=1, linestyle=":")
