"""A store comes into being: all of its metadata, tokens and norm parameters in place, or nothing at all."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError
from capture.store.chunks import COMPRESSION, LEVEL
from capture.store.drafts import draft_folder
from capture.store.files import file_digest, sync_folder
from capture.store.identity import STORE_ID, new_store_id
from capture.store.layout import KEYS, chunks_and_shards
from capture.store.lengths import lengths_flaw
from capture.store.metadata import MOST_CHUNKS, MOST_SEQUENCES
from capture.store.schema import (
    CHECKSUMS,
    COORDINATES,
    DIGESTED,
    FILL,
    FINAL_PEAKS,
    FORMAT,
    FORMAT_VERSION,
    RAW_VARIABLES,
    SIGNAL,
    SIGNALS,
    SITE,
    VARIABLES,
    VOCABULARY,
    Sizes,
    stored_variables,
)

if TYPE_CHECKING:
    import zarr  # what only reads a store does without


_LARGEST_CHUNK = 2**31 - 2**16  # what one Blosc buffer can hold


class StoreExistsError(OutliersError):
    """Something stands already where a store was to be created."""


def create(
    path: Path | str,
    sizes: Sizes,
    *,
    raw: str,
    attributes: Mapping[str, Any],
    token_id: npt.NDArray[np.int32],
    norm_weight: npt.NDArray[np.float32],
    norm_bias: npt.NDArray[np.float32] | None = None,
    length: npt.NDArray[np.int32] | None = None,
    weight_peak: npt.NDArray[np.float32] | None = None,
    weight_norm: npt.NDArray[np.float32] | None = None,
    vocabulary: Mapping[int, str] | None = None,
    compression: str = "fast",
) -> None:
    """Create a store without any captured sequence.

    Parameters
    ----------
    path : folder to create; its parent is created where it is missing
    sizes : lengths of the dimensions
    raw : which activations the store keeps: `input`, `output`, `both` or `none`
    attributes : JSON-able facts about model, text and capture
    token_id : (sequence, position) int32; -1 behind the end of a sequence
    norm_weight, norm_bias : (layer, site, feature) float32
    length : (sequence,) int32, valid positions of each; None where all are as long as the dimension
    weight_peak, weight_norm : (layer, site, feature) float32; None where the model's weights cannot be read
    vocabulary : text of every token that occurs, None where no tokenizer is at hand
    compression : `fast`, `small` or `none`

    Raises
    ------
    StoreExistsError
        Something exists at `path`.
    OutliersError
        One (position, feature) matrix is larger than a chunk can be, or there are too many.
    """
    import zarr

    path = Path(path)
    if os.path.lexists(path):
        raise StoreExistsError(f"{path} exists already; choose another --out, or pass --overwrite to replace a store")
    check_sizes(sizes, raw)
    if length is not None and (flaw := lengths_flaw(length, token_id)):
        raise ValueError(flaw)
    optional = {"norm_bias": norm_bias, "length": length, "weight_peak": weight_peak, "weight_norm": weight_norm}
    present = {name: values for name, values in optional.items() if values is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(path) as draft:
        group = zarr.create_group(
            draft,
            attributes={
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                STORE_ID: new_store_id(),
                "raw": raw,
                "compression": compression,
                **attributes,
            },
        )
        for name in stored_variables(raw, {*present, *FINAL_PEAKS, "digest"}):
            _create_variable(group, name, sizes, compression)
        group["digest"].update_attributes({"variables": list(DIGESTED)})
        for name, labels in ((SIGNAL, SIGNALS), (SITE, sizes.sites)):
            _create_labels(group, name, labels, name, COORDINATES[name].description)
        _fill(group, "done", np.zeros(sizes.sequences, bool))  # so that a flag that is not there is damage too
        _fill(group, "token_id", token_id)
        _fill(group, "norm_weight", norm_weight)
        for name, values in present.items():
            _fill(group, name, values)
        if vocabulary is not None:
            _create_vocabulary(group, vocabulary)
        with warnings.catch_warnings():
            # Consolidated metadata is an extension that zarr-python and xarray agree upon; without it a remote store
            # costs one request for each array.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(draft)
        (draft / CHECKSUMS).write_text(
            "".join(
                f"{file_digest(file)}  {file.relative_to(draft).as_posix()}\n"
                for file in sorted(draft.rglob("*"))
                if file.is_file() and not (file.parent.name == "done" and file.name.startswith("c"))
            )
        )
        for folder, _, files in os.walk(draft):
            for name in files:
                with (Path(folder) / name).open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(Path(folder))
        try:
            os.rename(draft, path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise StoreExistsError(f"{path} was created by another process meanwhile; choose another --out") from error
        sync_folder(path.parent)


def check_sizes(sizes: Sizes, raw: str) -> None:
    """Refuse what no store holds.

    Raises
    ------
    OutliersError
        One (position, feature) matrix is larger than a chunk can be, or there are too many.
    """
    if sizes.positions * sizes.features * 4 > _LARGEST_CHUNK:
        raise OutliersError(
            f"{sizes.positions} positions of {sizes.features} features exceed the 2 GiB of one chunk; "
            "use a smaller --length"
        )
    chunks = sizes.layers * len(sizes.sites) * sizes.sequences if RAW_VARIABLES[raw] else 0
    if sizes.sequences > MOST_SEQUENCES or chunks > MOST_CHUNKS:
        raise OutliersError(
            f"{sizes.sequences:,} sequences of {sizes.layers} layers exceed what a store holds, {MOST_SEQUENCES:,} "
            f"sequences and {MOST_CHUNKS:,} matrices; use fewer --sequences, and several stores"
        )


def _create_variable(group: zarr.Group, name: str, sizes: Sizes, compression: str) -> None:
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

    variable = VARIABLES[name]
    chunks, shards = chunks_and_shards(name, sizes)
    compressors: list[Any] = [Crc32cCodec()]
    block = COMPRESSION[compression]
    if block is not None and name != "done":
        compressors.insert(
            0,
            BloscCodec(
                cname="zstd",
                clevel=LEVEL,
                shuffle="shuffle",
                blocksize=block,
                typesize=np.dtype(variable.dtype).itemsize,
            ),
        )
    fill: Any = FILL[variable.dtype]
    group.create_array(
        name,
        shape=sizes.shape(variable.dims),
        chunks=chunks,
        shards=shards,
        dtype=variable.dtype,
        serializer=BytesCodec(endian="little"),
        compressors=compressors,
        fill_value=fill,
        dimension_names=variable.dims,
        attributes={"long_name": variable.description, "units": variable.units},
        chunk_key_encoding=KEYS,
    )


def _create_labels(group: zarr.Group, name: str, labels: Sequence[str], dim: str, description: str) -> None:
    from zarr.codecs import Crc32cCodec

    array = group.create_array(
        name,
        shape=(len(labels),),
        chunks=(len(labels),),
        dtype="string",
        compressors=[Crc32cCodec()],
        dimension_names=(dim,),
        attributes={"long_name": description},
        chunk_key_encoding=KEYS,
        config={"write_empty_chunks": True},
    )
    array[:] = np.array(labels, dtype=np.dtypes.StringDType())


def _create_vocabulary(group: zarr.Group, vocabulary: Mapping[int, str]) -> None:
    from zarr.codecs import BytesCodec, Crc32cCodec

    own = group.create_group(VOCABULARY)
    ids = np.array(sorted(vocabulary), np.int32)
    array = own.create_array(
        "id",
        shape=ids.shape,
        chunks=ids.shape,
        dtype="int32",
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        dimension_names=("token",),
        attributes={"long_name": "Token as in token_id", "units": "1"},
        chunk_key_encoding=KEYS,
        config={"write_empty_chunks": True},
    )
    array[:] = ids
    _create_labels(own, "text", [vocabulary[number] for number in ids.tolist()], "token", "The token decoded by itself")


def _fill(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    import zarr

    with zarr.config.set({"array.write_empty_chunks": True}):  # a chunk that is not there is damage, never a value
        array = stored_array(group, name)
    if values.shape != array.shape:
        raise ValueError(f"{name} has shape {values.shape}, and the store expects {array.shape}")
    array[...] = values


def stored_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of a store; a group in its place is refused."""
    import zarr

    array = group[name]
    if not isinstance(array, zarr.Array):
        raise OutliersError(f"{name} is a group and not an array; expected a store made by outliers capture")
    return array
