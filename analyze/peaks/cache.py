"""Peaks of views, and step functions of sweeps, that have been computed once, kept on disk.

A cached view is found by the fingerprint of the store and the view. It lives in the store's folder `.views` where that
can be written, else, and for stores that are no folder, in the user's cache folder; Zarr readers of the store do not
see it. Everything is sealed (`analyze.peaks.seals`): what another user left in a store is passed over.
"""

from __future__ import annotations

import io
import json
import math
import secrets
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.peaks.seals import BYTES, holds, seal, user_folder
from analyze.peaks.stream import SequencePeaks
from analyze.question.view import View
from analyze.reading.arrays import box
from analyze.reading.lazy import array_name
from capture.errors import OutliersError
from capture.store.location import Location

_VERSION: Final = 2  # raised whenever peaks of the same view come out differently
FOLDER: Final = ".views"

Shapes = dict[str, tuple[int, ...]]


def cache_key(store: xr.Dataset, view: View, *more: str | float) -> str | None:
    """Name of a view, or of what more was made of it; None where the Dataset is not just what `open_store` gave."""
    mark, location = store.encoding.get("mark"), store.encoding.get("location")
    if mark is None or location is None:
        return None
    for name, variable in store.data_vars.items():
        if getattr(variable.data, "name", None) != array_name(mark, str(name)):
            return None
    identity = content_mark(store)
    if identity is None:
        return None
    text = json.dumps({"version": _VERSION, "store": identity, "view": asdict(view.view), "more": more}, sort_keys=True)
    # A seal for a name: two users of one store do not take each other's views away.
    return seal(text.encode(), "key").hex()


def content_mark(store: xr.Dataset) -> str | None:
    """What identifies the content of a store as it was opened; None where nothing does for sure."""
    location: Location = store.encoding["location"]
    if not location.distant:
        mark: str = store.encoding["mark"]
        return mark
    if "content" not in store.encoding:
        store.encoding["content"] = location.fingerprint()
    content: str | None = store.encoding["content"]
    return content


def _unchanged(store: xr.Dataset) -> bool:
    location: Location = store.encoding["location"]
    return location.fingerprint() == content_mark(store)


def _folders(store: xr.Dataset) -> list[Path]:
    home: Path | None = store.encoding["location"].home
    user = user_folder() / "views"
    # A link in a store could lead the writing elsewhere.
    return [user] if home is None or (home / FOLDER).is_symlink() else [home / FOLDER, user]


class SavedArray:
    """A float32 `.npy` file, read by parts of its first dimension, so that memory holds no more than is asked for.

    Parameters
    ----------
    file : path of the file; its seals, one for each index of the first dimension, are beside it
    key : name of the view
    shape : of the array

    Raises
    ------
    ValueError, OSError
        No such file, not of this kind, cut short, or sealed by somebody else.
    """

    def __init__(self, file: Path, key: str, shape: tuple[int, ...]) -> None:
        self._file, self._key, self.shape = file, key, shape
        self.ndim, self.dtype = len(shape), np.dtype(np.float32)
        header = _header(shape)
        self._offset = len(header)
        self._row = math.prod(shape[1:]) * self.dtype.itemsize
        with file.open("rb") as stream:
            # Compared, never parsed: there is one way to write it.
            if stream.read(len(header)) != header or file.stat().st_size != len(header) + shape[0] * self._row:
                raise ValueError(f"{file} is not whole, or of another shape")
        seals = _seals(file).read_bytes()
        own, self._seals = seals[:BYTES], seals[BYTES:]
        if len(self._seals) != self.shape[0] * BYTES or not holds(own, self._seals, key, file.name, str(self.shape)):
            raise ValueError(f"{file} was sealed by somebody else")

    def __getitem__(self, key: Any) -> npt.NDArray[np.float32]:
        (rows, *rest), inner = box(key, self.shape)
        count = (rows.stop - rows.start) * self._row // self.dtype.itemsize
        values = np.fromfile(self._file, self.dtype, count, offset=self._offset + rows.start * self._row)
        for n, row in enumerate(values.reshape(-1, self._row // 4) if values.size == count else [], rows.start):
            if not holds(self._seals[n * BYTES : (n + 1) * BYTES], row.data, self._key, self._file.name, n):
                values = values[:0]
                break
        if values.size != count:
            raise OutliersError(
                f"{self._file} is damaged; remove the folder {self._file.parent} and run the same command again"
            )
        whole = values.reshape(-1, *self.shape[1:])
        return np.asarray(whole[(slice(None), *rest)][inner])


def _header(shape: tuple[int, ...]) -> bytes:
    """Begin of a float32 `.npy` file."""
    written = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(written, about)
    return written.getvalue()


def _seals(file: Path) -> Path:
    return file.with_suffix(".seals")


def read(store: xr.Dataset, key: str, shapes: Shapes) -> dict[str, da.Array] | None:
    """Cached arrays, one dask chunk for each sequence; None where there are none, not whole, or not this user's."""
    for folder in _folders(store):
        place = folder / key
        try:
            saved = {name: SavedArray(place / f"{name}.npy", key, shape) for name, shape in shapes.items()}
        except (OSError, ValueError):
            continue
        return {name: _lazy(array, f"outliers-view-{key}-{name}") for name, array in saved.items()}
    return None


def _lazy(array: SavedArray, name: str) -> da.Array:
    meta = np.empty((0,) * array.ndim, np.float32)
    chunks = (1, *array.shape[1:])
    lazy: da.Array = da.from_array(array, chunks, name=name, asarray=False, fancy=False, meta=meta)
    return lazy


def write(
    store: xr.Dataset, key: str, view: View, shapes: Shapes, parts: Iterable[SequencePeaks]
) -> dict[str, da.Array]:
    """Write peaks as they come, in order of sequences, and give them their name when they are whole.

    Raises
    ------
    OutliersError
        Neither the store nor the user's cache folder can be written, or the store changed while it was read.
    """
    draft, folder = _draft(store, key)
    try:
        _write_parts(draft, key, shapes, parts)
        if not _unchanged(store):
            raise OutliersError(f"{store.encoding['source']} changed while it was read; run the same command again")
        (draft / "view.json").write_text(json.dumps(asdict(view.view), indent=1))
        final = folder / key
        if final.is_symlink():
            final.unlink()
        shutil.rmtree(final, ignore_errors=True)  # not whole, or by another process at the same time
        try:
            draft.rename(final)
        except OSError as error:
            if not final.exists():
                raise OutliersError(f"cannot write {final}: {error.strerror}") from error
        arrays = read(store, key, shapes)
        if arrays is None:
            raise OutliersError(f"{final} was replaced while it was written; remove it and run the same command again")
        return arrays
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_parts(draft: Path, key: str, shapes: Shapes, parts: Iterable[SequencePeaks]) -> None:
    seals = {name: bytearray() for name in shapes}
    with ExitStack() as stack:
        files = {name: stack.enter_context((draft / f"{name}.npy").open("wb")) for name in shapes}
        for name, file in files.items():
            file.write(_header(shapes[name]))
        for part in parts:
            for name, file in files.items():
                try:
                    for row in np.ascontiguousarray(getattr(part, name)):
                        n = len(seals[name]) // BYTES
                        seals[name] += seal(row.data.cast("B"), key, f"{name}.npy", n)
                        file.write(row.data)
                    file.flush()
                except OSError as error:
                    raise OutliersError(
                        f"cannot write {draft}: {error.strerror}; free some space, or set XDG_CACHE_HOME"
                    ) from error
    for name, data in seals.items():
        own = seal(bytes(data), key, f"{name}.npy", str(shapes[name]))
        _seals(draft / f"{name}.npy").write_bytes(own + data)


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
