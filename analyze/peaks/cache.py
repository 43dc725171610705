"""Peaks of views, and step functions of sweeps, that have been computed once, kept in the user's cache folder.

A view is a small Zarr group with the format's own checksums, found by the fingerprint of store and view. Nothing is
kept in a store or believed of one: whoever hands a store on could have put other peaks there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr

from analyze.peaks.stream import SequencePeaks
from analyze.question.view import View
from analyze.reading.arrays import StoredArray
from analyze.reading.lazy import array_name
from capture.errors import OutliersError
from capture.store.chunks import CHECKSUM_BYTES, encode
from capture.store.drafts import draft_folder, hidden, sweep
from capture.store.files import AtomicFile
from capture.store.layout import KEYS
from capture.store.location import Location
from capture.store.paths import user_path
from capture.store.schema import VARIABLES

_VERSION: Final = 3  # raised whenever peaks of the same view come out differently, or are kept differently
_DEFAULT_GB: Final = 10.0
_IN_USE: Final = 3600.0  # seconds in which what was used last is left alone: another process may be reading it
_DIGEST_BYTES: Final = 32

Shapes = dict[str, tuple[int, ...]]


def cache_folder() -> Path:
    """Where cached views are; `XDG_CACHE_HOME` moves it."""
    base = os.environ.get("XDG_CACHE_HOME")
    return user_path(base if base else "~/.cache") / "outlier-features" / "views"


def cache_key(store: xr.Dataset, view: View, *more: str | float) -> str | None:
    """Name of a view, or of what more was made of it; None where the Dataset is not just what `open_store` gave."""
    identity = content_mark(store) if as_opened(store) else None
    if identity is None:
        return None
    text = json.dumps({"version": _VERSION, "store": identity, "view": asdict(view.view), "more": more}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def as_opened(store: xr.Dataset) -> bool:
    """Whether a Dataset is just what `open_store` gave, so that what is known of the store is true of it."""
    mark = store.encoding.get("mark")
    if mark is None or "location" not in store.encoding:
        return False
    return all(
        getattr(variable.data, "name", None) == array_name(mark, str(name))
        for name, variable in store.data_vars.items()
    )


def content_mark(store: xr.Dataset) -> str | None:
    """What identifies the content of a store as it was opened; None where nothing does for sure."""
    location: Location = store.encoding["location"]
    if not location.remote:
        mark: str = store.encoding["mark"]
        return mark
    if "content" not in store.encoding:
        store.encoding["content"] = location.fingerprint()
    content: str | None = store.encoding["content"]
    return content


def unchanged(store: xr.Dataset) -> bool:
    """Whether the files of a store are those that were opened."""
    location: Location = store.encoding["location"]
    return location.fingerprint() == content_mark(store)


class _KeptArray(StoredArray):
    """An array of a cached view, whose remedy is another than that of a store."""

    def whole(self, chunk: tuple[int, ...]) -> bool:
        """Whether all files of chunks of this shape are there and none is cut short; their content is checked later."""
        about = self._metadata
        size = about.chunk_bytes + CHECKSUM_BYTES
        files = self._location.folder
        return (
            files is not None
            and about.chunk == chunk
            and all((files / key).stat().st_size == size for key in about.keys())  # noqa: SIM118  (no mapping)
        )

    def _damage(self, slices: Any, reason: str) -> OutliersError:
        return OutliersError(
            f"cached {self._name} is damaged ({reason}); remove the folder {self._location} "
            "and run the same command again"
        )


def read(key: str, shapes: Shapes) -> dict[str, da.Array] | None:
    """Cached arrays, one dask chunk for each sequence; None where there are none, or not whole."""
    place = cache_folder() / key
    arrays: dict[str, da.Array] = {}
    try:
        os.utime(place)
        for name, shape in shapes.items():
            array = _KeptArray(place, name, ())
            chunks, meta = (1, 1, *shape[1:]), np.empty((0,) * array.ndim, np.float32)
            if array.shape != (1, *shape) or array.dtype != np.float32 or not array.whole(chunks):
                return None
            label = f"outliers-view-{key}-{name}"
            arrays[name] = da.from_array(array, chunks, name=label, asarray=False, fancy=False, meta=meta)[0]
    except (OSError, OutliersError):
        return None
    return arrays


def writable() -> bool:
    """Whether anything can be kept."""
    if cache_folder().parts[0].startswith("~"):  # a user without a home
        return False
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(cache_folder(), os.W_OK)


def write(
    store: xr.Dataset, key: str, view: View, shapes: Shapes, parts: Iterable[SequencePeaks]
) -> dict[str, da.Array]:
    """Write peaks as they come, in order of sequences, and give them their name when they are whole.

    Raises
    ------
    OutliersError
        The disk is full, or the store changed while it was read.
    """
    place = cache_folder() / key
    origin = {"store": store.encoding["source"], "content": content_mark(store), "view": asdict(view.view)}
    try:
        with draft_folder(place) as draft:
            _write_parts(draft, origin, shapes, parts)
            if not unchanged(store):
                raise OutliersError(f"{store.encoding['source']} changed while it was read; run the same command again")
            arrays = _take_place(draft, place, key, shapes)
    except OSError as error:
        raise OutliersError(
            f"cannot keep peaks in {place}: {error.strerror}; free some space, or set XDG_CACHE_HOME"
        ) from error
    tidy(store)
    return arrays


def _take_place(draft: Path, place: Path, key: str, shapes: Shapes) -> dict[str, da.Array]:
    """Give a finished draft its name; where an equal process was first, what it made is as good, and stays."""
    for _ in range(2):
        with contextlib.suppress(OSError):
            draft.rename(place)
        arrays = read(key, shapes)
        if arrays is not None:
            return arrays
        with contextlib.suppress(OSError):  # not whole
            place.rename(hidden(place))
    raise OutliersError(f"cannot keep peaks in {place}; remove it and run the same command again")


def _write_parts(draft: Path, origin: dict[str, Any], shapes: Shapes, parts: Iterable[SequencePeaks]) -> None:
    import zarr  # a tenth of a second, which reading does without
    from zarr.codecs import BytesCodec, Crc32cCodec

    group = zarr.create_group(draft, attributes=origin)
    for name, shape in shapes.items():
        group.create_array(
            name,
            shape=(1, *shape),
            chunks=(1, 1, *shape[1:]),
            dtype="float32",
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            fill_value=np.nan,
            dimension_names=VARIABLES[name].dims,
            chunk_key_encoding=KEYS,
        )
    for part in parts:
        for name, shape in shapes.items():
            for n, values in enumerate(getattr(part, name), part.start):
                key = ".".join(["c", "0", str(n), *("0" for _ in shape[1:])])
                (draft / name / key).write_bytes(encode(np.ascontiguousarray(values)[None, None], "none"))


def read_bytes(key: str) -> bytes | None:
    """What `write_bytes` kept; None where it is not there, or not as it was written."""
    try:
        data = (cache_folder() / key).read_bytes()
    except OSError:
        return None
    content = data[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == data[:_DIGEST_BYTES] else None


def write_bytes(store: xr.Dataset, key: str, content: bytes) -> None:
    """Keep some bytes with their digest where that is possible; an answer is complete without."""
    if not unchanged(store) or not writable():
        return
    with contextlib.suppress(OSError), AtomicFile(cache_folder() / key) as file:
        file.write(hashlib.sha256(content).digest() + content)


def names(start: str) -> list[str]:
    """Names, in order, under which `write_bytes` kept something, of those that start so."""
    return sorted(entry.name for entry in _entries() if entry.name.startswith(start))


def tidy(store: xr.Dataset) -> None:
    """Remove views of what this store was before, drafts of killed processes, and above the bound the least used.

    The bound is 10 GB, or `OUTLIERS_CACHE_GB`. What was used within the last hour stays.
    """
    sweep(cache_folder())
    now = time.time()
    kept: list[tuple[float, int, Path]] = []
    for entry in _entries():
        with contextlib.suppress(OSError, ValueError, KeyError):
            age = now - entry.stat().st_mtime
            if entry.name.startswith("."):  # somebody writes it
                continue
            if _outdated(entry, store):
                _remove(entry)
            else:
                kept.append((age, _size(entry), entry))
    total, bound = sum(size for _, size, _ in kept), _bound()
    for age, size, entry in sorted(kept, reverse=True):
        if total <= bound or age < _IN_USE:
            break
        _remove(entry)
        total -= size


def _entries() -> list[Path]:
    try:
        return list(cache_folder().iterdir())
    except OSError:
        return []


def _outdated(entry: Path, store: xr.Dataset) -> bool:
    """Whether an entry is a view of what was in the place of this store before."""
    if not (entry / "zarr.json").is_file():
        return False
    origin = json.loads((entry / "zarr.json").read_text())["attributes"]
    return bool(origin["store"] == store.encoding["source"] and origin["content"] != content_mark(store))


def _size(entry: Path) -> int:
    files = (file for file in entry.rglob("*") if file.is_file()) if entry.is_dir() else (entry,)
    return sum(file.stat().st_size for file in files)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _bound() -> float:
    text = os.environ.get("OUTLIERS_CACHE_GB", str(_DEFAULT_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise OutliersError(f"OUTLIERS_CACHE_GB is {text!r}; expected a number of gigabytes, such as 10")
    return gigabytes * 1e9
