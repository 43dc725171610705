"""A store on disk as a validated, lazy Dataset. Damage surfaces as an error that names the place, never as a value."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from dask import is_dask_collection, optimize
from dask.core import flatten
from dask.local import get_sync

from analyze.chunks import layout
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
from capture.store import MISSING, decode, open_group, read_chunk, read_index, stored_array

Place = tuple[int, ...]


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
    """One array of a store, read on demand and checked.

    zarr reads a chunk whose file is missing as fill values. Here every chunk that a selection touches must be there.

    Parameters
    ----------
    path : folder of the store
    name : name of the variable
    labels : names of the sites, for error messages
    """

    def __init__(self, path: Path, name: str, labels: tuple[str, ...]) -> None:
        self._path, self._name, self._labels = path, name, labels
        self._open()

    def _open(self) -> None:
        array = zarr.open_array(self._path / self._name, mode="r")
        self._array, self._layout = array, layout(array)
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.ndim = len(self.shape)

    def __getstate__(self) -> tuple[Path, str, tuple[str, ...]]:
        return self._path, self._name, self._labels

    def __setstate__(self, state: tuple[Path, str, tuple[str, ...]]) -> None:
        self._path, self._name, self._labels = state
        self._open()

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        slices, inner = box(key, self.shape)
        touched = list(self._touched(slices))
        try:
            values = np.asarray(self._array[slices]) if self._layout is None else self._decoded(slices, touched)
            return np.asarray(values[inner])
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split()).split(". ")[0]
            raise self._damage(slices, reason) from error

    def _touched(self, slices: tuple[slice, ...]) -> Iterator[tuple[Place, Path, tuple[int, int]]]:
        """Chunks of a selection, each with its file, and its offset and length there; every one must be on disk."""
        chunks = self._array.chunks
        whole = chunks if self._array.shards is None else self._array.shards
        inside = tuple(w // c for w, c in zip(whole, chunks, strict=True))
        indices: dict[Path, npt.NDArray[np.uint64]] = {}
        for place in itertools.product(
            *(range(part.start // c, -(-part.stop // c)) for part, c in zip(slices, chunks, strict=True))
        ):
            key = self._array.metadata.encode_chunk_key(tuple(p // i for p, i in zip(place, inside, strict=True)))
            file = self._path / self._name / key
            if not file.is_file():
                raise self._damage(slices, f"file {self._name}/{key} is missing")
            if self._array.shards is None:
                yield place, file, (0, file.stat().st_size)
                continue
            if file not in indices:
                try:
                    indices[file] = read_index(file, inside)
                except (ValueError, OSError) as error:
                    raise self._damage(slices, str(error)) from error
            offset, length = indices[file][tuple(p % i for p, i in zip(place, inside, strict=True))]
            if offset == MISSING:
                corner = [slice(p * c, p * c + 1) for p, c in zip(place, chunks, strict=True)]
                raise self._damage(corner, "a chunk is missing")
            yield place, file, (int(offset), int(length))

    def _decoded(
        self, slices: tuple[slice, ...], touched: Sequence[tuple[Place, Path, tuple[int, int]]]
    ) -> npt.NDArray[Any]:
        """Values of a selection, its chunks decoded by this thread."""
        kind = self._layout
        assert kind is not None
        result = np.empty([part.stop - part.start for part in slices], kind.dtype)
        for place, file, (offset, length) in touched:
            encoded = read_chunk(file, offset, length)
            chunk = decode(encoded, kind.dtype, kind.chunk, compressed=kind.compressed)
            source, target = [], []
            for part, p, c in zip(slices, place, chunk.shape, strict=True):
                start, stop = max(part.start, p * c), min(part.stop, (p + 1) * c)
                source.append(slice(start - p * c, stop - p * c))
                target.append(slice(start - part.start, stop - part.start))
            # Nearly a whole chunk is passed on as it is; a small part must not keep the rest in memory.
            if len(touched) == 1 and 2 * result.size >= chunk.size:
                return chunk[tuple(source)]
            result[tuple(target)] = chunk[tuple(source)]
        return result

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
            f"{self._path}: {self._name} is damaged{place} ({reason}); "
            "outliers verify lists all damage; restore the file from a copy, or capture again"
        )


def fingerprint(path: Path) -> str:
    """Digest of what identifies a store's content: its metadata, and name, size and time of each file of its arrays.

    Parameters
    ----------
    path : folder of the store
    """
    digest = hashlib.sha256((path / "zarr.json").read_bytes())
    for name in sorted(VARIABLES):
        folder = path / name
        if folder.is_dir():
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                status = entry.stat()
                digest.update(f"{name}/{entry.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def open_store(path: Path | str, *, partial: bool = False) -> xr.Dataset:
    """Open a store.

    Parameters
    ----------
    path : folder that `outliers capture` made
    partial : accept a store whose capture is unfinished; its sequences that are not `done` cannot be read

    Returns
    -------
    Dataset of dask arrays, one dask chunk for each chunk of the store; dimensions `signal`, `sequence`, `layer`,
    `site`, `position`, `feature`; attributes as captured

    Raises
    ------
    OutliersError
        Missing store, no store, newer format version, unfinished capture, missing variable, wrong dimensions or dtype.
        Reading a damaged or missing chunk raises it later, at compute time.
    """
    path = Path(path)
    group = open_group(path)
    attributes = dict(group.attrs)
    raw = attributes.get("raw")
    if raw not in RAW_CHOICES:
        raise OutliersError(
            f"{path}: attribute raw is {raw!r}; expected one of {', '.join(RAW_CHOICES)}; capture again"
        )
    try:
        arrays = {name: array for name, array in group.arrays() if name in VARIABLES or name in COORDINATES}
    except (ValueError, KeyError, TypeError) as error:
        raise OutliersError(f"the metadata of {path} are damaged ({error}); restore zarr.json from a copy") from error
    wanted = (*COORDINATES, *(name for name in stored_variables(str(raw), bias="norm_bias" in arrays)))
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise OutliersError(
            f"{path}: no variable {', '.join(missing)}; the store is damaged: restore it, or capture again"
        )
    try:
        labels = tuple(str(label) for label in np.asarray(arrays[SITE][...]))
        signals = tuple(str(label) for label in np.asarray(arrays[SIGNAL][...]))
    except (ValueError, RuntimeError, OSError) as error:
        raise OutliersError(f"{path}: the coordinates are damaged ({error}); restore them from a copy") from error
    if signals != SIGNALS:
        raise OutliersError(f"{path}: signal is {', '.join(signals)}; expected {', '.join(SIGNALS)}")
    sizes: dict[str, int] = {SIGNAL: len(signals), SITE: len(labels)}
    for name in wanted[len(COORDINATES) :]:
        _check(path, arrays[name], name, sizes)
    if min(sizes.values()) == 0:
        empty = ", ".join(dim for dim, size in sizes.items() if size == 0)
        raise OutliersError(f"{path}: dimension {empty} is empty; capture again")

    mark = fingerprint(path)
    data = {}
    for name in wanted[len(COORDINATES) :]:
        source = StoredArray(path, name, labels)
        lazy = da.from_array(
            source,
            chunks=arrays[name].chunks,
            name=array_name(mark, name),
            asarray=False,
            fancy=False,
            meta=np.empty((0,) * source.ndim, source.dtype),
        )
        data[name] = (VARIABLES[name].dims, lazy, dict(arrays[name].attrs))
    coordinates: dict[str, Any] = {
        SIGNAL: list(signals),
        SITE: list(labels),
        **{dim: np.arange(sizes[dim]) for dim in (SEQUENCE, LAYER, POSITION, FEATURE)},
    }
    store = xr.Dataset(data, coords=coordinates, attrs=attributes)
    store.encoding.update(source=str(path), fingerprint=mark)
    if not partial:
        done = loaded(store["done"])
        if not done.all():
            raise OutliersError(
                f"{path}: the capture is unfinished, {int(done.sum())} of {done.size} sequences are done; "
                "run the same outliers capture command again, and it goes on where it stopped"
            )
    return store


def token_texts(store: xr.Dataset) -> dict[int, str]:
    """Text of every token that occurs in a store; empty where the store keeps none or the Dataset is not from a file.

    Raises
    ------
    OutliersError
        The texts are damaged.
    """
    source = store.encoding.get("source")
    if source is None or not (Path(source) / VOCABULARY).is_dir():
        return {}
    try:
        group = open_group(source)
        arrays = [stored_array(group, f"{VOCABULARY}/{name}") for name in ("id", "text")]
        if any(array.nchunks_initialized < array.nchunks for array in arrays):
            raise ValueError("a file is missing")  # zarr alone would read fill values
        ids, texts = (np.asarray(array[...]) for array in arrays)
        if ids.ndim != 1 or ids.shape != texts.shape or ids.dtype.kind != "i":
            raise ValueError(f"id is {ids.dtype} {ids.shape} and text {texts.dtype} {texts.shape}")
        return {int(number): str(text) for number, text in zip(ids, texts, strict=True)}
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise OutliersError(
            f"{source}: {VOCABULARY} is damaged ({reason}); restore that folder from a copy, or remove it"
        ) from error


def loaded(array: xr.DataArray) -> npt.NDArray[Any]:
    """Values of a small array, read-only, computed by this thread; a scheduler would cost more than it brings."""
    # As a function: at the name of a scheduler dask imports all of dask.distributed, a second's work.
    if is_dask_collection(array.data) and array.data.npartitions == 1:
        # dask copies a result that is a single chunk, for fear of somebody's writing to it.
        (data,) = optimize(array.data)
        values = np.asarray(get_sync(data.__dask_graph__(), list(flatten(data.__dask_keys__())))[0])
        values = values.view()
        values.flags.writeable = False
        return values
    return np.asarray(array.compute(scheduler=get_sync).values)


def array_name(mark: str, name: str) -> str:
    """Dask name of a variable of the store with this fingerprint; a changed or sliced array has another name."""
    return f"outliers-{mark}-{name}"


def _check(path: Path, array: zarr.Array[Any], name: str, sizes: dict[str, int]) -> None:
    expected = VARIABLES[name]
    dims = getattr(array.metadata, "dimension_names", None)
    if dims is None or tuple(dims) != expected.dims:
        found = "no dimension names" if dims is None else "dimensions (" + ", ".join(map(str, dims)) + ")"
        raise OutliersError(f"{path}: {name} has {found}; expected ({', '.join(expected.dims)}); capture again")
    if np.dtype(array.dtype) != np.dtype(expected.dtype):
        raise OutliersError(f"{path}: {name} is {array.dtype}; expected {expected.dtype}; capture again")
    for dim, size in zip(expected.dims, array.shape, strict=True):
        if sizes.setdefault(dim, size) != size:
            raise OutliersError(f"{path}: {name} has {size} along {dim}, other variables {sizes[dim]}; capture again")
