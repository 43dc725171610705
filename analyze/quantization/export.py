"""Calibration maxima for other tools, under the names that the model's modules have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from safetensors.numpy import save

from analyze.display.text import plain
from analyze.quantization.variants import channel_maxima, outputs_view
from analyze.question.view import View
from analyze.reading.open import as_dataset
from analyze.types import Float32, Progress, Store
from capture.errors import OutliersError
from capture.store.files import write_file
from capture.store.output import output_file
from capture.store.schema import LAYER, SITE


def export(
    store: Store, *, smoothquant: Path | str, view: View | None = None, progress: Progress | None = None
) -> list[str]:
    """Write the largest magnitude of every channel that a quantised linear map reads, as SmoothQuant calibrates with.

    Parameters
    ----------
    store : path, or Dataset from `open_store`; peaks are enough where the view is plain
    smoothquant : file ending in .safetensors, of one (feature,) float32 tensor a name
    view : which layers, sites, sequences and positions count; its signal, scale and rounding do not
    progress : called with (finished, all) steps, where the view needs a pass

    Returns
    -------
    names in the file: of each norm, and of each module that its output feeds, such as `model.layers.0.self_attn`

    Raises
    ------
    OutliersError
        Another suffix, a file that cannot be written, a store without the names of modules, or a channel whose largest
        magnitude is not finite.
    """
    path = output_file(smoothquant)
    if path.suffix != ".safetensors":
        raise OutliersError(f"{path} has the suffix {path.suffix!r}; expected a file ending in .safetensors")
    data = as_dataset(store)
    chosen = outputs_view(view, data)
    frame = chosen.select(data)
    maxima = channel_maxima(data, chosen, progress)
    if not np.isfinite(maxima).all():
        layer, site, feature = np.argwhere(~np.isfinite(maxima))[0]
        raise OutliersError(
            f"channel {feature} has no finite largest magnitude at layer {frame[LAYER].values[layer]}, "
            f"{frame[SITE].values[site]}; calibrate with another text or dtype"
        )
    tensors = _named(frame, maxima)
    about = {"format": "pt", "made_by": "outlier-features", "model_id": plain(str(data.attrs.get("model_id", "")))}
    write_file(path, save(tensors, about))
    return list(tensors)


def _named(frame: xr.Dataset, maxima: Float32) -> dict[str, Float32]:
    """Channel maxima by the names of the norms and of what they feed."""
    layers = [int(layer) for layer in frame[LAYER].values]
    sites = [str(site) for site in frame[SITE].values]
    tensors: dict[str, Float32] = {}
    try:
        rows: list[dict[str, Any]] = list(frame.attrs["sites"])
        for row in rows:
            if row["layer"] in layers and row["name"] in sites:
                values = maxima[layers.index(row["layer"]), sites.index(row["name"])]
                tensors |= {str(name): values.copy() for name in (row["module"], *row["feeds"])}
    except (KeyError, TypeError) as error:
        raise OutliersError(
            "the store does not say which modules were read; expected the attribute sites, as outliers capture writes "
            "it; capture again"
        ) from error
    if not tensors:
        raise OutliersError("the view has no site whose module the store names; choose other layers or sites")
    return tensors
