"""The Zarr store of a capture: open it, and write one sequence after another.

`capture.store.create` makes a store without any sequence. Each sequence is durable before its `done` flag is, so that a
capture that was killed goes on where it stopped. No two sequences of different parts share a file: they need no locks.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError, advice, one_line
from capture.store.chunks import CHECKSUM_BYTES, COMPRESSION, OVERHEAD, decode, encode
from capture.store.create import stored_array
from capture.store.files import AtomicFile, read_plain, refuse_special, remove_partials
from capture.store.identity import digest_row, store_id
from capture.store.layout import chunks_and_shards, sequences_per_group
from capture.store.lengths import padded
from capture.store.location import Folder
from capture.store.metadata import MOST_JSON, TOKEN_TEXTS, read_metadata
from capture.store.schema import (
    COORDINATES,
    FILL,
    PER_SEQUENCE,
    POSITION,
    RAW_VARIABLES,
    SEQUENCE,
    SITE,
    VARIABLES,
    VOCABULARY,
    Sizes,
    mantissa_bits,
)
from capture.store.shards import ShardFile, read_chunks

if TYPE_CHECKING:
    import zarr

Arrays = Mapping[str, npt.NDArray[Any]]


def _read(group: zarr.Group, path: Path, name: str) -> npt.NDArray[Any]:
    array = stored_array(group, name)
    refuse_special(path / name, read_metadata(Folder(path)).arrays[name].file_bytes + MOST_JSON)
    return np.asarray(array[...])


def open_group(path: Path | str) -> zarr.Group:
    """Open a store for reading and check that it is one that this version knows.

    Raises
    ------
    OutliersError
        Nothing is there, it is no store of this format, its metadata are damaged, or it has a newer format version.
    """
    import zarr

    path = Path(path)
    read_metadata(Folder(path))
    for name in (*VARIABLES, *COORDINATES, VOCABULARY, *TOKEN_TEXTS):
        file = path / name / "zarr.json"
        if file.exists() and not file.is_file():
            raise OutliersError(f"{file} is no plain file; get another copy of the store")
    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutliersError(
            f"the metadata of {path} are damaged ({type(error).__name__}: {error}); restore zarr.json from a copy"
        ) from error


class StoreWriter:
    """A store, open for adding sequences.

    Parameters
    ----------
    path : folder of a store that `create` made

    Raises
    ------
    OutliersError
        As `open_group`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._root = self._root_now()
        group = open_group(self.path)
        self.attributes: dict[str, Any] = dict(group.attrs)
        self.raw: str = self.attributes["raw"]
        self.compression: str = self.attributes["compression"]
        self.compressed = COMPRESSION[self.compression] is not None
        input_shape = stored_array(group, "norm_weight").shape
        sequences, positions = stored_array(group, "token_id").shape
        sites = tuple(str(name) for name in self.read(SITE))
        self.sizes = Sizes(sequences, input_shape[0], sites, positions, input_shape[2])
        self._group = sequences_per_group(sequences)
        self.store_id = store_id(self.attributes) if "digest" in group else None
        self.per_sequence = tuple(name for name in PER_SEQUENCE if name in group)

    @cached_property
    def length(self) -> npt.NDArray[np.int32]:
        """Valid positions of each sequence, (sequence,) int32."""
        if "length" in open_group(self.path):
            return self.read("length")
        return np.full(self.sizes.sequences, self.sizes.positions, np.int32)

    @cached_property
    def token_id(self) -> npt.NDArray[np.int32]:
        """What the model reads, (sequence, position) int32."""
        return self.read("token_id")

    def read(self, name: str) -> npt.NDArray[Any]:
        """A whole array, as the disk says now.

        Raises
        ------
        OutliersError
            A chunk of it is damaged.
        """
        try:
            return _read(open_group(self.path), self.path, name)
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> OutliersError:
        return OutliersError(
            f"{name} of {self.path} is damaged ({one_line(error)}); "
            f"see what can be mended with: {advice('verify', self.path, '--repair')}"
        )

    def _root_now(self) -> bytes | None:
        try:
            return (self.path / "zarr.json").read_bytes()
        except OSError:
            return None

    def is_same(self) -> bool:
        """Whether the store that was opened still stands there; its metadata, which never change, tell."""
        return self._root_now() == self._root

    def check_same(self) -> None:
        """Refuse to write where another store stands by now.

        Raises
        ------
        OutliersError
            The store was replaced or removed since it was opened.
        """
        if not self.is_same():
            raise OutliersError(
                f"{self.path} was replaced or removed while its sequences were captured, and nothing more is written "
                "there; run the same command again with another --out"
            )

    def done(self) -> npt.NDArray[np.bool_]:
        """Which sequences are captured, (sequence,) bool, as the disk says now."""
        return self.read("done")

    def sequence(self, number: int) -> SequenceWriter:
        """Begin one sequence; whatever an earlier attempt left of it is replaced.

        Raises
        ------
        OutliersError
            The store's activations are rounded, and exact ones must not stand among them.
        """
        if mantissa_bits(self.attributes) is not None:
            raise OutliersError(f"{self.path} holds rounded activations; capture to another --out")
        return SequenceWriter(self, number)

    def shard(self, name: str, number: int) -> ShardFile:
        """Begin the shard of a raw variable that holds sequence `number`."""
        return ShardFile(self._own(self.file(name, number)), self.grid(name), cached=False)

    def file(self, name: str, number: int) -> Path:
        """File of a variable that holds sequence `number`."""
        chunks, shards = chunks_and_shards(name, self.sizes)
        whole = chunks if shards is None else shards
        dims = VARIABLES[name].dims
        key = (number // size if dim == SEQUENCE else 0 for dim, size in zip(dims, whole, strict=True))
        return self.path / name / ".".join(["c", *map(str, key)])

    def _own(self, file: Path) -> Path:
        """A file to write, in a folder that is the store's own: a link could lead anywhere."""
        if file.parent.is_symlink():
            raise OutliersError(f"{file.parent} is a link, and a store is written only inside its own folder; copy it")
        return file

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one chunk of a variable."""
        return chunks_and_shards(name, self.sizes)[0]

    def chunk_bytes(self, name: str) -> int:
        """Bytes of one chunk of a variable, decoded."""
        return math.prod(self.chunk_shape(name)) * np.dtype(VARIABLES[name].dtype).itemsize

    def sequence_bytes(self, number: int) -> int:
        """Bytes on disk of the files that hold sequence `number`."""
        files = (self.file(name, number) for name in (*RAW_VARIABLES[self.raw], *self.per_sequence))
        return sum(file.stat().st_size for file in files)

    def grid(self, name: str) -> tuple[int, ...]:
        """Number of chunks along each dimension of one shard of a variable."""
        chunks, shards = chunks_and_shards(name, self.sizes)
        assert shards is not None
        return tuple(whole // chunk for whole, chunk in zip(shards, chunks, strict=True))

    def put_small(self, name: str, number: int, values: npt.NDArray[Any]) -> list[bytes]:
        """Write one sequence of a small array, keeping what its shard holds of other captured sequences.

        Parameters
        ----------
        values : the variable's dimensions without `sequence`; as many positions as the sequence has

        Returns
        -------
        checksums of the chunks of the sequence, as `digest` takes them
        """
        self.check_same()
        dims = VARIABLES[name].dims
        own_dims = tuple(dim for dim in dims if dim != SEQUENCE)
        own_sizes = replace(self.sizes, positions=int(self.length[number]))
        if values.shape != (expected := own_sizes.shape(own_dims)):
            raise ValueError(f"{name} of sequence {number} has shape {values.shape}, and the store expects {expected}")
        if POSITION in own_dims:
            values = padded(values, self.sizes.positions, own_dims.index(POSITION))
        values = np.expand_dims(values.astype(VARIABLES[name].dtype, copy=False), dims.index(SEQUENCE))
        chunks, _ = chunks_and_shards(name, self.sizes)
        grid, axis = self.grid(name), dims.index(SEQUENCE)
        file = self.file(name, number)
        own = number % self._group if grid[axis] > 1 else 0
        kept = self._kept(name, number) if grid[axis] > 1 else {}
        shard, checksums = ShardFile(self._own(file), grid), []
        try:
            for place in np.ndindex(*grid):
                if place[axis] == own:
                    corner = [0 if i == axis else p * c for i, (p, c) in enumerate(zip(place, chunks, strict=True))]
                    block = values[tuple(slice(low, low + c) for low, c in zip(corner, chunks, strict=True))]
                    encoded = encode(block, self.compression)
                    checksums.append(encoded[-CHECKSUM_BYTES:])
                    shard.append(place, encoded)
                else:
                    # A sequence that is not captured yet holds fill values until its turn comes.
                    shard.append(place, kept[place] if place in kept else self._blank(name, chunks))
            shard.commit()
        except BaseException:
            shard.discard()
            raise
        return checksums

    def _kept(self, name: str, number: int) -> dict[tuple[int, ...], bytes]:
        """What a shard holds of other sequences than `number`, still encoded."""
        file, grid, axis = self.file(name, number), self.grid(name), VARIABLES[name].dims.index(SEQUENCE)
        if not file.exists():
            return {}
        try:
            return {
                place: data
                for place, data in read_chunks(file, grid, self.chunk_bytes(name))
                if place[axis] != number % self._group
            }
        except (OSError, ValueError) as error:
            start = number // self._group * self._group
            others = [n for n in range(start, start + self._group) if n != number and self.done()[n : n + 1].any()]
            if others:
                raise OutliersError(
                    f"{file} is damaged ({error}) and holds sequences {', '.join(map(str, others))} too; "
                    f"take them back with: {advice('verify', self.path, '--repair')}"
                ) from error
            return {}  # nothing that counts is lost

    def _blank(self, name: str, chunks: tuple[int, ...]) -> bytes:
        dtype = VARIABLES[name].dtype
        return encode(np.full(chunks, FILL[dtype], dtype=dtype), self.compression)

    def mark_done(self, number: int, value: bool = True) -> None:
        """Set the flag of one sequence, durably.

        Raises
        ------
        OutliersError
            The chunk of flags that it stands in is damaged, or the store is another by now. Where the chunk is missing,
            none of its sequences counts.
        """
        self.check_same()
        try:
            flags = self._flags(number)
        except FileNotFoundError:
            flags = np.zeros(self._group, dtype=bool)
        except (OSError, ValueError) as error:
            raise self._damaged("done", error) from error
        flags[number % self._group] = value
        self._write_flags(self.file("done", number), flags)

    def clear_damaged_flags(self) -> list[int]:
        """Write the chunks of `done` that are missing or unreadable anew, as not captured.

        Returns
        -------
        first sequence of each
        """
        damaged = self.damaged_flags()
        for start in damaged:
            self._write_flags(self.file("done", start), np.zeros(self._group, dtype=bool))
        return damaged

    def damaged_flags(self) -> list[int]:
        """First sequence of each chunk of `done` that is missing or unreadable."""
        damaged = []
        for start in range(0, self.sizes.sequences, self._group):
            try:
                self._flags(start)
            except (OSError, ValueError):
                damaged.append(start)
        return damaged

    def _flags(self, number: int) -> npt.NDArray[np.bool_]:
        """The chunk of `done` that holds sequence `number`."""
        return decode(
            read_plain(self.file("done", number), self._group + OVERHEAD), "bool", (self._group,), compressed=False
        )

    def _write_flags(self, file: Path, flags: npt.NDArray[np.bool_]) -> None:
        remove_partials(self._own(file).parent, file.name)
        with AtomicFile(file) as output:
            output.write(encode(flags, "none"))


class SequenceWriter:
    """Everything of one sequence, on its way to the disk.

    Raw matrices are appended in any order, by any thread; `finish` writes the rest and sets `done`.
    """

    def __init__(self, store: StoreWriter, number: int) -> None:
        self._store = store
        self._number = number
        store.check_same()
        self._shards = {name: store.shard(name, number) for name in RAW_VARIABLES[store.raw]}
        self._checksums: dict[str, dict[tuple[int, ...], bytes]] = {name: {} for name in self._shards}
        self._lock = threading.Lock()

    def append(self, name: str, encoded: bytes, layer: int = 0, site: int = 0) -> None:
        """Append one encoded (position, feature) matrix of a raw variable.

        Parameters
        ----------
        name : `norm_input`, `norm_output` or `final_input`
        encoded : what `capture.store.chunks.encode` made of the float32 matrix, NaN behind the end of the sequence
        layer, site : indices; not used for `final_input`
        """
        place = (0, 0, 0) if name == "final_input" else (0, layer, site, 0, 0)
        with self._lock:
            self._shards[name].append(place, encoded)
            self._checksums[name][place] = encoded[-CHECKSUM_BYTES:]

    def finish(self, arrays: Arrays) -> None:
        """Commit the raw shards, write the small arrays (`schema.PER_SEQUENCE`, without `sequence`), set `done`.

        A store that an earlier release began gets those that it has.
        """
        wanted = self._store.per_sequence
        if not set(wanted) <= set(arrays) <= set(PER_SEQUENCE):
            raise ValueError(f"expected the arrays {', '.join(wanted)}; got {', '.join(sorted(arrays))}")
        checksums = {name: [found[place] for place in sorted(found)] for name, found in self._checksums.items()}
        for shard in self._shards.values():
            self._store.check_same()
            shard.commit()
        for name in wanted:
            checksums[name] = self._store.put_small(name, self._number, arrays[name])
        if self._store.store_id is not None:
            row = digest_row(self._store.store_id, self._number, checksums)
            self._store.put_small("digest", self._number, row)
        self._store.mark_done(self._number)

    def discard(self) -> None:
        """Remove what was appended and not committed."""
        for shard in self._shards.values():
            shard.discard()


def write_sequence(path: Path | str, number: int, arrays: Arrays) -> None:
    """Write one whole sequence held in memory.

    Parameters
    ----------
    path : folder of the store
    number : which sequence
    arrays : every variable of the sequence that the store keeps, without its `sequence` dimension, and with as many
        positions as the sequence has
    """
    store = StoreWriter(path)
    writer = store.sequence(number)
    try:
        for name in RAW_VARIABLES[store.raw]:
            values = padded(arrays[name].astype(np.float32, copy=False), store.sizes.positions, axis=-2)
            if name == "final_input":
                writer.append(name, encode(values, store.compression))
                continue
            for layer, site in np.ndindex(*values.shape[:2]):
                writer.append(name, encode(values[layer, site], store.compression), layer, site)
        writer.finish({name: arrays[name] for name in store.per_sequence})
    except BaseException:
        writer.discard()
        raise
