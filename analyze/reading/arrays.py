"""Arrays of a store, read on demand and checked, wherever the store is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyze.reading.digests import Digests, Listed
from analyze.reading.locations import open_location
from capture.errors import OutliersError, one_line
from capture.store.chunks import CHECKSUM_BYTES, OVERHEAD, decode, decode_strings
from capture.store.location import Location, Range
from capture.store.metadata import ArrayMetadata, read_array_metadata
from capture.store.schema import LAYER, SEQUENCE, SIGNAL, SIGNALS, SITE, VARIABLES
from capture.store.shards import MISSING, index_bytes, parse_index

Place = tuple[int, ...]

_TOGETHER: Final = 16  # files of a distant store that are asked for at once
_FEW: Final = 2  # chunks of a sequence, of which a server is asked for the checksums of all


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
    root_mark : of the store when it was opened, so that no other in its place answers; None to ask no such question
    digests : of the store, for a variable that they speak of; None where there are none
    listed : files of the store's creation, for a variable that they hold; None for any other
    """

    def __init__(
        self,
        store: Location | Path | str,
        name: str,
        labels: tuple[str, ...],
        metadata: ArrayMetadata | None = None,
        root_mark: str | None = None,
        digests: Digests | None = None,
        listed: Listed | None = None,
    ) -> None:
        location = open_location(store)
        self._location, self._name, self._labels, self._root_mark = location, name, labels, root_mark
        self._digests, self._listed = digests, listed
        self._metadata = read_array_metadata(location, name) if metadata is None else metadata
        self.shape = self._metadata.shape
        self.dtype: np.dtype[Any] = np.dtype(self._metadata.dtype)
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        slices, inner = box(key, self.shape)
        try:
            values = np.asarray(self._decoded(slices)[inner])
        except (ValueError, RuntimeError, OSError) as error:
            refuse_replaced(self._location, self._root_mark)
            reason = one_line(error).split(". ")[0]
            raise self._damage(slices, reason) from error
        except OutliersError:
            refuse_replaced(self._location, self._root_mark)
            raise
        refuse_replaced(self._location, self._root_mark)  # behind the reading: nothing can come in between
        return values

    def _decoded(self, slices: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Values of a selection, its chunks decoded by this thread."""
        about = self._metadata
        spans = [range(part.start // c, -(-part.stop // c)) for part, c in zip(slices, about.chunk, strict=True)]
        touched = list(itertools.product(*spans))
        dtype = self.dtype.newbyteorder("<")
        result: npt.NDArray[Any] | None = None
        for place, encoded in self._encoded(slices, touched):
            self._check_digest(place, {place: encoded[-CHECKSUM_BYTES:]})
            chunk = decode(encoded, dtype, about.chunk, compressed=about.compressed)
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

    def _check_digest(self, place: Place, checksums: dict[Place, bytes]) -> None:
        """Refuse what was captured for another sequence or store, as soon as all checksums of a sequence are known."""
        if self._digests is None:
            return
        axis = VARIABLES[self._name].dims.index(SEQUENCE)
        chunks = math.prod(map(len, self._spans(place[axis])))
        if not self._digests.agree(self._name, place[axis], checksums, chunks):
            corner = tuple(slice(place[axis], place[axis] + 1) if i == axis else slice(0, 0) for i in range(self.ndim))
            raise self._damage(corner, "it was captured for another sequence or store: its digest is another")

    def _spans(self, sequence: int) -> list[range]:
        """Along each dimension, where the chunks of a sequence are."""
        about, axis = self._metadata, VARIABLES[self._name].dims.index(SEQUENCE)
        spans = [range(files * grid) for files, grid in zip(about.files, about.grid, strict=True)]
        spans[axis] = range(sequence, sequence + 1)
        return spans

    def _beside(self, places: list[Place]) -> list[Place]:
        """Other chunks of the same sequences, whose checksums are read along; a server is not asked for many."""
        if self._digests is None:
            return []
        axis, beside = VARIABLES[self._name].dims.index(SEQUENCE), []
        for sequence in {place[axis] for place in places}:
            siblings = list(itertools.product(*self._spans(sequence)))
            if len(siblings) <= _FEW or not self._location.remote:
                known = {*places, *self._digests.seen(self._name, sequence)}
                beside += [place for place in siblings if place not in known]
        return beside

    def _encoded(self, slices: tuple[slice, ...], touched: list[Place]) -> Iterator[tuple[Place, bytes]]:
        """Chunks of a selection, each of which must be there; those of a distant store fetched many at a time."""
        about, step = self._metadata, _TOGETHER if self._location.remote else 1
        for start in range(0, len(touched), step):
            places = touched[start : start + step]
            if about.shard is None:
                keys = [about.key(place) for place in places]
                for place, key, part in zip(
                    places, keys, self._location.read(keys, about.chunk_bytes + OVERHEAD), strict=True
                ):
                    if part is None:
                        raise self._damage(slices, f"file {key} is missing")
                    if self._listed is not None and not self._listed.agree(key, part):
                        raise self._damage(slices, f"file {key} is not the one that the store was created with")
                    yield place, part
                continue
            beside = self._beside(places)
            requests = self._requests(slices, [*places, *beside])
            behind = [(key, offset + length - CHECKSUM_BYTES, CHECKSUM_BYTES) for key, offset, length in requests]
            parts = list(self._location.ranges([*requests[: len(places)], *behind[len(places) :]]))
            for place, checksum in zip(beside, parts[len(places) :], strict=True):
                self._check_digest(place, {place: checksum})
            yield from zip(places, parts, strict=False)

    def _requests(self, slices: tuple[slice, ...], places: list[Place]) -> list[Range]:
        """Where in their files chunks are."""
        about = self._metadata
        files = [tuple(p // g for p, g in zip(place, about.grid, strict=True)) for place in places]
        indices = self._indices(files)
        requests = []
        for place, file in zip(places, files, strict=True):
            key, index = about.key(file), indices[file]
            if index is None:
                raise self._damage(slices, f"file {key} is missing")
            offset, length = index[tuple(p % g for p, g in zip(place, about.grid, strict=True))]
            if offset == MISSING:
                corner = [slice(p * c, p * c + 1) for p, c in zip(place, about.chunk, strict=True)]
                raise self._damage(corner, "a chunk is missing")
            if length > about.chunk_bytes + OVERHEAD or length < CHECKSUM_BYTES:
                raise ValueError(f"file {key} is cut short, or its index says what cannot be")
            requests.append((key, int(offset), int(length)))
        return requests

    def _indices(self, files: Sequence[Place]) -> dict[Place, npt.NDArray[np.uint64] | None]:
        """Indices of shards; of a distant store those of the next shards too, in one journey."""
        about = self._metadata
        wanted = set(files)
        if self._location.remote and SEQUENCE in VARIABLES[self._name].dims:
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


def refuse_replaced(location: Location, root_mark: str | None) -> None:
    """Refuse to answer from a store that took the place of the one that was opened.

    Parameters
    ----------
    location : where it was
    root_mark : of the store when it was opened; None where nothing tells

    Raises
    ------
    OutliersError
        Another store is there, or none.
    """
    if root_mark is not None and location.root_mark() != root_mark:
        raise OutliersError(f"{location} was replaced or removed since it was opened; open it again")


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
    (encoded,) = location.read([key], about.chunk_bytes + OVERHEAD)
    if encoded is None:
        raise ValueError(f"file {key} is missing")
    return tuple(decode_strings(encoded, about.shape[0]))
