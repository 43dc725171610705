"""A store on disk as a validated, lazy Dataset. Damage surfaces as an error that names the place, never as a value."""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from analyze.reading.arrays import StoredArray, refuse_replaced, strings
from analyze.reading.digests import Digests, Listed
from analyze.reading.lazy import array_name, loaded
from analyze.reading.locations import open_location
from analyze.types import Store
from capture.errors import OutliersError, one_line
from capture.store.chunks import OVERHEAD, decode
from capture.store.identity import store_id
from capture.store.location import Folder, Location
from capture.store.metadata import TOKEN_TEXTS, ArrayMetadata, read_metadata
from capture.store.schema import (
    COORDINATES,
    DIGESTED,
    FEATURE,
    FIXED,
    LAYER,
    POSITION,
    RAW_CHOICES,
    SEQUENCE,
    SIGNAL,
    SIGNALS,
    SITE,
    VARIABLES,
    VOCABULARY,
    stored_variables,
)

_SMALL = 2**25  # bytes of an array that is not worth more than one journey
_MOST_JSON = 2**20


def fingerprint(path: Path) -> str:
    """Digest of what identifies the content of a store in a folder.

    Parameters
    ----------
    path : folder of the store
    """
    return Folder(path).fingerprint()


def open_store(path: Path | str, *, partial: bool = False) -> xr.Dataset:
    """Open a store.

    Parameters
    ----------
    path : folder that `outliers capture` made, a `.zarr.zip` file that `outliers pack` made, or a URL of either:
        `https://`, `s3://BUCKET/PATH` or `hf://datasets/ORG/NAME/PATH`
    partial : accept a store whose capture is unfinished; its sequences that are not `done` cannot be read

    Returns
    -------
    Dataset of dask arrays, one dask chunk for each chunk of the store (of a distant store, small arrays are one
    chunk); dimensions `signal`, `sequence`, `layer`, `site`, `position`, `feature`; attributes as captured

    Raises
    ------
    OutliersError
        Missing store, no store, a server that cannot be reached or refuses, newer format version, unfinished
        capture, missing variable, wrong dimensions or dtype. Reading a damaged or missing chunk raises it later, at
        compute time.
    """
    location = open_location(path)
    root_mark = location.root_mark()
    metadata = read_metadata(location)
    attributes, arrays = metadata.attributes, metadata.arrays
    raw = attributes.get("raw")
    if raw not in RAW_CHOICES:
        raise OutliersError(
            f"{location}: attribute raw is {raw!r}; expected one of {', '.join(RAW_CHOICES)}; capture again"
        )
    wanted = (*COORDINATES, *stored_variables(str(raw), arrays))
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise OutliersError(
            f"{location}: no variable {', '.join(missing)}; the store is damaged: restore it, or capture again"
        )
    try:
        labels, signals = strings(location, arrays[SITE]), strings(location, arrays[SIGNAL])
    except (ValueError, OSError) as error:
        raise OutliersError(f"{location}: the coordinates are damaged ({error}); restore them from a copy") from error
    if signals != SIGNALS:
        raise OutliersError(f"{location}: signal is {', '.join(signals)}; expected {', '.join(SIGNALS)}")
    sizes: dict[str, int] = {SIGNAL: len(signals), SITE: len(labels)}
    for name in wanted[len(COORDINATES) :]:
        _check(location, arrays[name], sizes)
    if min(sizes.values()) == 0:
        empty = ", ".join(dim for dim, size in sizes.items() if size == 0)
        raise OutliersError(f"{location}: dimension {empty} is empty; capture again")

    mark = opening_mark(location)
    digests, identity = None, store_id(attributes)
    if identity is not None and "digest" in arrays:
        digests = Digests(StoredArray(location, "digest", labels, arrays["digest"], root_mark), identity, not partial)
    listed = Listed(location)
    data = {}
    for name in wanted[len(COORDINATES) :]:
        about = arrays[name]
        source = StoredArray(
            location,
            name,
            labels,
            about,
            root_mark,
            digests if name in DIGESTED else None,
            listed if name in FIXED or SEQUENCE not in VARIABLES[name].dims else None,
        )
        # What has no features is small, and is asked for whole.
        few = FEATURE not in VARIABLES[name].dims and math.prod(about.shape) * source.dtype.itemsize <= _SMALL
        lazy = da.from_array(
            source,
            chunks=about.shape if few and location.remote else about.chunk,
            name=array_name(mark, name),
            asarray=False,
            fancy=False,
            meta=np.empty((0,) * source.ndim, source.dtype),
        )
        data[name] = (VARIABLES[name].dims, lazy, dict(about.attributes))
    coordinates: dict[str, Any] = {
        SIGNAL: list(signals),
        SITE: list(labels),
        **{dim: np.arange(sizes[dim]) for dim in (SEQUENCE, LAYER, POSITION, FEATURE)},
    }
    store = xr.Dataset(data, coords=coordinates, attrs=attributes)
    store.encoding.update(source=str(location), location=location, mark=mark, root_mark=root_mark)
    if not partial:
        done = loaded(store["done"])
        if not done.all():
            raise OutliersError(
                f"{location}: the capture is unfinished, {int(done.sum())} of {done.size} sequences are done; "
                "run the same outliers capture command again, and it goes on where it stopped"
            )
    return store


def opening_mark(location: Location) -> str:
    """What the dask arrays of a store are named by: its fingerprint, or where that costs journeys, a name used once."""
    return secrets.token_hex(16) if location.remote else str(location.fingerprint())


def token_texts(store: xr.Dataset) -> dict[int, str]:
    """Text of every token that occurs in a store; empty where the store keeps none or the Dataset is not from a file.

    Raises
    ------
    OutliersError
        The texts are damaged.
    """
    location = store.encoding.get("location")
    if location is None:
        return {}
    arrays = read_metadata(location).arrays
    if not all(name in arrays for name in TOKEN_TEXTS):
        return {}
    numbers, texts = (arrays[name] for name in TOKEN_TEXTS)
    try:
        if numbers.shape != texts.shape or numbers.dtype != "int32" or numbers.chunk != numbers.shape:
            raise ValueError(f"id is {numbers.dtype} {numbers.shape} and text {texts.dtype} {texts.shape}")
        key = numbers.key((0,))
        (encoded,) = location.read([key], numbers.chunk_bytes + OVERHEAD)
        if encoded is None:
            if location.read([f"{VOCABULARY}/zarr.json"], _MOST_JSON) == [None]:
                return {}  # the folder was removed, which consolidated metadata do not know
            raise ValueError(f"file {key} is missing")
        ids = decode(encoded, "int32", numbers.shape, compressed=numbers.compressed)
        found = dict(zip(ids.tolist(), strings(location, texts), strict=True))
    except (ValueError, RuntimeError, OSError) as error:
        reason = one_line(error).split(". ")[0]
        raise OutliersError(
            f"{location}: {VOCABULARY} is damaged ({reason}); restore that folder from a copy, or remove it"
        ) from error
    refuse_replaced(location, store.encoding.get("root_mark"))
    return found


def _check(location: Location, about: ArrayMetadata, sizes: dict[str, int]) -> None:
    name, dims = about.name, about.dims
    expected = VARIABLES[name]
    if dims is None or dims != expected.dims:
        found = "no dimension names" if dims is None else "dimensions (" + ", ".join(map(str, dims)) + ")"
        raise OutliersError(f"{location}: {name} has {found}; expected ({', '.join(expected.dims)}); capture again")
    if about.dtype != expected.dtype:
        raise OutliersError(f"{location}: {name} is {about.dtype}; expected {expected.dtype}; capture again")
    for dim, size in zip(expected.dims, about.shape, strict=True):
        if sizes.setdefault(dim, size) != size:
            raise OutliersError(
                f"{location}: {name} has {size} along {dim}, other variables {sizes[dim]}; capture again"
            )


def as_dataset(store: Store) -> xr.Dataset:
    """Open a path; a Dataset stays what it is, and is numbered where it has no numbers, as plain xarray opens one."""
    if not isinstance(store, xr.Dataset):
        return open_store(store)
    # Without them a chosen sequence would be counted among the chosen ones. A part of the sequences is a store of its
    # own: sequences are chosen by index, and a number kept from the whole would name another one.
    bare = [dim for dim in (LAYER, POSITION, FEATURE) if dim in store.sizes and dim not in store.coords]
    if SEQUENCE in store.sizes and not _counted(store, SEQUENCE):
        bare.append(SEQUENCE)
    return store.assign_coords({dim: np.arange(store.sizes[dim]) for dim in bare}) if bare else store


def _counted(store: xr.Dataset, dim: str) -> bool:
    return dim in store.coords and np.array_equal(store[dim].values, np.arange(store.sizes[dim]))
