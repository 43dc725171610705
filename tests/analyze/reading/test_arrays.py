"""Chunks read straight from their files, against zarr and against files that lie."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec

from analyze import OutliersError
from analyze.reading.arrays import StoredArray
from capture.store import write
from capture.store.create import create
from capture.store.schema import PER_SEQUENCE, RAW_VARIABLES, VARIABLES, Sizes
from tests import builders

DOTTED = {"name": "default", "separator": "."}
KEYS = [
    (slice(None),),
    (1, slice(1, 3), 0),
    (slice(0, 2), slice(None), slice(None), slice(2, 6), slice(4, 1, -2)),
    (2, 3, 1, slice(1, None)),
    (2, 3, 1, 2, slice(0, 1)),
    (slice(3, 3),),
]


def written(path: Path, compression: str) -> np.ndarray:
    x = builders.random_activations()
    arrays = builders.arrays_of(x)
    sizes = Sizes(3, 4, builders.SITES, 7, 5)
    create(
        path,
        sizes,
        raw="both",
        attributes=builders.ATTRIBUTES,
        token_id=arrays["token_id"],
        norm_weight=arrays["norm_weight"],
        compression=compression,
    )
    for n in range(3):
        names = (*RAW_VARIABLES["both"], *PER_SEQUENCE)
        parts = {name: np.take(arrays[name], n, axis=VARIABLES[name].dims.index("sequence")) for name in names}
        write.write_sequence(path, n, parts)
    return x


def chunk_file(path: Path) -> tuple[Path, int, np.ndarray]:
    """Shard of sequence 1, the length of its index, and the index."""
    file, size = path / "norm_input" / "c.1.0.0.0.0", 4 * 2 * 16
    return file, size, np.frombuffer(file.read_bytes()[-size - 4 : -4], "<u8").reshape(4, 2, 2).copy()


def signed(data: bytes) -> bytes:
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


@pytest.mark.parametrize("compression", ["fast", "small", "none"])
def test_every_selection_is_what_zarr_reads(tmp_path: Path, compression: str) -> None:
    x = written(tmp_path / "s.zarr", compression)
    stored = StoredArray(tmp_path / "s.zarr", "norm_input", builders.SITES)
    for key in KEYS:
        values = stored[key]
        np.testing.assert_array_equal(values, x[key])
        assert values.flags.writeable
    peaks = StoredArray(tmp_path / "s.zarr", "position_peak", builders.SITES)
    np.testing.assert_array_equal(peaks[0], zarr.open_array(tmp_path / "s.zarr" / "position_peak")[0])


def test_a_small_part_does_not_keep_its_chunk(tmp_path: Path) -> None:
    written(tmp_path / "s.zarr", "fast")
    stored = StoredArray(tmp_path / "s.zarr", "norm_input", builders.SITES)
    part = stored[0, 0, 0, 2:3]
    assert part.base is None or part.base.size <= part.size


@pytest.mark.parametrize(
    "codecs",
    [
        {"compressors": [BloscCodec()]},
        {"compressors": [GzipCodec(), Crc32cCodec()]},
        {"serializer": BytesCodec(endian="big"), "compressors": [Crc32cCodec()]},
        {"compressors": [Crc32cCodec()], "filters": [TransposeCodec(order=(1, 0))]},
    ],
)
def test_other_codecs_are_refused(tmp_path: Path, codecs: dict) -> None:
    settings = {"shards": (2, 6), "chunk_key_encoding": DOTTED, **codecs}
    zarr.create_array(tmp_path / "nll", shape=(4, 6), dtype="f4", chunks=(1, 6), **settings)
    with pytest.raises(OutliersError, match="codecs .*expected those of the format: bytes, perhaps blosc, crc32c"):
        StoredArray(tmp_path, "nll", ())


def test_arrays_without_shards_are_read_alike(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    array = zarr.create_array(
        tmp_path / "nll",
        shape=x.shape,
        dtype=x.dtype,
        chunks=(3, 6),
        compressors=[BloscCodec(), Crc32cCodec()],
        chunk_key_encoding=DOTTED,
    )
    array[...] = x
    np.testing.assert_array_equal(StoredArray(tmp_path, "nll", ())[1:4:2, 2:], x[1:4:2, 2:])


@pytest.mark.parametrize(("word", "value"), [(1, 136), (1, 2**31), (3, 20)])
def test_a_header_that_lies_about_sizes_is_refused(tmp_path: Path, word: int, value: int) -> None:
    written(tmp_path / "s.zarr", "fast")
    file, _, index = chunk_file(tmp_path / "s.zarr")
    data = bytearray(file.read_bytes())
    start, length = (int(number) for number in index[2, 1])
    data[start + 4 * word : start + 4 * word + 4] = value.to_bytes(4, "little")
    data[start : start + length] = signed(bytes(data[start : start + length - 4]))  # the checksum is right
    file.write_bytes(data)
    stored = StoredArray(tmp_path / "s.zarr", "norm_input", builders.SITES)
    with pytest.raises(OutliersError, match=r"sequence 1, layer 2, site ln_mlp \(a chunk has another size than"):
        stored[1, 2, 1]


@pytest.mark.parametrize("place", [(2**40, 100), (0, 2**40), (0, 3)])
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, place: tuple[int, int]) -> None:
    written(tmp_path / "s.zarr", "fast")
    file, size, index = chunk_file(tmp_path / "s.zarr")
    index[2, 1] = place
    file.write_bytes(file.read_bytes()[: -size - 4] + signed(index.tobytes()))
    with pytest.raises(OutliersError, match=r"layer 2, site ln_mlp \(file norm_input/c.1.0.0.0.0 is cut short"):
        StoredArray(tmp_path / "s.zarr", "norm_input", builders.SITES)[1, 2, 1]


def test_a_flipped_bit_of_an_index_is_found(tmp_path: Path) -> None:
    written(tmp_path / "s.zarr", "fast")
    file, size, _ = chunk_file(tmp_path / "s.zarr")
    data = bytearray(file.read_bytes())
    data[-size] ^= 1
    file.write_bytes(data)
    with pytest.raises(OutliersError, match="the index of the file does not match its checksum"):
        StoredArray(tmp_path / "s.zarr", "norm_input", builders.SITES)[1]
