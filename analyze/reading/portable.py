"""A store as a Dataset that every format takes: for copies by xarray."""

from __future__ import annotations

import json
from typing import Any

import xarray as xr

from analyze.reading.open import as_dataset
from analyze.types import Store


def portable(store: Store) -> xr.Dataset:
    """A store, or a part of one, ready for `to_netcdf`, `to_zarr` and the like.

    The values are those of the store, without `digest`, which binds them to that store alone. What a format might not
    take is left out or told otherwise: how the store was chunked and encoded, attributes that are null, and lists and
    objects in attributes, which become JSON texts.

    Parameters
    ----------
    store : path or URL as for `open_store`, or a Dataset

    Returns
    -------
    lazy Dataset

    Raises
    ------
    OutliersError
        As `open_store`.
    """
    data = as_dataset(store).drop_encoding().drop_vars("digest", errors="ignore")
    data.attrs = {name: _plain(value) for name, value in data.attrs.items() if value is not None}
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)  # netCDF knows none
    return json.dumps(value) if isinstance(value, dict | list | tuple) else value
