"""Stores whose sequences end where they end: written, opened by plain xarray, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyze import Criteria, find_outliers, open_store, pack, unpack
from analyze.sharing.card import card
from capture.store.chunks import encode
from capture.store.create import create
from capture.store.lengths import lengths_flaw
from capture.store.schema import PER_SEQUENCE, RAW_VARIABLES, Sizes
from capture.store.shards import ShardFile
from capture.store.verify import verify
from capture.store.write import StoreWriter, write_sequence
from tests.builders import arrays_of, on_disk, random_activations, sequence_of

LENGTH = np.array([7, 2, 5], np.int32)


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    return on_disk(tmp_path / "ragged.zarr", random_activations(), length=LENGTH)


def test_plain_xarray_finds_nan_behind_the_end_and_nothing_else(ragged: Path) -> None:
    values = random_activations()
    with xr.open_zarr(ragged) as store:
        assert store["length"].dims == ("sequence",)
        assert store["length"].dtype == np.int32
        np.testing.assert_array_equal(store["length"], LENGTH)
        for n, length in enumerate(LENGTH):
            np.testing.assert_array_equal(store["norm_input"][n, :, :, :length], values[n, :, :, :length])
            assert np.isfinite(store["nll"][n, 1:length]).all()
            assert (store["token_id"][n, :length] >= 0).all()
            assert (store["token_id"][n, length:] == -1).all()
            for name in ("norm_input", "norm_output", "final_input", "position_peak", "nll"):
                part = store[name].isel(sequence=n, position=slice(int(length), None))
                assert np.isnan(part).all(), name
    assert verify(ragged).damage == ()


def test_a_store_without_length_has_no_such_variable(tmp_path: Path) -> None:
    path = on_disk(tmp_path / "even.zarr", random_activations())
    assert not (path / "length").exists()
    np.testing.assert_array_equal(StoreWriter(path).length, [7, 7, 7])


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ([3, 4], None),
        ([0, 4], "sequence 0 has length 0; expected 1 to 4"),
        ([3, 5], "sequence 1 has length 5; expected 1 to 4"),
        ([3, 3], "sequence 1 has length 3, and its tokens end elsewhere"),
        ([4, 4], "sequence 0 has length 4, and its tokens end elsewhere"),
    ],
)
def test_lengths_and_tokens_must_agree(length: list[int], expected: str | None) -> None:
    tokens = np.array([[5, 6, 7, -1], [5, 6, 7, 8]], np.int32)
    assert lengths_flaw(np.array(length, np.int32), tokens) == expected


def test_no_store_is_made_of_lengths_and_tokens_that_disagree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its tokens end elsewhere"):
        create(
            tmp_path / "s.zarr",
            Sizes(1, 1, ("ln_attn",), 3, 2),
            raw="none",
            attributes={},
            token_id=np.array([[1, 2, 3]], np.int32),
            norm_weight=np.ones((1, 1, 2), np.float32),
            length=np.array([2], np.int32),
        )
    assert not (tmp_path / "s.zarr").exists()


def test_a_sequence_of_another_length_is_refused(ragged: Path) -> None:
    arrays = arrays_of(random_activations())
    names = (*RAW_VARIABLES["both"], *PER_SEQUENCE)
    with pytest.raises(ValueError, match="position_peak of sequence 1 has shape"):
        write_sequence(ragged, 1, {name: sequence_of(arrays[name], name, 1, 3) for name in names})


@pytest.mark.parametrize("name", ["norm_input", "final_input"])
def test_verify_finds_a_value_behind_the_end(ragged: Path, name: str) -> None:
    store = StoreWriter(ragged)
    values = xr.open_zarr(ragged)[name].values[1]
    values[..., 6, 0] = 0.0
    shard = ShardFile(store.file(name, 1), store.grid(name))
    for place in np.ndindex(*store.grid(name)):
        matrix = values if name == "final_input" else values[place[1], place[2]]
        shard.append(place, encode(matrix, store.compression))
    shard.commit()
    found = [str(damage) for damage in verify(ragged).damage]
    assert f"sequence 1: {name}: has values behind the end of the sequence" in found


@pytest.mark.parametrize("name", ["nll", "position_peak"])
def test_verify_finds_a_small_value_behind_the_end(ragged: Path, name: str) -> None:
    whole = StoreWriter(ragged)
    whole.length = np.array([7, 7, 7], np.int32)
    values = xr.open_zarr(ragged)[name].isel(sequence=1).values
    values[(..., 6) if name == "nll" else (..., 6, slice(None))] = 1.0
    whole.put_chunks(name, 1, whole.encode_small(name, 1, values))
    found = [str(damage) for damage in verify(ragged).damage]
    assert f"sequence 1: {name}: has values behind the end of the sequence" in found


def test_verify_finds_lengths_that_are_damaged_or_contradict_the_tokens(ragged: Path) -> None:
    file = ragged / "length" / "c.0"
    file.write_bytes(file.read_bytes()[::-1])
    (damage,) = verify(ragged).damage
    assert str(damage).startswith("store: length/c.0: differs from its checksum")


def test_a_packed_store_keeps_its_lengths(ragged: Path, tmp_path: Path) -> None:
    options: Any
    for options in ({}, {"peaks_only": True}, {"mantissa_bits": 4}):
        packed = pack(ragged, tmp_path / "s.zarr.zip", overwrite=True, **options)
        np.testing.assert_array_equal(open_store(packed)["length"], LENGTH)
        criteria = Criteria(magnitude=2, positions=0.5)
        assert find_outliers(packed, criteria).features == find_outliers(ragged, criteria).features
        copy = unpack(packed, tmp_path / "copy.zarr", overwrite=True)
        assert verify(copy).damage == ()
    assert "- sequences: 3 of 2 to 7 tokens" in card(ragged, "s", "hf://datasets/a/b/s").section
