"""A store on disk as a validated, lazy Dataset. Damage surfaces as an error that names the place, never as a value."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from analyze.buffers import BUFFERS
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
    MISSING,
    TOKEN_TEXTS,
    ArrayMetadata,
    Folder,
    Location,
    decode,
    decode_strings,
    index_bytes,
    parse_index,
    read_array_metadata,
    read_metadata,
)

Place = tuple[int, ...]

_TOGETHER = 16  # files of a distant store that are asked for at once
_SMALL = 2**25  # bytes of an array that is not worth more than one journey
_OVERHEAD = 64  # bytes that encoding can add to a chunk, at most
_CHECKSUM = 4
_MOST_JSON = 2**20


def box(key: Any, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[Any, ...]]:
    """Split a selection of integers and slices of any step, as dask makes them, into a box and what to take of it.

    Parameters
    ----------
    key : index, or tuple of at most as many as there are dimensions
    shape : of the array

    Returns
    -------
    box : (start, stop) slices
    inner : selection of the box
    """
    keys = key if isinstance(key, tuple) else (key,)
    keys += (slice(None),) * (len(shape) - len(keys))
    slices: list[slice] = []
    inner: list[Any] = []
    for part, size in zip(keys, shape, strict=True):
        span = range(size)[part] if isinstance(part, slice) else range(int(part), int(part) + 1)
        low, high = (min(span[0], span[-1]), max(span[0], span[-1])) if len(span) else (0, -1)
        slices.append(slice(low, high + 1))
        inner.append(slice(None, None, span.step) if isinstance(part, slice) else 0)
    return tuple(slices), tuple(inner)


class StoredArray:
    """One array of a store, read on demand and checked, wherever the store is.

    zarr reads a chunk whose file is missing as fill values. Here every chunk that a selection touches must be there,
    match its checksum and have the size that the metadata say.

    Parameters
    ----------
    store : where it is
    name : name of the variable
    labels : names of the sites, for error messages
    metadata : of the array; read from its own file where None
    """

    def __init__(
        self, store: Location | Path | str, name: str, labels: tuple[str, ...], metadata: ArrayMetadata | None = None
    ) -> None:
        location = open_location(store)
        self._location, self._name, self._labels = location, name, labels
        self._metadata = read_array_metadata(location, name) if metadata is None else metadata
        self.shape = self._metadata.shape
        self.dtype: np.dtype[Any] = np.dtype(self._metadata.dtype)
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        slices, inner = box(key, self.shape)
        try:
            return np.asarray(self._decoded(slices)[inner])
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split()).split(". ")[0]
            raise self._damage(slices, reason) from error

    def _decoded(self, slices: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Values of a selection, its chunks decoded by this thread."""
        about = self._metadata
        spans = [range(part.start // c, -(-part.stop // c)) for part, c in zip(slices, about.chunk, strict=True)]
        touched = list(itertools.product(*spans))
        dtype = self.dtype.newbyteorder("<")
        result: npt.NDArray[Any] | None = None
        for place, encoded in self._encoded(slices, touched):
            chunk = decode(encoded, dtype, about.chunk, compressed=about.compressed, empty=BUFFERS.empty)
            source, target = [], []
            for part, p, c in zip(slices, place, chunk.shape, strict=True):
                start, stop = max(part.start, p * c), min(part.stop, (p + 1) * c)
                source.append(slice(start - p * c, stop - p * c))
                target.append(slice(start - part.start, stop - part.start))
            # Nearly a whole chunk is passed on as it is; a small part must not keep the rest in memory.
            if len(touched) == 1 and 2 * math.prod(part.stop - part.start for part in slices) >= chunk.size:
                return chunk[tuple(source)]
            if result is None:
                result = np.empty([part.stop - part.start for part in slices], dtype)
            result[tuple(target)] = chunk[tuple(source)]
        return np.empty([part.stop - part.start for part in slices], dtype) if result is None else result

    def _encoded(self, slices: tuple[slice, ...], touched: list[Place]) -> Iterator[tuple[Place, bytes]]:
        """Chunks of a selection, each of which must be there; those of a distant store fetched many at a time."""
        about, step = self._metadata, _TOGETHER if self._location.distant else 1
        for start in range(0, len(touched), step):
            places = touched[start : start + step]
            files = [tuple(p // g for p, g in zip(place, about.grid, strict=True)) for place in places]
            keys = [about.key(file) for file in files]
            if about.shard is None:
                parts = self._location.read(keys, about.chunk_bytes + _OVERHEAD)
            else:
                indices = self._indices(files)
                requests = []
                for place, key, file in zip(places, keys, files, strict=True):
                    index = indices[file]
                    if index is None:
                        raise self._damage(slices, f"file {key} is missing")
                    offset, length = index[tuple(p % g for p, g in zip(place, about.grid, strict=True))]
                    if offset == MISSING:
                        corner = [slice(p * c, p * c + 1) for p, c in zip(place, about.chunk, strict=True)]
                        raise self._damage(corner, "a chunk is missing")
                    if length > about.chunk_bytes + _OVERHEAD or length < _CHECKSUM:
                        raise ValueError(f"file {key} is cut short, or its index says what cannot be")
                    requests.append((key, int(offset), int(length)))
                parts = list(self._location.ranges(requests))
            for place, key, part in zip(places, keys, parts, strict=True):
                if part is None:
                    raise self._damage(slices, f"file {key} is missing")
                yield place, part

    def _indices(self, files: Sequence[Place]) -> dict[Place, npt.NDArray[np.uint64] | None]:
        """Indices of shards; of a distant store those of the next shards too, in one journey."""
        about = self._metadata
        wanted = set(files)
        if self._location.distant and SEQUENCE in VARIABLES[self._name].dims:
            axis = VARIABLES[self._name].dims.index(SEQUENCE)
            for file in files:
                first = file[axis] // _TOGETHER * _TOGETHER
                stop = min(first + _TOGETHER, about.files[axis])
                wanted |= {(*file[:axis], n, *file[axis + 1 :]) for n in range(first, stop)}
        order = sorted(wanted)
        keys = [about.key(file) for file in order]
        tails = self._location.tails(keys, index_bytes(about.grid))
        found = dict(zip(order, zip(keys, tails, strict=True), strict=True))
        return {
            file: None if (tail := found[file][1]) is None else parse_index(*tail, about.grid, found[file][0])
            for file in files
        }

    def _damage(self, slices: Any, reason: str) -> OutliersError:
        where = []
        for dim, part, size in zip(VARIABLES[self._name].dims, slices, self.shape, strict=True):
            span = range(*part.indices(size))
            if dim in (SEQUENCE, LAYER, SITE, SIGNAL) and len(span):
                label = {SITE: self._labels, SIGNAL: SIGNALS}.get(dim)
                names = [str(n) if label is None else label[n] for n in (span[0], span[-1])]
                where.append(f"{dim} {names[0]}" if names[0] == names[1] else f"{dim}s {names[0]} to {names[1]}")
        place = f" at {', '.join(where)}" if where else ""
        return OutliersError(
            f"{self._location}: {self._name} is damaged{place} ({reason}); "
            "outliers verify lists all damage; restore the file from a copy, or capture again"
        )


def fingerprint(path: Path) -> str:
    """Digest of what identifies the content of a store in a folder.

    Parameters
    ----------
    path : folder of the store
    """
    return Folder(path).fingerprint()


def strings(location: Location, about: ArrayMetadata) -> tuple[str, ...]:
    """Values of a one-dimensional array of strings in one chunk.

    Raises
    ------
    ValueError, OSError
        They are damaged, or another array.
    """
    if about.dtype != "string" or about.chunk != about.shape or len(about.shape) != 1 or about.shard is not None:
        raise ValueError(f"{about.name} is {about.dtype}, in chunks of {about.chunk}; expected strings in one chunk")
    key = about.key((0,))
    (encoded,) = location.read([key], about.chunk_bytes + _OVERHEAD)
    if encoded is None:
        raise ValueError(f"file {key} is missing")
    return tuple(decode_strings(encoded, about.shape[0]))


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
        (encoded,) = location.read([key], numbers.chunk_bytes + _OVERHEAD)
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


def by_sequence(*arrays: xr.DataArray) -> Callable[[int], list[npt.NDArray[Any]]]:
    """Values of the n-th sequence of several arrays, as from `loaded`, by a function that threads may share.

    Where a sequence is one chunk of each, the graph is put in order once for all sequences; else for each.
    """
    if not all(_one_chunk_a_sequence(array) for array in arrays):
        return lambda n: [loaded(array.isel({SEQUENCE: n})) for array in arrays]
    lazy = optimize(*(array.data for array in arrays))
    graph = dict(itertools.chain.from_iterable(part.__dask_graph__().items() for part in lazy))
    keys = [list(flatten(part.__dask_keys__())) for part in lazy]

    def values(n: int) -> list[npt.NDArray[Any]]:
        wanted = [blocks[n] for blocks in keys]
        return [found[0] for found in _computed(cull(graph, wanted)[0], wanted)]

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
