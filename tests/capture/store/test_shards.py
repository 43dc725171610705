"""Shards are read back by zarr-python, and damage is noticed."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from capture.store.chunks import CHECKSUM_BYTES, COMPRESSION, LEVEL, decode, encode, encode_pieces
from capture.store.files import AtomicFile
from capture.store.shards import ShardFile, read_chunks, read_index


def array_at(path: Path, compression: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> zarr.Array:
    block = COMPRESSION[compression]
    codecs = [Crc32cCodec()]
    if block is not None:
        codecs.insert(0, BloscCodec(cname="zstd", clevel=LEVEL, shuffle="shuffle", typesize=4, blocksize=block))
    return zarr.create_array(
        path,
        shape=shape,
        chunks=chunks,
        shards=shape,
        dtype="float32",
        serializer=BytesCodec(endian="little"),
        compressors=codecs,
        fill_value=np.nan,
    )


@pytest.mark.parametrize("compression", COMPRESSION)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_zarr_reads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory, compression: str, data: st.DataObject
) -> None:
    grid = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    block = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    shape = tuple(g * b for g, b in zip(grid, block, strict=True))
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values.flat[0] = np.nan
    path = tmp_path_factory.mktemp("shard") / "a.zarr"
    array = array_at(path, compression, shape, block)
    (path / "c" / "0" / "0").mkdir(parents=True)
    shard = ShardFile(path / "c" / "0" / "0" / "0", grid)
    for place in data.draw(st.permutations(list(np.ndindex(*grid)))):
        corner = tuple(slice(p * b, (p + 1) * b) for p, b in zip(place, block, strict=True))
        shard.append(place, encode(values[corner], compression))
    shard.commit()
    np.testing.assert_array_equal(array[...], values)
    most = 4 * math.prod(block)
    assert dict(read_chunks(path / "c" / "0" / "0" / "0", grid, most)).keys() == set(np.ndindex(*grid))


@pytest.mark.parametrize("compression", ["fast", "small"])
def test_planes_of_a_shuffled_block_share_no_huffman_table(compression: str) -> None:
    # Normal values of bfloat16, as many as fill whole blocks; Huffman codes of whole bits cost some 3%.
    bits = np.random.default_rng(0).normal(size=(2048, 1024)).astype(np.float32).view(np.uint32)
    values = (bits & 0xFFFF0000).view(np.float32)
    planes = (values.view(np.uint32) >> 24, values.view(np.uint32) >> 16 & 0xFF)
    shares = (np.unique(plane, return_counts=True)[1] / values.size for plane in planes)
    entropy = sum(-(share * np.log2(share)).sum() for share in shares) / 8
    assert len(encode(values, compression)) < 1.05 * entropy * values.size


@pytest.mark.parametrize("compression", ["fast", "small"])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(
    ("positions", "features"), [(64, 64), (1021, 131), (512, 576), (1, 4099), (300, 1024)]
)  # whole blocks, a shorter one at the end, one only
def test_zarr_reads_planes_bit_for_bit(
    tmp_path: Path, compression: str, halves: bool, positions: int, features: int
) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2, positions, features)).astype(np.float32) * np.float32(3)
    values[1] = generator.choice(np.array([0, -0.0, np.nan, np.inf, 1e-45, -3e38], np.float32), values.shape[1:])
    if halves:
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    array = array_at(tmp_path / "a.zarr", compression, values.shape, (1, positions, features))
    (tmp_path / "a.zarr" / "c" / "0" / "0").mkdir(parents=True)
    shard = ShardFile(tmp_path / "a.zarr" / "c" / "0" / "0" / "0", (2, 1, 1))
    for number, matrix in enumerate(values):
        given = (matrix.view(np.uint32) >> 16).astype(np.uint16) if halves else matrix
        pieces = encode_pieces(given, compression)
        np.testing.assert_array_equal(
            decode(b"".join(pieces), "float32", matrix.shape, compressed=True).view(np.uint32), matrix.view(np.uint32)
        )
        shard.append((number, 0, 0), pieces)
    shard.commit()
    np.testing.assert_array_equal(np.asarray(array[...]).view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("compression", ["fast", "small"])
def test_what_cannot_compress_stays_as_long_as_it_is(compression: str) -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, (256, 4096), np.uint32).view(np.float32)
    assert len(encode(noise, compression)) == noise.nbytes + 16 + CHECKSUM_BYTES
    np.testing.assert_array_equal(
        decode(encode(noise, compression), "float32", noise.shape, compressed=True).view(np.uint32),
        noise.view(np.uint32),
    )


def test_chunks_are_appended_by_several_threads(tmp_path: Path) -> None:
    chunks = {(n,): bytes([n]) * (1000 + n) for n in range(200)}
    shard = ShardFile(tmp_path / "s", (200,))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: shard.append(item[0], [item[1][:7], item[1][7:]]), chunks.items()))
    shard.commit()
    assert dict(read_chunks(tmp_path / "s", (200,), 2000)) == chunks


def test_a_shard_with_a_missing_chunk_is_never_committed(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path / "s", (2,))
    shard.append((0,), encode(np.ones(3, np.float32), "fast"))
    with pytest.raises(ValueError, match="every one of its chunks"):
        shard.commit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bit", range(0, 36 * 8, 7))
def test_a_flipped_bit_in_the_index_is_noticed(tmp_path: Path, bit: int) -> None:
    shard = ShardFile(tmp_path / "s", (2,))
    for place in ((0,), (1,)):
        shard.append(place, encode(np.ones(3, np.float32), "none"))
    shard.commit()
    content = bytearray((tmp_path / "s").read_bytes())
    content[len(content) - 36 + bit // 8] ^= 1 << bit % 8
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        read_index(tmp_path / "s", (2,))


def test_a_truncated_shard_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"short")
    with pytest.raises(ValueError, match="5 bytes"):
        read_index(tmp_path / "s", (2,))


def test_an_atomic_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "f"
    with AtomicFile(target) as file:
        file.write(b"first")
        assert not target.exists()
    assert target.read_bytes() == b"first"
    with pytest.raises(ZeroDivisionError), AtomicFile(target) as file:
        file.write(b"second" * (1 // 0))
    assert target.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_shard_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / ".s.0123abcd.partial").write_bytes(b"junk")
    (tmp_path / ".other.0123abcd.partial").write_bytes(b"kept")
    ShardFile(tmp_path / "s", (1,)).discard()
    assert [path.name for path in tmp_path.iterdir()] == [".other.0123abcd.partial"]
