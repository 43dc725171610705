"""The columns that LLM.int8() keeps, as curves over its threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyze.display.figures import in_own_style, model_words, words
from analyze.quantization.columns import THRESHOLD
from capture.store.schema import LAYER, SITE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@in_own_style
def kept_figure(kept: xr.DataArray) -> Figure:
    """Share of kept columns against the threshold: a panel for each site, a line for each layer.

    Parameters
    ----------
    kept : (threshold, layer, site), as `Fits.kept`
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    sites, layers = kept[SITE].values, kept[LAYER].values
    figure = Figure(figsize=(5.2 * len(sites) + 0.8, 4.0), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(sites), sharey=True))
    colours, norm = colormaps["viridis"], Normalize(int(layers.min()), max(int(layers.max()), 1))
    for axes, site in zip(panels, sites, strict=True):
        for layer in layers:
            values = kept.sel({SITE: site, LAYER: layer})
            axes.plot(values[THRESHOLD].values, values.values, marker=".", color=colours(norm(layer)), linewidth=1.2)
        axes.set_title(words(str(site)), fontsize=9)
        axes.set_xlabel("threshold")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("share of columns kept in 16 bits")
    figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), label="layer")
    figure.suptitle(model_words(kept.attrs.get("model_id", "")), fontsize=9)
    return figure
