"""Read a whole store back: metadata, every chunk, and the peaks against the raw values that they were taken from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capture.schema import (
    COORDINATES,
    PER_SEQUENCE,
    RAW_VARIABLES,
    SEQUENCE,
    SIGNALS,
    SITE,
    VARIABLES,
    Sizes,
    stored_variables,
)
from capture.shards import decode, index_bytes, read_chunks, read_index
from capture.store import StoreWriter, metadata_digest, open_group

Array = npt.NDArray[Any]


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
    """

    damage: tuple[Damage, ...]
    done: int
    sequences: int


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
        The store cannot be opened at all.
    """
    path = Path(path)
    damage = list(_metadata_damage(path))
    if damage:  # shapes and codecs cannot be trusted, so nothing else can be read
        return Verification(tuple(damage), 0, 0)
    damage += _fixed_damage(path)
    if any(item.place == SITE for item in damage):  # without the names of the sites nothing else can be named
        return Verification(tuple(damage), 0, 0)
    store = StoreWriter(path)
    try:
        done = store.done()
    except ValueError:
        done = np.array([_flag(store, number) for number in range(store.sizes.sequences)])
        damage.append(Damage(None, "done", "a chunk does not match its checksum"))
    for number in range(store.sizes.sequences):
        if done[number]:
            found = _sequence_damage(store, number)
            damage += found
            if repair and found:
                store.mark_done(number, False)
        if progress is not None:
            progress(number + 1, store.sizes.sequences)
    return Verification(tuple(damage), int(done.sum()), store.sizes.sequences)


def _flag(store: StoreWriter, number: int) -> bool:
    try:
        return bool(open_group(store.path)["done"][number])  # type: ignore[index]
    except ValueError:
        return False


def _metadata_damage(path: Path) -> Iterator[Damage]:
    attributes = dict(open_group(path).attrs)
    root = json.loads((path / "zarr.json").read_bytes())
    if metadata_digest(root) != attributes.get("metadata_sha256"):
        yield Damage(None, "zarr.json", "the metadata do not match their checksum; restore the file from a copy")
        return
    members = root["consolidated_metadata"]["metadata"]
    expected = {*stored_variables(str(attributes["raw"]), bias="norm_bias" in members), *COORDINATES}
    for name in sorted(expected - set(members)):
        yield Damage(None, name, "the variable is missing from the metadata")
    for name in sorted(expected & set(members)):
        file = path / name / "zarr.json"
        try:
            same = json.loads(file.read_bytes()) == members[name]
        except (OSError, ValueError):
            same = False
        if not same:
            yield Damage(None, f"{name}/zarr.json", "differs from the consolidated metadata; restore it from a copy")


def _fixed_damage(path: Path) -> Iterator[Damage]:
    """Damage in what was written when the store was created."""
    for name, array in open_group(path).arrays():
        if name in VARIABLES and SEQUENCE in VARIABLES[name].dims and name != "token_id":
            continue
        if len(list((path / name).glob("c*"))) < array.nchunks:
            yield Damage(None, name, "a chunk is missing; restore it from a copy")
            continue
        try:
            array[...]
        except Exception as error:  # each codec has its own exceptions for bytes that are not its own
            yield Damage(None, name, f"{_told(error)}; restore it from a copy")


def _told(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _sequence_damage(store: StoreWriter, number: int) -> list[Damage]:
    damage: list[Damage] = []
    small = {name: _whole(store, name, number, damage) for name in PER_SEQUENCE}
    for name in RAW_VARIABLES[store.raw]:
        before = len(damage)
        peaks = _Peaks(store.sizes)
        for place, values in _chunks(store, name, number, damage):
            if name != "final_input":
                peaks.add(place[1:3], values[0, 0, 0])
        if name == "final_input" or len(damage) > before:
            continue
        signal = SIGNALS.index(name.removeprefix("norm_"))
        for variable, values in peaks.arrays.items():
            stored = small[variable]
            # `signal` comes first in the small arrays of one sequence.
            if stored is not None and not np.array_equal(stored[signal], values, equal_nan=values.dtype.kind == "f"):
                damage.append(Damage(number, variable, f"differs from the peaks of {name}"))
    return damage


def _chunks(
    store: StoreWriter, name: str, number: int, damage: list[Damage]
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Decoded chunks of one sequence of a variable, one in memory at a time; what is wrong is added to `damage`."""
    grid, axis = store.grid(name), VARIABLES[name].dims.index(SEQUENCE)
    file = store.file(name, number)
    try:
        for reason in _shard_damage(file, grid):
            damage.append(Damage(number, name, reason))
            return
        for place, data in read_chunks(file, grid):
            if place[axis] != number % grid[axis]:
                continue
            try:
                yield place, decode(data, VARIABLES[name].dtype, store.chunk_shape(name), store.compression)
            except (ValueError, RuntimeError) as error:
                raw = name in ("norm_input", "norm_output")
                where = f"{name}, layer {place[1]}, site {store.sizes.sites[place[2]]}" if raw else name
                damage.append(Damage(number, where, _told(error)))
    except FileNotFoundError:
        damage.append(Damage(number, name, "the file is missing"))
    except (OSError, ValueError) as error:
        damage.append(Damage(number, name, _told(error)))


def _shard_damage(file: Path, grid: tuple[int, ...]) -> Iterator[str]:
    index = read_index(file, grid)
    missing = (index == np.iinfo(np.uint64).max).any(axis=-1)
    if missing.any():
        yield f"{int(missing.sum())} chunks are missing"
    elif int(index[..., 1].sum()) + index_bytes(grid) != file.stat().st_size:
        yield "the file has another length than its index says"


def _whole(store: StoreWriter, name: str, number: int, damage: list[Damage]) -> Array | None:
    """A small array of one sequence, without the sequence dimension; None where it is damaged."""
    dims, shape = VARIABLES[name].dims, store.chunk_shape(name)
    axis, before = dims.index(SEQUENCE), len(damage)
    lengths = [length for dim, length in zip(dims, store.sizes.shape(dims), strict=True) if dim != SEQUENCE]
    result = np.empty(lengths, VARIABLES[name].dtype)
    for place, values in _chunks(store, name, number, damage):
        corner = [(p * c, (p + 1) * c) for i, (p, c) in enumerate(zip(place, shape, strict=True)) if i != axis]
        result[tuple(slice(*edges) for edges in corner)] = np.squeeze(values, axis)
    return result if len(damage) == before else None


class _Peaks:
    """Peaks of one sequence of raw activations, by the definitions in `capture.schema`."""

    def __init__(self, sizes: Sizes) -> None:
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
        self.arrays["nonfinite_count"][cell] = np.count_nonzero(~np.isfinite(matrix))
        np.fmax(self.arrays["position_peak"], np.abs(matrix), out=self.arrays["position_peak"])
