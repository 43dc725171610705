"""Read a whole store back: metadata, every chunk, and the peaks against the raw values that they were taken from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError, one_line
from capture.store.chunks import CHECKSUM_BYTES, decode
from capture.store.create import stored_array
from capture.store.files import file_digest, read_plain
from capture.store.group import open_group
from capture.store.identity import STORE_ID, digest
from capture.store.layout import chunks_and_shards
from capture.store.lengths import lengths_flaw
from capture.store.location import Folder
from capture.store.members import contents
from capture.store.metadata import MOST_JSON, ArrayMetadata, read_metadata
from capture.store.paths import user_path
from capture.store.rounding import round_mantissa
from capture.store.schema import (
    CHECKSUMS,
    COORDINATES,
    DIGESTED,
    FIXED,
    POSITION,
    RAW_VARIABLES,
    SEQUENCE,
    SIGNALS,
    SITE,
    VARIABLES,
    VOCABULARY,
    Sizes,
    mantissa_bits,
    stored_variables,
)
from capture.store.shards import MISSING, index_bytes, read_chunks, read_index
from capture.store.write import StoreWriter

Array = npt.NDArray[Any]
Checksums = dict[str, list[bytes]]

_UNCHECKED: Final = (
    f"an earlier release began it, without {STORE_ID} and digest: values swapped between its sequences, or with those "
    "of another store, would not be noticed"
)
_BEHIND: Final = "has values behind the end of the sequence"


_MOST_LISTED: Final = 2**26  # bytes of the list of checksums


@dataclass(frozen=True)
class Damage:
    """Something in a store that is not as it was written.

    Parameters
    ----------
    sequence : the sequence that it concerns, None where it concerns the whole store
    place : variable, and layer and site where they matter
    reason : what is wrong
    """

    sequence: int | None
    place: str
    reason: str

    def __str__(self) -> str:
        """One line."""
        where = "store" if self.sequence is None else f"sequence {self.sequence}"
        return f"{where}: {self.place}: {self.reason}"


@dataclass(frozen=True)
class Verification:
    """What reading a store back showed.

    Parameters
    ----------
    damage : everything that is wrong
    done, sequences : how many sequences are captured, of how many
    strangers : what lies in the folder and is no file of the store, which no command hands on
    unchecked : what cannot be told of a store this old; None where everything can
    """

    damage: tuple[Damage, ...]
    done: int
    sequences: int
    strangers: tuple[str, ...] = ()
    unchecked: str | None = None


def verify(
    path: Path | str, *, repair: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read a store back and check everything that can be checked.

    Parameters
    ----------
    path : folder of the store
    repair : take back `done` of the damaged sequences, so that the same `outliers capture` redoes only those
    progress : is called with (sequences checked, sequences in all)

    Raises
    ------
    OutliersError
        The store cannot be opened at all, or its metadata contradict each other.
    """
    path = user_path(path)
    try:
        found = _verified(path, repair, progress)
        return replace(found, strangers=tuple(contents(path, read_metadata(Folder(path)).arrays).strangers))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, MemoryError) as error:
        # Metadata that match their checksums and still make no sense: nobody's capture.
        raise OutliersError(
            f"{path} has metadata that no capture wrote ({type(error).__name__}: {error}); get another copy of it"
        ) from error


def _verified(path: Path, repair: bool, progress: Callable[[int, int], None] | None) -> Verification:
    open_group(path)
    damage = list(_fixed_damage(path))
    if any("/c" not in item.place or item.place.startswith((SITE, *FIXED)) for item in damage):
        return Verification(tuple(damage), 0, 0)  # shapes, codecs and names cannot be trusted: nothing can be read
    store = StoreWriter(path)
    damage += _layout_damage(store)
    if not damage and (flaw := lengths_flaw(store.length, store.token_id)):
        damage.append(Damage(None, "length", flaw))
    if damage:
        return Verification(tuple(damage), 0, 0)
    flags = store.clear_damaged_flags() if repair else store.damaged_flags()
    damage += [Damage(number, "done", "the flag is missing or does not match its checksum") for number in flags]
    if flags and not repair:
        return Verification(tuple(damage), 0, store.sizes.sequences)
    done = store.done()
    for number in range(store.sizes.sequences):
        found = _sequence_damage(store, number) if done[number] else []
        damage += found
        if repair and found:
            store.mark_done(number, False)
        if progress is not None:
            progress(number + 1, store.sizes.sequences)
    unchecked = _UNCHECKED if store.store_id is None else None
    return Verification(tuple(damage), int(done.sum()), store.sizes.sequences, unchecked=unchecked)


def _fixed_damage(path: Path) -> Iterator[Damage]:
    """Damage in what was written when the store was created: metadata, tokens, norm parameters."""
    try:
        lines = read_plain(path / CHECKSUMS, _MOST_LISTED).decode().splitlines()
    except (OSError, ValueError) as error:
        yield Damage(None, CHECKSUMS, f"cannot be read ({one_line(error)}); restore it from a copy")
        return
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    arrays = read_metadata(Folder(path)).arrays
    damage = [
        Damage(None, name, reason)
        for name, digest in listed.items()
        if (reason := _file_damage(path, name, digest, arrays))
    ]
    yield from damage
    if "zarr.json" not in listed or damage:
        if "zarr.json" not in listed:
            yield Damage(None, "zarr.json", f"is not listed in {CHECKSUMS}; restore both from a copy")
        return
    group = open_group(path)
    vocabulary = (f"{VOCABULARY}/id", f"{VOCABULARY}/text") if VOCABULARY in group else ()
    for name in (*stored_variables(str(group.attrs["raw"]), set(group.array_keys())), *COORDINATES, *vocabulary):
        chunks = 0
        if name not in VARIABLES or SEQUENCE not in VARIABLES[name].dims or name in FIXED:
            chunks = stored_array(group, name).nchunks
        if f"{name}/zarr.json" not in listed or sum(entry.startswith(f"{name}/c.") for entry in listed) != chunks:
            yield Damage(None, name, f"is not listed whole in {CHECKSUMS}; restore both from a copy")


def _layout_damage(store: StoreWriter) -> Iterator[Damage]:
    """Arrays that are described otherwise than a capture does, so that a reader would find other values than here."""
    arrays, sizes = read_metadata(Folder(store.path)).arrays, store.sizes
    for name in stored_variables(store.raw, {*arrays, *(["digest"] if STORE_ID in store.attributes else [])}):
        about, dims = arrays.get(name), VARIABLES[name].dims
        if about is None:
            yield Damage(
                None, f"{name}/zarr.json", "is not in the metadata of the store; restore zarr.json from a copy"
            )
            continue
        found = (about.dims, about.dtype, about.shape, (about.chunk, about.shard), about.compressed)
        compressed = store.compressed and name != "done"
        if found != (dims, VARIABLES[name].dtype, sizes.shape(dims), chunks_and_shards(name, sizes), compressed):
            yield Damage(None, f"{name}/zarr.json", "describes no array that a capture writes; restore it from a copy")


def _file_damage(path: Path, name: str, digest: str, arrays: Mapping[str, ArrayMetadata]) -> str | None:
    file = path / name
    if not file.resolve().is_relative_to(path.resolve()) or not file.is_file():
        return "the file is missing; restore it from a copy"
    about = None if name.endswith("zarr.json") else arrays.get(name.rpartition("/")[0])
    if file.stat().st_size > (MOST_JSON if about is None else about.file_bytes):
        return "is larger than it can be; restore it from a copy"
    if file_digest(file) != digest:
        return f"differs from its checksum in {CHECKSUMS}; restore it from a copy"
    return None


def _sequence_damage(store: StoreWriter, number: int) -> list[Damage]:
    damage: list[Damage] = []
    checksums: Checksums = {}
    small = {name: _whole(store, name, number, damage, checksums) for name in store.per_sequence}
    length = int(store.length[number])
    for name, own in small.items():
        dims = [dim for dim in VARIABLES[name].dims if dim != SEQUENCE]
        if own is not None and POSITION in dims and not _ends(own, length, dims.index(POSITION)):
            damage.append(Damage(number, name, _BEHIND))
    rounded = mantissa_bits(store.attributes)
    for name in RAW_VARIABLES[store.raw]:
        before = len(damage)
        peaks = _Peaks(store.sizes, length)
        found = peaks.arrays
        ended = True
        for place, values in _chunks(store, name, number, damage, checksums):
            ended &= _ends(values, length, -2)
            if name == "final_input":
                found = {"final_high": np.fmax.reduce(values[0]), "final_low": np.fmin.reduce(values[0])}
            else:
                peaks.add(place[1:3], values[0, 0, 0])
        if not ended:
            damage.append(Damage(number, name, _BEHIND))
        if len(damage) > before:
            continue
        for variable, values in found.items():
            stored = small.get(variable)
            if stored is not None and name != "final_input":
                stored = stored[SIGNALS.index(name.removeprefix("norm_"))]  # `signal` comes first
            if stored is not None and rounded is not None and stored.dtype.kind == "f":
                stored = round_mantissa(stored, rounded)  # the peaks of rounded values are the rounded peaks
            if stored is not None and not np.array_equal(stored, values, equal_nan=values.dtype.kind == "f"):
                damage.append(Damage(number, variable, f"differs from the peaks of {name}"))
    return [*damage, *_strange(store, number, checksums, damage)]


def _strange(store: StoreWriter, number: int, checksums: Checksums, damage: list[Damage]) -> list[Damage]:
    """Sound variables of a sequence that were written for another sequence or store."""
    if store.store_id is None:
        return []
    lost: list[Damage] = []
    row = _whole(store, "digest", number, lost, {})
    if row is None:
        return lost
    known = {item.place.partition(",")[0] for item in damage}
    return [
        Damage(number, name, "was captured for another sequence or store, or later changed: its digest is another")
        for name, found in checksums.items()
        if name not in known and int(row[DIGESTED.index(name)]) != digest(store.store_id, name, number, found)
    ]


def _ends(values: Array, length: int, axis: int) -> bool:
    """Whether nothing but NaN stands behind the end of a sequence."""
    return bool(np.isnan(np.take(values, range(length, values.shape[axis]), axis)).all())


def _chunks(
    store: StoreWriter, name: str, number: int, damage: list[Damage], checksums: Checksums
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Decoded chunks of one sequence of a variable, one in memory at a time.

    What is wrong is added to `damage`, and what stands behind each chunk to `checksums`.
    """
    checksums[name] = []
    grid, axis = store.grid(name), VARIABLES[name].dims.index(SEQUENCE)
    file = store.file(name, number)
    try:
        for reason in _shard_damage(file, grid):
            damage.append(Damage(number, name, reason))
            return
        for place, data in read_chunks(file, grid, store.chunk_bytes(name)):
            if place[axis] != number % grid[axis]:
                continue
            checksums[name].append(data[-CHECKSUM_BYTES:])
            try:
                yield place, decode(data, VARIABLES[name].dtype, store.chunk_shape(name), compressed=store.compressed)
            except (ValueError, RuntimeError) as error:
                raw = name in ("norm_input", "norm_output")
                where = f"{name}, layer {place[1]}, site {store.sizes.sites[place[2]]}" if raw else name
                damage.append(Damage(number, where, one_line(error)))
    except FileNotFoundError:
        damage.append(Damage(number, name, "the file is missing"))
    except (OSError, ValueError) as error:
        damage.append(Damage(number, name, one_line(error)))


def _shard_damage(file: Path, grid: tuple[int, ...]) -> Iterator[str]:
    index = read_index(file, grid)
    missing = (index == MISSING).any(axis=-1)
    if missing.any():
        yield f"{int(missing.sum())} chunks are missing"
    elif int(index[..., 1].sum()) + index_bytes(grid) != file.stat().st_size:
        yield "the file has another length than its index says"


def _whole(store: StoreWriter, name: str, number: int, damage: list[Damage], checksums: Checksums) -> Array | None:
    """A small array of one sequence, without the sequence dimension; None where it is damaged."""
    dims, shape = VARIABLES[name].dims, store.chunk_shape(name)
    axis, before = dims.index(SEQUENCE), len(damage)
    lengths = [length for dim, length in zip(dims, store.sizes.shape(dims), strict=True) if dim != SEQUENCE]
    result = np.empty(lengths, VARIABLES[name].dtype)
    for place, values in _chunks(store, name, number, damage, checksums):
        corner = [(p * c, (p + 1) * c) for i, (p, c) in enumerate(zip(place, shape, strict=True)) if i != axis]
        result[tuple(slice(*edges) for edges in corner)] = np.squeeze(values, axis)
    return result if len(damage) == before else None


class _Peaks:
    """Peaks of one sequence of raw activations, by the definitions in `capture.store.schema`."""

    def __init__(self, sizes: Sizes, length: int) -> None:
        self._length = length
        cells = (sizes.layers, len(sizes.sites))
        self.arrays: dict[str, Array] = {
            "layer_high": np.empty((*cells, sizes.features), np.float32),
            "layer_low": np.empty((*cells, sizes.features), np.float32),
            "nonfinite_count": np.empty(cells, np.int32),
            "position_peak": np.full((sizes.positions, sizes.features), np.nan, np.float32),
        }

    def add(self, cell: tuple[int, ...], matrix: Array) -> None:
        """Take in the (position, feature) matrix of one (layer, site)."""
        self.arrays["layer_high"][cell] = np.fmax.reduce(matrix, axis=0)
        self.arrays["layer_low"][cell] = np.fmin.reduce(matrix, axis=0)
        self.arrays["nonfinite_count"][cell] = np.count_nonzero(~np.isfinite(matrix[: self._length]))
        np.fmax(self.arrays["position_peak"], np.abs(matrix), out=self.arrays["position_peak"])


def flaw(path: Path | str, *, progress: Callable[[int, int], None] | None = None) -> str | None:
    """What keeps a store from being handed on, once every chunk of it is read back.

    Parameters
    ----------
    path : folder of the store
    progress : is called with (sequences checked, sequences in all)

    Returns
    -------
    a phrase such as "is unfinished, 1 of 8 sequences are done"; None where the store is whole and sound

    Raises
    ------
    OutliersError
        As `capture.store.verify.verify`.
    """
    result = verify(path, progress=progress)
    if result.damage:
        count = len(result.damage)
        return f"is damaged in {count} place{'s' * (count > 1)} ({result.damage[0]})"
    if result.done < result.sequences:
        return f"is unfinished, {result.done} of {result.sequences} sequences are done"
    return None
