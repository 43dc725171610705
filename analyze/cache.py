"""Peaks of views that have been computed once, kept on disk.

A cached view is found by the fingerprint of the store and the view. It lives in the store's folder `.views` where that
can be written, else in the user's cache folder; Zarr readers of the store do not see it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.load import array_name, fingerprint
from analyze.streaming import SequencePeaks
from analyze.view import View
from capture.schema import OutliersError

_VERSION: Final = 1  # raised whenever peaks of the same view come out differently
FOLDER: Final = ".views"

Shapes = dict[str, tuple[int, ...]]


def cache_key(store: xr.Dataset, view: View) -> str | None:
    """Name of a cached view; None where the Dataset is not exactly what `open_store` gave."""
    mark = store.encoding.get("fingerprint")
    if mark is None:
        return None
    for name, variable in store.data_vars.items():
        if getattr(variable.data, "name", None) != array_name(mark, str(name)):
            return None
    text = json.dumps({"version": _VERSION, "store": mark, "view": asdict(view.view)}, sort_keys=True)
    return sha256(text.encode()).hexdigest()[:32]


def _folders(store: xr.Dataset) -> list[Path]:
    source = Path(store.encoding["source"])
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [source / FOLDER, user / "outlier-features" / "views"]


def read(store: xr.Dataset, key: str, shapes: Shapes) -> dict[str, npt.NDArray[np.float32]] | None:
    """Cached arrays, mapped from disk; None where there are none, or not whole."""
    for folder in _folders(store):
        place = folder / key
        if not (place / "manifest.json").is_file():
            continue
        try:
            arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in shapes}
        except (OSError, ValueError):
            continue
        if all(arrays[name].shape == shape and arrays[name].dtype == np.float32 for name, shape in shapes.items()):
            return arrays
    return None


def write(
    store: xr.Dataset, key: str, view: View, shapes: Shapes, parts: Iterable[SequencePeaks]
) -> dict[str, npt.NDArray[np.float32]]:
    """Write peaks as they come and give them their name when they are whole.

    Raises
    ------
    OutliersError
        Neither the store nor the user's cache folder can be written, or the store changed while it was read.
    """
    draft, folder = _draft(store, key)
    try:
        targets: dict[str, Any] = {
            name: np.lib.format.open_memmap(draft / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
            for name, shape in shapes.items()
        }
        for part in parts:
            place = slice(part.start, part.start + len(part.layer_high))
            for name, target in targets.items():
                target[place] = getattr(part, name)
        for target in targets.values():
            target.flush()
        del targets
        source = Path(store.encoding["source"])
        if fingerprint(source) != store.encoding["fingerprint"]:
            raise OutliersError(f"{source} changed while it was read; run the same command again")
        (draft / "manifest.json").write_text(json.dumps({"view": asdict(view.view)}, indent=1))
        final = folder / key
        if final.exists():  # left unfinished, or by another process at the same time
            shutil.rmtree(final, ignore_errors=True)
        try:
            draft.rename(final)
        except OSError:
            if not (final / "manifest.json").is_file():
                raise
        arrays = read(store, key, shapes)
        if arrays is None:
            raise OutliersError(f"{final} was removed while it was written; run the same command again")
        return arrays
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _draft(store: xr.Dataset, key: str) -> tuple[Path, Path]:
    reasons = []
    for folder in _folders(store):
        draft = folder / f".{key}.{secrets.token_hex(4)}.partial"
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            continue
        return draft, folder
    raise OutliersError(
        f"no folder to keep the peaks of this view in ({'; '.join(reasons)}); "
        "set XDG_CACHE_HOME to one that can be written"
    )
