"""What the metadata of a store say, checked before anything is believed: a store may come from a stranger.

Only what format version 1 writes is accepted, so that no codec runs but those of the format, and sizes stay in bounds
that a laptop can count to, whatever a few bytes of JSON claim.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from capture.errors import OutliersError, one_line
from capture.store.chunks import OVERHEAD
from capture.store.location import Location
from capture.store.schema import (
    COORDINATES,
    FEATURE,
    FORMAT,
    LAYER,
    POSITION,
    RAW_VARIABLES,
    SEQUENCE,
    SITE,
    VARIABLES,
    VOCABULARY,
    refuse_newer,
)

TOKEN_TEXTS: Final = (f"{VOCABULARY}/id", f"{VOCABULARY}/text")

MOST_SEQUENCES: Final = 2**17
"""Sequences of a store: what dask keeps of so many is half a gigabyte."""

MOST_CHUNKS: Final = 2**20
"""Chunks of an array."""

MOST_JSON: Final = 2**23
"""Bytes of a file of metadata."""

_DEEPEST: Final = 64
_LONGEST: Final = 2**22
_MOST_TOKENS: Final = 2**30
_LARGEST_CHUNK: Final = 2**31
_BYTES: Final = {"float32": 4, "int32": 4, "uint64": 8, "bool": 1, "string": 256}
_STRINGS_BYTES: Final = 2**20  # that a chunk of strings may have whatever their number
_LITTLE: Final = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC: Final = {"name": "crc32c"}
_STRINGS: Final = {"name": "vlen-utf8"}


@dataclass(frozen=True)
class ArrayMetadata:
    """How one array is stored.

    Parameters
    ----------
    name : path of the array in the store
    shape : of the array
    dims : names of the dimensions; None where the metadata have none
    dtype : `float32`, `int32`, `uint64`, `bool` or `string`
    chunk : shape of a chunk
    shard : shape of a shard, a file of several chunks; None where every chunk is a file
    compressed : whether chunks are compressed by Blosc
    attributes : of the array
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[str | None, ...] | None
    dtype: str
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    compressed: bool
    attributes: Mapping[str, Any]

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each dimension of one file."""
        return tuple(w // c for w, c in zip(self.chunk if self.shard is None else self.shard, self.chunk, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk once decoded; for strings a bound on what they can have."""
        return math.prod(self.chunk) * _BYTES[self.dtype] + (_STRINGS_BYTES if self.dtype == "string" else 0)

    @property
    def file_bytes(self) -> int:
        """Bytes that a file can have, at most: its chunks, encoded, and their index."""
        return math.prod(self.grid) * (self.chunk_bytes + OVERHEAD + 16) + OVERHEAD

    def keys(self) -> Iterator[str]:
        """Keys of all files."""
        return map(self.key, itertools.product(*map(range, self.files)))

    def key(self, file: tuple[int, ...]) -> str:
        """Key of a file, of which `file` counts along each dimension."""
        return ".".join([f"{self.name}/c", *map(str, file)])

    @property
    def files(self) -> tuple[int, ...]:
        """Number of files along each dimension."""
        whole = self.chunk if self.shard is None else self.shard
        return tuple(-(-size // w) for size, w in zip(self.shape, whole, strict=True))


@dataclass(frozen=True)
class StoreMetadata:
    """What the metadata of a store say.

    Parameters
    ----------
    attributes : of the store
    arrays : those that the format knows, by name, texts of tokens among them
    root : bytes of the store's own zarr.json
    """

    attributes: dict[str, Any]
    arrays: dict[str, ArrayMetadata]
    root: bytes


def read_metadata(location: Location) -> StoreMetadata:
    """Read the metadata of a store: one file where they are consolidated, one for each array where they are not.

    Raises
    ------
    OutliersError
        No store is there, it is none of this format, of a newer version, damaged, or claims what no store has.
    """
    try:
        (root,) = location.read(["zarr.json"], MOST_JSON)
        if root is None:
            raise OutliersError(location.absent())
        document = parse_json(root)
        attributes = _mapping(document.get("attributes", {}), "attributes")
        _check_format(location, attributes)
        if document.get("zarr_format") != 3 or document.get("node_type") != "group":
            raise ValueError("zarr.json is not that of a Zarr v3 group")
        found = _documents(location, document)
    except (ValueError, TypeError) as error:
        raise damaged(location, error) from error
    arrays = {}
    for name, content in found.items():
        try:
            arrays[name] = parse_array(name, content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(location, ValueError(f"{name}: {_told(error)}")) from error
    return StoreMetadata(attributes, arrays, root)


def read_array_metadata(location: Location, name: str) -> ArrayMetadata:
    """Metadata of one array, from its own file.

    Raises
    ------
    OutliersError
        They are missing or damaged.
    """
    try:
        (content,) = location.read([f"{name}/zarr.json"], MOST_JSON)
        if content is None:
            raise ValueError(f"{name}/zarr.json is missing")
        return parse_array(name, parse_json(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(location, error) from error


def damaged(location: Location, error: Exception) -> OutliersError:
    """What to tell of metadata that cannot be read."""
    return OutliersError(
        f"the metadata of {location} are damaged ({_told(error)}); restore zarr.json from a copy, or capture again; "
        "a store that another program wrote can be asked in Python, with xarray.open_zarr(path).outliers"
    )


def _told(error: Exception) -> str:
    return one_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {one_line(error)}"


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object, of bounded depth.

    Raises
    ------
    ValueError
        It is none, or too deep.
    """
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    level, depth = [document], 0
    while level:
        if depth > _DEEPEST:
            raise ValueError("the JSON is nested too deeply")
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        depth += 1
    return _mapping(document, "the JSON")


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {type(value).__name__}; expected an object")
    return value


def _check_format(location: Location, attributes: dict[str, Any]) -> None:
    version = attributes.get("format_version")
    if attributes.get("format") != FORMAT or type(version) is not int:
        raise OutliersError(
            f"{location} is a Zarr store, but not one of {FORMAT}; expected one made by outliers capture"
        )
    refuse_newer(str(location), version)


def _documents(location: Location, root: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """JSON of the metadata of each array of the format."""
    names = (*VARIABLES, *COORDINATES, *TOKEN_TEXTS)
    consolidated = root.get("consolidated_metadata")
    if consolidated is not None:
        entries = _mapping(_mapping(consolidated, "consolidated_metadata").get("metadata"), "consolidated_metadata")
        return {name: _mapping(entries[name], name) for name in names if name in entries}
    contents = location.read([f"{name}/zarr.json" for name in names], MOST_JSON)
    return {name: parse_json(data) for name, data in zip(names, contents, strict=True) if data is not None}


def parse_array(name: str, document: dict[str, Any]) -> ArrayMetadata:
    """Metadata of an array, from their JSON.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        They are not those of an array of the format, or claim what no store has.
    """
    if document.get("zarr_format") != 3 or document.get("node_type") != "array":
        raise ValueError("it is no Zarr v3 array")
    if document.get("storage_transformers"):
        raise ValueError("it has storage transformers; expected none")
    shape = _lengths(document["shape"], least=0)
    dtype = document["data_type"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"its values are {json.dumps(dtype)[:80]}; expected one of {', '.join(_BYTES)}")
    grid, keys = document["chunk_grid"], document["chunk_key_encoding"]
    if grid["name"] != "regular" or keys["name"] != "default":
        raise ValueError("its chunks are not those of the format")
    whole = _lengths(grid["configuration"]["chunk_shape"], least=1)
    if keys.get("configuration", {}).get("separator") != ".":
        raise ValueError("its chunk keys are not those of the format")
    codecs = [_codec(codec) for codec in document["codecs"]]
    shard = None
    chunk = whole
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
        settings = codecs[0]["configuration"]
        if settings.get("index_location", "end") != "end":
            raise ValueError("the index of its shards is not at the end")
        if [_codec(codec) for codec in settings["index_codecs"]] != [_LITTLE, _CRC]:
            raise ValueError("the codecs of its shards' index are not those of the format")
        shard, chunk = whole, _lengths(settings["chunk_shape"], least=1)
        codecs = [_codec(codec) for codec in settings["codecs"]]
    compressed = _compressed(codecs, dtype)
    dims = document.get("dimension_names")
    attributes = _mapping(document.get("attributes", {}), "attributes")
    array = ArrayMetadata(
        name, shape, None if dims is None else tuple(dims), dtype, chunk, shard, compressed, attributes
    )
    _check_sizes(array)
    return array


def _lengths(values: Any, *, least: int) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and value >= least for value in values):
        raise ValueError("a shape is no list of whole numbers")
    if any(value > _LONGEST for value in values):
        raise ValueError(f"a dimension is {_rounded(max(values))} long; expected at most {_LONGEST:,}")
    return tuple(values)


def _rounded(number: int) -> str:
    """A number as a message has it, whatever its size."""
    return f"{number:.3g}" if number < 10**300 else "over 1e+300"


def _codec(codec: Any) -> dict[str, Any]:
    """A codec without what says nothing."""
    content = {"name": codec} if isinstance(codec, str) else _mapping(codec, "a codec")
    return {key: value for key, value in content.items() if key == "name" or (key == "configuration" and value)}


def _compressed(codecs: list[dict[str, Any]], dtype: str) -> bool:
    """Whether chunks are compressed; only the chains of codecs that the format has are accepted."""
    names = [str(codec.get("name"))[:40] for codec in codecs]
    first = _STRINGS if dtype == "string" else _LITTLE
    begins = codecs[:1] == [first] or (dtype == "bool" and codecs[:1] == [{"name": "bytes"}])
    if begins and codecs[-1] == _CRC:
        if len(codecs) == 2:
            return False
        if len(codecs) == 3 and names[1] == "blosc" and dtype != "string":
            return True
    raise ValueError(
        f"it has the codecs {', '.join(names)}; expected those of the format: {first['name']}, perhaps blosc, crc32c"
    )


def _check_sizes(array: ArrayMetadata) -> None:
    shape, chunk = array.shape, array.chunk
    whole = chunk if array.shard is None else array.shard
    if not len(shape) == len(chunk) == len(whole):
        raise ValueError("its shape and its chunks have different numbers of dimensions")
    if array.dims is not None and len(array.dims) != len(shape):
        raise ValueError("its shape and its dimensions have different numbers")
    if any(w % c for w, c in zip(whole, chunk, strict=True)):
        raise ValueError("its shards are not whole numbers of chunks")
    if array.chunk_bytes > _LARGEST_CHUNK:
        raise ValueError(f"a chunk has {_rounded(array.chunk_bytes)} bytes; expected at most 2 GiB")
    chunks = max(1, math.prod(array.files)) * math.prod(array.grid)
    if chunks > MOST_CHUNKS:
        raise ValueError(f"it has {_rounded(chunks)} chunks; expected at most {MOST_CHUNKS:,}")
    if array.dtype != "string" and math.prod(shape[:2]) > _MOST_TOKENS and array.name in ("token_id", "nll"):
        raise ValueError(f"it has {_rounded(math.prod(shape))} tokens; expected at most {_MOST_TOKENS:,}")
    dims = VARIABLES[array.name].dims if array.name in VARIABLES else ()
    if SEQUENCE in dims and shape[dims.index(SEQUENCE) : dims.index(SEQUENCE) + 1] > (MOST_SEQUENCES,):
        raise ValueError(f"it has {shape[dims.index(SEQUENCE)]:,} sequences; expected at most {MOST_SEQUENCES:,}")
    together = {POSITION, FEATURE} if array.name in RAW_VARIABLES["both"] else {POSITION, FEATURE, LAYER, SITE}
    for dim, size, c in zip(dims, shape, chunk, strict=False):
        if dim in together and c < size:
            raise ValueError(f"its chunks are {c} long along {dim}; expected {size}, which is all of it")
