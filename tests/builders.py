"""Stores for tests: from arrays to a Dataset in memory or a store on disk, with peaks taken by plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from capture.store import write
from capture.store.create import create
from capture.store.schema import PER_SEQUENCE, RAW_VARIABLES, SIGNALS, VARIABLES, Sizes

SITES = ("ln_attn", "ln_mlp")

ATTRIBUTES: dict[str, Any] = {
    "model_id": "test/model",
    "architecture": "TestForCausalLM",
    "compute_dtype": "float32",
    "norm_kind": "rms",
    "norm_epsilon": 1e-5,
    "norm_weight_offset": 0.0,
    "text_source": "test",
}


def arrays_of(
    norm_input: np.ndarray,
    norm_output: np.ndarray | None = None,
    nll: np.ndarray | None = None,
    length: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every variable of a store from (sequence, layer, site, position, feature) activations.

    What `norm_input` has behind the `length` of a sequence is never looked at.
    """
    norm_input = np.array(norm_input, np.float32)
    norm_output = norm_input / 2 if norm_output is None else np.array(norm_output, np.float32)
    sequences, layers, sites, positions, features = norm_input.shape
    behind = np.zeros((sequences, positions), bool)
    if length is not None:
        behind = np.arange(positions) >= np.asarray(length)[:, None]
        for values in (norm_input, norm_output):
            np.moveaxis(values, 3, 1)[behind] = np.nan
    both = np.stack([norm_input, norm_output])
    if nll is None:
        nll = np.linspace(0.5, 4, sequences * positions).reshape(sequences, positions)
        nll[:, 0] = np.nan
    unknown = np.count_nonzero(~np.isfinite(both), axis=(4, 5)) - behind.sum(axis=1)[:, None, None] * features
    return {
        "norm_input": norm_input,
        "norm_output": norm_output,
        "final_input": norm_input[:, -1, -1] + 1,
        "norm_weight": np.linspace(0.5, 1.5, layers * sites * features, dtype=np.float32).reshape(
            layers, sites, features
        ),
        "final_high": np.fmax.reduce(norm_input[:, -1, -1] + 1, axis=1),
        "final_low": np.fmin.reduce(norm_input[:, -1, -1] + 1, axis=1),
        "layer_high": np.fmax.reduce(both, axis=4),
        "layer_low": np.fmin.reduce(both, axis=4),
        "position_peak": np.fmax.reduce(np.fmax.reduce(np.abs(both), axis=3), axis=2),
        "nonfinite_count": unknown.astype(np.int32),
        "token_id": np.where(behind, -1, np.arange(sequences * positions).reshape(sequences, positions)).astype(
            "int32"
        ),
        "nll": np.where(behind, np.nan, nll).astype(np.float32),
        "done": np.ones(sequences, bool),
        **({} if length is None else {"length": np.asarray(length, np.int32)}),
    }


def site_names(sites: int) -> tuple[str, ...]:
    return ("ln_attn_mlp",) if sites == 1 else (*SITES, *(f"extra_{n}" for n in range(sites - 2)))


def dataset(
    norm_input: np.ndarray,
    norm_output: np.ndarray | None = None,
    *,
    raw: str = "both",
    length: np.ndarray | None = None,
) -> xr.Dataset:
    """A Dataset in memory, as a user might have chunked it."""
    arrays = arrays_of(norm_input, norm_output, length=length)
    absent = set(RAW_VARIABLES["both"]) - set(RAW_VARIABLES[raw])
    data = {name: (VARIABLES[name].dims, values) for name, values in arrays.items() if name not in absent}
    sizes = dict(zip(VARIABLES["norm_input"].dims, arrays["norm_input"].shape, strict=True))
    coords: dict[str, Any] = {dim: np.arange(size) for dim, size in sizes.items()}
    coords |= {"signal": list(SIGNALS), "site": list(site_names(sizes["site"]))}
    return xr.Dataset(
        data, coords=coords, attrs={**ATTRIBUTES, "format": "outlier-features", "format_version": 1, "raw": raw}
    )


def on_disk(
    path: Path,
    norm_input: np.ndarray,
    norm_output: np.ndarray | None = None,
    *,
    raw: str = "both",
    done: int | None = None,
    nll: np.ndarray | None = None,
    attributes: dict[str, Any] | None = None,
    norm_weight: np.ndarray | None = None,
    norm_bias: np.ndarray | None = None,
    length: np.ndarray | None = None,
) -> Path:
    """A store on disk; only the first `done` sequences are captured."""
    arrays = arrays_of(norm_input, norm_output, nll, length)
    sequences, layers, sites, positions, features = arrays["norm_input"].shape
    create(
        path,
        Sizes(sequences, layers, site_names(sites), positions, features),
        raw=raw,
        attributes={**ATTRIBUTES, **(attributes or {})},
        token_id=arrays["token_id"],
        norm_weight=arrays["norm_weight"] if norm_weight is None else norm_weight,
        norm_bias=norm_bias,
        length=arrays.get("length"),
    )
    store = write.StoreWriter(path)
    for n in range(sequences if done is None else done):
        names = (*RAW_VARIABLES[raw], *PER_SEQUENCE)
        end = positions if length is None else int(length[n])
        write.write_sequence(store, n, {name: sequence_of(arrays[name], name, n, end) for name in names})
    return path


def sequence_of(values: np.ndarray, name: str, number: int, length: int) -> np.ndarray:
    """One sequence of a variable, up to its end."""
    dims = list(VARIABLES[name].dims)
    values = np.take(values, number, dims.index("sequence"))
    dims.remove("sequence")
    return values if "position" not in dims else np.take(values, range(length), dims.index("position"))


def random_activations(shape: tuple[int, ...] = (3, 4, 2, 7, 5), seed: int = 0) -> np.ndarray:
    """Activations with a few extreme features, (sequence, layer, site, position, feature) float32."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape).astype(np.float32)
    values[..., 0] *= 10
    values[..., -1, :] += 3
    return values
