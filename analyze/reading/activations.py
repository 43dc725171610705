"""The activations of a store for a signal: as stored, or norm outputs derived from norm inputs."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from capture.errors import OutliersError
from capture.store.schema import FEATURE, RAW_VARIABLES


def activations(store: xr.Dataset, signal: str) -> xr.DataArray:
    """Activations of one signal, lazily.

    Parameters
    ----------
    store : Dataset from `open_store`, or one that you chunked yourself
    signal : `input` or `output`

    Returns
    -------
    (sequence, layer, site, position, feature) float32; norm outputs that the store does not keep are derived from norm
    inputs with the stored norm parameters

    Raises
    ------
    OutliersError
        The store keeps no activations that this signal can be had from.
    """
    name = f"norm_{signal}"
    if name in store:
        data = store[name]
        return data if data.chunks is not None else data.chunk(dict.fromkeys(data.dims[:3], 1))
    raw = str(store.attrs.get("raw"))
    if signal == "output" and "norm_input" in RAW_VARIABLES.get(raw, ()):
        return _derived(store)
    kept = "no activations" if raw == "none" else f"activations of --raw {raw} only"
    remedy = f"capture again with --raw {signal if raw == 'none' else 'both'}"
    if "packed" in store.attrs:
        remedy = "open the store that this one was packed from"
    raise OutliersError(
        f"this view needs the norm {signal}s themselves, and the store keeps {kept}; {remedy}, or ask for a view "
        "without --layer-range, --sites, --skip-first, --skip-tokens and --scale"
    )


def has_activations(store: xr.Dataset, signal: str) -> bool:
    """Whether the activations of a signal are kept, or can be derived from those that are."""
    return f"norm_{signal}" in store or (signal == "output" and "norm_input" in store)


def _derived(store: xr.Dataset) -> xr.DataArray:
    source = activations(store, "input").chunk({FEATURE: -1})
    names = {
        "kind": "norm_kind",
        "epsilon": "norm_epsilon",
        "weight_offset": "norm_weight_offset",
        "compute_dtype": "compute_dtype",
        "rounding": "norm_rounding",
    }
    settings = {word: store.attrs.get(name) for word, name in names.items()}
    if settings["compute_dtype"] == "float32" and settings["rounding"] is None:
        settings["rounding"] = "last"  # in float32 nothing is rounded on the way
    lacking = [name for word, name in names.items() if settings[word] is None and settings["kind"] != "none"]
    if lacking:
        raise OutliersError(
            f"norm outputs cannot be derived: the store has no attribute {', '.join(lacking)}; capture with --raw both"
        )
    parameters = [
        store[name].data[None, :, :, None, :] if name in store else None for name in ("norm_weight", "norm_bias")
    ]
    chunks = source.data.chunks
    blocks = [
        None if values is None else da.asarray(values).rechunk((1, chunks[1], chunks[2], 1, -1))
        for values in parameters
    ]
    present = [block for block in blocks if block is not None]
    derived = da.map_blocks(
        _derive_block,
        source.data,
        *present,
        dtype=np.float32,
        meta=np.empty((0,) * 5, np.float32),
        has_bias=blocks[1] is not None,
        settings=settings,
    )
    return source.copy(data=derived).rename("norm_output")


def _derive_block(
    norm_input: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    *bias: npt.NDArray[np.float32],
    has_bias: bool,
    settings: dict[str, Any],
) -> npt.NDArray[np.float32]:
    from capture.store.norms import derive_norm_output

    result = np.empty(norm_input.shape, np.float32)
    for n, layer, site in np.ndindex(*norm_input.shape[:3]):
        result[n, layer, site] = derive_norm_output(
            norm_input[n, layer, site],
            weight[0, layer, site, 0],
            bias[0][0, layer, site, 0] if has_bias else None,
            **settings,
        )
    return result
