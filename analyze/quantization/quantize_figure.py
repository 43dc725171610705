"""What quantisers lose, drawn: against the threshold of LLM.int8(), against bits, and layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr

from analyze.display.figures import in_own_style, model_words, words
from analyze.quantization.result import KEYS, VARIANT, Quantization
from capture.store.schema import LAYER, SITE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS: Final = {"error": "share of the squares lost", "output_error": "share of the outputs' squares lost"}
_MOST_ROWS: Final = 40  # variants that a heat map names


@in_own_style
def quantize_figure(result: Quantization) -> Figure:
    """Error against threshold where there are thresholds, else against bits; and error by layer and site as a heat map.

    Parameters
    ----------
    result : from `quantize`
    """
    from matplotlib.figure import Figure

    rows = result.rows_for_all
    figure = Figure(figsize=(13.0, max(4.4, 1.6 + 0.22 * min(len(rows), _MOST_ROWS))), layout="constrained")
    left, right = figure.subplots(1, 2)
    if any(row["threshold"] is not None for row in rows):
        _draw_thresholds(left, rows, result.measure)
    else:
        _draw_bits(left, rows, result.measure)
    left.set_yscale("log")
    left.set_ylabel(_LABELS[result.measure])
    _draw_layers(right, result)
    model = model_words(result.table.attrs.get("model_id", ""))
    figure.suptitle(f"{model} · norm outputs of {result.tokens:,} tokens", fontsize=9)
    return figure


def _name(row: dict[str, Any]) -> str:
    words = [row["scheme"], "" if row["transform"] == "none" else row["transform"]]
    return " ".join([*filter(None, words), *([] if row["threshold"] is None else [f"T={row['threshold']:g}"])])


def _draw_thresholds(axes: Axes, rows: list[dict[str, Any]], measure: str) -> None:
    """A line for each scheme and transform; one without a threshold is a level."""
    from matplotlib import colormaps

    kinds = list(dict.fromkeys((row["scheme"], row["transform"]) for row in rows))
    for number, kind in enumerate(kinds):
        colour = colormaps["tab20"](number % 20)
        mine = [row for row in rows if (row["scheme"], row["transform"]) == kind and row[measure]]
        curve = [row for row in mine if row["threshold"] is not None]
        label = _name({**rows[0], "scheme": kind[0], "transform": kind[1], "threshold": None})
        if curve:
            points = [(row["threshold"], row[measure]) for row in curve]
            axes.plot(*zip(*points, strict=True), marker=".", color=colour, label=label)
        for row in mine:
            if row["threshold"] is None:
                style = {"linestyle": ":", "linewidth": 1} if curve else {"linestyle": "--", "label": label}
                axes.axhline(row[measure], color=colour, **style)
    axes.set_xlabel("columns with a magnitude at or above this are kept in 16 bits")
    axes.legend(fontsize=7, frameon=False)


def _draw_bits(axes: Axes, rows: list[dict[str, Any]], measure: str) -> None:
    for row in rows:
        if row[measure]:
            axes.plot(row["bits"], row[measure], "o", color="#0072B2")
            axes.annotate(
                _name(row), (row["bits"], row[measure]), (3, 3), textcoords="offset points", fontsize=7, clip_on=True
            )
    axes.set_xlabel("bits a value, scales included")


def _draw_layers(axes: Axes, result: Quantization) -> None:
    """Variants by places, the best at the top."""
    from matplotlib.colors import LogNorm

    best = result.best_first()[:_MOST_ROWS]
    table = result.table[result.measure]
    keys = [tuple(row[key] for key in KEYS) for row in result.rows_for_all]
    order = [keys.index(tuple(row[key] for key in KEYS)) for row in best]
    values = table.isel({VARIANT: order}).stack(place=(LAYER, SITE)).values
    shown = np.ma.masked_where(~(values > 0), values)
    norm = LogNorm(shown.min(), shown.max()) if shown.count() else None
    image = axes.imshow(shown, aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label=_LABELS[result.measure])
    axes.set_yticks(range(len(best)), [_name(row) for row in best], fontsize=7)
    sites = _sites(table)
    axes.set_xticks(range(0, values.shape[1], len(sites)), [str(layer) for layer in table[LAYER].values], fontsize=6)
    axes.set_xlabel(f"layer ({', '.join(sites)} each)" if len(sites) > 1 else "layer")


def _sites(table: xr.DataArray) -> list[str]:
    return [words(str(site)) for site in table[SITE].values]
