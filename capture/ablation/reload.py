"""The model of a finished store, loaded once more, and the proof that it is the same one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError
from capture.models.load import DTYPES, Loaded, load_model
from capture.models.source import OFFLINE_MODEL
from capture.store.paths import user_path

if TYPE_CHECKING:
    from capture.sites.place import SiteMap

_SAME: Final = ("architecture", "compute_dtype", "weight_quantisation")

MOST_NLL_DIFFERENCE: Final = {"float32": 0.01}
"""Largest mean difference of a token's negative log-likelihood from the stored one, in nats, at which a model still
counts as the same: another device, batch or version of a library changes the last bits."""
_OTHER_DTYPES: Final = 0.1  # bfloat16 and float16


def reload_model(
    path: Path, attributes: Mapping[str, Any], *, model: str | None, device: str, trust_remote_code: bool
) -> tuple[Loaded, SiteMap]:
    """Load the model of a store as the capture did.

    Parameters
    ----------
    path : of the store, for error messages
    attributes : of the store
    model : where the model is now, None where the store says so
    device, trust_remote_code : as for `capture.models.load.load_model`

    Returns
    -------
    the model, and its sites as the store has them

    Raises
    ------
    OutliersError
        The model cannot be loaded, or is visibly another.
    """
    named, dtype = attributes.get("model_id"), attributes.get("compute_dtype")
    if not isinstance(named, str) or dtype not in DTYPES:
        raise OutliersError(
            f"{path} does not say of which model and dtype it is; expected attributes model_id and compute_dtype; "
            "capture again"
        )
    placed = _site_map(path, attributes)
    # GGUF files compute in float32 where nothing was asked for, and their weights then stay packed.
    packed = dtype == "float32" and str(attributes.get("weight_quantisation")).startswith("gguf")
    try:
        loaded = load_model(
            named if model is None else model,
            revision=_hub_commit(named, attributes) if model is None else None,
            dtype="auto" if packed else dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    except OutliersError as error:
        advice = "; say where it is now with --model" if model is None else ""
        raise OutliersError(f"the model of {path} cannot be loaded again: {error}{advice}") from error
    differences = [
        f"{name} ({attributes.get(name)!r} in the store, {loaded.attributes[name]!r} at hand)"
        for name in _SAME
        if attributes.get(name) != loaded.attributes[name]
    ]
    _refuse(path, loaded, attributes, differences)
    return loaded, placed


def check_norms(path: Path, loaded: Loaded, placed: SiteMap, attributes: Mapping[str, Any], weight: Any) -> None:
    """Refuse a model whose norms are not those of the store.

    Parameters
    ----------
    weight : (layer, site, feature) float32, as stored
    """
    from capture.sites.place import norm_parameters

    try:
        found = {site.module: norm_parameters(loaded.model, site)[0] for site in placed.sites}
    except AttributeError as error:  # torch has no such module
        _refuse(path, loaded, attributes, [f"modules ({error})"])
        raise
    other = [
        site.module
        for site in placed.sites
        if not np.array_equal(found[site.module], weight[site.layer, placed.names.index(site.name)])
    ]
    if other:
        _refuse(path, loaded, attributes, [f"norm weights (of {other[0]}, and {len(other) - 1} more)"])


def check_nll(
    path: Path, loaded: Loaded, attributes: Mapping[str, Any], stored: npt.NDArray[Any], found: npt.NDArray[Any]
) -> None:
    """Refuse a model that does not predict as the store says.

    Parameters
    ----------
    stored, found : (sequence, position) negative log-likelihoods in nats; position 0 is passed over
    """
    difference = np.abs(stored[:, 1:].astype(np.float64) - found[:, 1:]).mean() if stored.shape[1] > 1 else np.nan
    most = MOST_NLL_DIFFERENCE.get(loaded.attributes["compute_dtype"], _OTHER_DTYPES)
    if not difference <= most:
        told = f"mean difference {difference:.3g} nats a token, expected {most:g} or less"
        _refuse(path, loaded, attributes, [f"negative log-likelihood ({told})"])


def _hub_commit(named: str, attributes: Mapping[str, Any]) -> str | None:
    """Commit of the hub that was captured; None for what is of this machine, or was when it was captured."""
    commit = attributes.get("model_revision")
    local = not isinstance(commit, str) or ":" in commit or named == OFFLINE_MODEL or user_path(named).exists()
    return None if local else commit


def _refuse(path: Path, loaded: Loaded, attributes: Mapping[str, Any], differences: list[str]) -> None:
    if not differences:
        return
    revisions = [str(value.get("model_revision")) for value in (attributes, loaded.attributes)]
    hint = "" if revisions[0] == revisions[1] else f"; revision {revisions[0]} in the store, {revisions[1]} at hand"
    raise OutliersError(
        f"{loaded.attributes['model_id']} is not the model of {path}: it differs in {'; '.join(differences)}{hint}; "
        "name the model that was captured with --model, or capture this one"
    )


def _site_map(path: Path, attributes: Mapping[str, Any]) -> SiteMap:
    """The sites that a store's attributes list."""
    from capture.sites.place import FINAL, Site, SiteMap

    try:
        rows = [Site(**{**row, "feeds": tuple(row["feeds"])}) for row in attributes["sites"]]
        final = next(row for row in rows if row.name == FINAL)
        placed = SiteMap(tuple(row for row in rows if row.name != FINAL), final, final.width)
        if not placed.names or not all(isinstance(text, str) for row in rows for text in (row.module, *row.feeds)):
            raise ValueError("no names of modules")
        return placed
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise OutliersError(
            f"{path} does not say which modules were read ({type(error).__name__}: {error}); expected the attribute "
            "sites, as outliers capture writes it; capture again"
        ) from error
