"""A store on disk as a validated, lazy Dataset. Damage surfaces as an error that names the place, never as a value."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import is_dask_collection, optimize
from dask.core import flatten
from dask.local import get_sync
from dask.optimization import cull

from analyze.chunks import OVERHEAD, StoredArray, strings
from analyze.sharing.location import open_location
from capture.schema import (
    COORDINATES,
    FEATURE,
    LAYER,
    POSITION,
    RAW_CHOICES,
    SEQUENCE,
    SIGNAL,
    SIGNALS,
    SITE,
    VARIABLES,
    VOCABULARY,
    OutliersError,
    stored_variables,
)
from capture.store import (
    TOKEN_TEXTS,
    ArrayMetadata,
    Folder,
    Location,
    decode,
    read_metadata,
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
    metadata = read_metadata(location)
    attributes, arrays = metadata.attributes, metadata.arrays
    raw = attributes.get("raw")
    if raw not in RAW_CHOICES:
        raise OutliersError(
            f"{location}: attribute raw is {raw!r}; expected one of {', '.join(RAW_CHOICES)}; capture again"
        )
    wanted = (*COORDINATES, *(name for name in stored_variables(str(raw), bias="norm_bias" in arrays)))
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
    data = {}
    for name in wanted[len(COORDINATES) :]:
        about = arrays[name]
        source = StoredArray(location, name, labels, about)
        # What has no features is small, and is asked for whole.
        few = FEATURE not in VARIABLES[name].dims and math.prod(about.shape) * source.dtype.itemsize <= _SMALL
        lazy = da.from_array(
            source,
            chunks=about.shape if few and location.distant else about.chunk,
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
    store.encoding.update(source=str(location), location=location, mark=mark)
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
    return secrets.token_hex(16) if location.distant else str(location.fingerprint())


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
        return dict(zip(ids.tolist(), strings(location, texts), strict=True))
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise OutliersError(
            f"{location}: {VOCABULARY} is damaged ({reason}); restore that folder from a copy, or remove it"
        ) from error


def loaded(array: xr.DataArray) -> npt.NDArray[Any]:
    """Values of a small array, read-only, computed by this thread; a scheduler would cost more than it brings."""
    # As a function: at the name of a scheduler dask imports all of dask.distributed, a second's work.
    if is_dask_collection(array.data) and array.data.npartitions == 1:
        # dask copies a result that is a single chunk, for fear of somebody's writing to it.
        (data,) = optimize(array.data)
        return _computed(data.__dask_graph__(), list(flatten(data.__dask_keys__())))[0]
    return np.asarray(array.compute(scheduler=get_sync).values)


def by_sequence(*arrays: xr.DataArray) -> Callable[[int, slice], list[npt.NDArray[Any]]]:
    """Values of some features, the last dimension, of the n-th sequence of several arrays, as from `loaded`.

    The function that gives them may be shared by threads.

    Where a sequence is one chunk of each, the graph is put in order once for all sequences; else for each.
    """
    if not all(_one_chunk_a_sequence(array) for array in arrays):
        return lambda n, features: [loaded(array.isel({SEQUENCE: n, FEATURE: features})) for array in arrays]
    lazy = optimize(*(array.data for array in arrays))
    graph = dict(itertools.chain.from_iterable(part.__dask_graph__().items() for part in lazy))
    keys = [list(flatten(part.__dask_keys__())) for part in lazy]

    def values(n: int, features: slice) -> list[npt.NDArray[Any]]:
        wanted = [blocks[n] for blocks in keys]
        return [found[0, ..., features] for found in _computed(cull(graph, wanted)[0], wanted)]

    return values


def _one_chunk_a_sequence(array: xr.DataArray) -> bool:
    expected = (array.shape[0], *(1 for _ in array.shape[1:]))
    return array.dims[0] == SEQUENCE and is_dask_collection(array.data) and array.data.numblocks == expected


def _computed(graph: Mapping[Any, Any], keys: list[Any]) -> list[npt.NDArray[Any]]:
    """Chunks of a graph that is in order, read-only."""
    results = [np.asarray(values).view() for values in get_sync(graph, keys)]
    for values in results:
        values.flags.writeable = False
    return results


def array_name(mark: str, name: str) -> str:
    """Dask name of a variable of the store with this fingerprint; a changed or sliced array has another name."""
    return f"outliers-{mark}-{name}"


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
