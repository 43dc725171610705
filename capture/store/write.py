"""The Zarr store of a capture: open it, and write one sequence after another.

`capture.store.create` makes a store without any sequence. Each sequence is durable before its `done` flag is, so that a
capture that was killed goes on where it stopped. No two sequences of different parts share a file: they need no locks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError, advice, one_line
from capture.store.chunks import CHECKSUM_BYTES, COMPRESSION, OVERHEAD, decode, encode, encode_pieces
from capture.store.create import stored_array
from capture.store.files import AtomicFile, read_plain, remove_partials
from capture.store.group import open_group, read_array
from capture.store.identity import digest_row, store_id
from capture.store.layout import chunks_and_shards, sequences_per_group
from capture.store.lengths import padded
from capture.store.metadata import MOST_JSON
from capture.store.paths import user_path
from capture.store.planes import Piece
from capture.store.schema import (
    FILL,
    PER_SEQUENCE,
    POSITION,
    RAW_VARIABLES,
    SEQUENCE,
    SITE,
    VARIABLES,
    Sizes,
    mantissa_bits,
)
from capture.store.shards import ShardFile, read_chunks

Arrays = Mapping[str, npt.NDArray[Any]]
Chunks = dict[tuple[int, ...], bytes | list[Piece]]


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
        self.path = user_path(path)
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
            return read_array(open_group(self.path), self.path, name)
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> OutliersError:
        return OutliersError(
            f"{name} of {self.path} is damaged ({one_line(error)}); "
            f"see what can be mended with: {advice('verify', self.path, '--repair')}"
        )

    def _root_now(self) -> bytes | None:
        try:
            return read_plain(self.path / "zarr.json", MOST_JSON)
        except (OSError, ValueError):
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
        return sum(self.file(name, number).stat().st_size for name in (*RAW_VARIABLES[self.raw], *self.per_sequence))

    def grid(self, name: str) -> tuple[int, ...]:
        """Number of chunks along each dimension of one shard of a variable."""
        chunks, shards = chunks_and_shards(name, self.sizes)
        assert shards is not None
        return tuple(whole // chunk for whole, chunk in zip(shards, chunks, strict=True))

    def encode_small(self, name: str, number: int, values: npt.NDArray[Any]) -> Chunks:
        """The encoded chunks of one sequence of a small array, for `put_chunks`.

        Parameters
        ----------
        values : the variable's dimensions without `sequence`; as many positions as the sequence has
        """
        dims = VARIABLES[name].dims
        own_dims = tuple(dim for dim in dims if dim != SEQUENCE)
        own_sizes = replace(self.sizes, positions=int(self.length[number]))
        if values.shape != (expected := own_sizes.shape(own_dims)):
            raise ValueError(f"{name} of sequence {number} has shape {values.shape}, and the store expects {expected}")
        if POSITION in own_dims:
            values = padded(values, self.sizes.positions, own_dims.index(POSITION))
        values = np.expand_dims(values.astype(VARIABLES[name].dtype, copy=False), dims.index(SEQUENCE))
        chunks, axis = self.chunk_shape(name), dims.index(SEQUENCE)
        encoded: Chunks = {}
        for place in self.places(name, number):
            corner = [0 if i == axis else p * c for i, (p, c) in enumerate(zip(place, chunks, strict=True))]
            block = values[tuple(slice(low, low + c) for low, c in zip(corner, chunks, strict=True))]
            encoded[place] = encode_pieces(block, self.compression)
        return encoded

    def places(self, name: str, number: int) -> list[tuple[int, ...]]:
        """Where in its shard the chunks of one sequence of a small array stand."""
        grid, axis = self.grid(name), VARIABLES[name].dims.index(SEQUENCE)
        return [place for place in np.ndindex(*grid) if place[axis] == number % grid[axis]]

    def put_chunks(self, name: str, number: int, encoded: Chunks) -> None:
        """Write the encoded chunks of one sequence of a small array, one for each of `places`.

        What its shard holds of other captured sequences is kept.
        """
        self.check_same()
        grid, axis = self.grid(name), VARIABLES[name].dims.index(SEQUENCE)
        whole: Chunks = {**(self._kept(name, number) if grid[axis] > 1 else {}), **encoded}
        shard = ShardFile(self._own(self.file(name, number)), grid)
        try:
            for place in np.ndindex(*grid):
                # A sequence that is not captured yet holds fill values until its turn comes.
                shard.append(place, whole[place] if place in whole else self._blank(name, self.chunk_shape(name)))
            shard.commit()
        except BaseException:
            shard.discard()
            raise

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
        data = read_plain(self.file("done", number), self._group + OVERHEAD)
        return decode(data, "bool", (self._group,), compressed=False)

    def _write_flags(self, file: Path, flags: npt.NDArray[np.bool_]) -> None:
        remove_partials(self._own(file).parent, file.name)
        with AtomicFile(file) as output:
            output.write(encode(flags, "none"))


def checksums(encoded: Chunks) -> list[bytes]:
    """What stands behind each of the chunks, in C order of their places."""
    return [own[-CHECKSUM_BYTES:] if isinstance(own, bytes) else own[-1] for _, own in sorted(encoded.items())]


class SequenceWriter:
    """Everything of one sequence, on its way to the disk.

    Raw matrices and small arrays are handed over in any order, by any thread; `finish` makes them count.
    """

    def __init__(self, store: StoreWriter, number: int) -> None:
        self._store = store
        self._number = number
        store.check_same()
        self._shards = {name: store.shard(name, number) for name in RAW_VARIABLES[store.raw]}
        self._checksums: dict[str, Chunks] = {name: {} for name in self._shards}
        self._small: dict[str, Chunks] = {name: {} for name in store.per_sequence}

    def append(self, name: str, encoded: bytes | list[Piece], layer: int = 0, site: int = 0) -> None:
        """Append one encoded (position, feature) matrix of a raw variable.

        Parameters
        ----------
        name : `norm_input`, `norm_output` or `final_input`
        encoded : what `capture.store.chunks` made of the float32 matrix, NaN behind the end of the sequence
        layer, site : indices; not used for `final_input`
        """
        place = (0, 0, 0) if name == "final_input" else (0, layer, site, 0, 0)
        self._shards[name].append(place, encoded)
        self._checksums[name][place] = checksums({place: encoded})[0]

    def keep_peak(self, encoded: list[Piece], signal: int) -> None:
        """Keep the encoded `position_peak` of one signal until `finish`; signals are counted as in `schema.SIGNALS`."""
        self._small["position_peak"][self._store.places("position_peak", self._number)[signal]] = encoded

    def keep(self, name: str, values: npt.NDArray[Any]) -> None:
        """Encode a small array (one of `schema.PER_SEQUENCE`, without `sequence`) and keep it until `finish`.

        A store that an earlier release began gets those that it has.
        """
        if name in self._small:
            self._small[name] = self._store.encode_small(name, self._number, values)

    def finish(self) -> None:
        """Make all of it durable, then set `done`; ValueError where a small array was not handed over."""
        for name, own in self._small.items():
            if sorted(own) != self._store.places(name, self._number):
                raise ValueError(f"{name} of sequence {self._number} was not handed over")
        self._store.check_same()
        small = dict(self._small)
        if self._store.store_id is not None:
            found = {name: checksums(own) for name, own in {**self._checksums, **self._small}.items()}
            row = digest_row(self._store.store_id, self._number, found)
            small["digest"] = self._store.encode_small("digest", self._number, row)
        with ThreadPoolExecutor(len(self._shards) + len(small)) as pool:  # one wait for the disk, not one each
            files = [pool.submit(shard.commit) for shard in self._shards.values()]
            files += [pool.submit(self._store.put_chunks, name, self._number, own) for name, own in small.items()]
        for file in files:
            file.result()
        self._store.mark_done(self._number)

    def discard(self) -> None:
        """Remove what was appended and not committed."""
        for shard in self._shards.values():
            shard.discard()


def write_sequence(store: StoreWriter | Path | str, number: int, arrays: Arrays) -> None:
    """Write one whole sequence held in memory.

    Parameters
    ----------
    store : open, or its folder
    number : which sequence
    arrays : every variable of the sequence that the store keeps, without its `sequence` dimension, and with as many
        positions as the sequence has
    """
    store = store if isinstance(store, StoreWriter) else StoreWriter(store)
    writer = store.sequence(number)
    try:
        for name in RAW_VARIABLES[store.raw]:
            values = padded(arrays[name].astype(np.float32, copy=False), store.sizes.positions, axis=-2)
            if name == "final_input":
                writer.append(name, encode(values, store.compression))
                continue
            for layer, site in np.ndindex(*values.shape[:2]):
                writer.append(name, encode(values[layer, site], store.compression), layer, site)
        for name in store.per_sequence:
            writer.keep(name, arrays[name])
        writer.finish()
    except BaseException:
        writer.discard()
        raise
