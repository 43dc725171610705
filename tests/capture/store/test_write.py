"""The store on disk: what xarray alone reads, durability by sequence, refusals."""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import OutliersError
from capture.store import create, write
from capture.store.files import AtomicFile
from capture.store.group import open_group
from capture.store.layout import part_sequences, sequences_per_group
from capture.store.schema import (
    FINAL_PEAKS,
    FORMAT_VERSION,
    PER_SEQUENCE,
    RAW_VARIABLES,
    VARIABLES,
    Sizes,
    stored_variables,
)

TEXT = {7: " tökén\n", 3: "", 11: "[bold]"}
SIZES = Sizes(sequences=3, layers=2, sites=("ln_attn", "ln_mlp"), positions=5, features=4)


def make(path: Path, sizes: Sizes = SIZES, raw: str = "input", **options: Any) -> None:
    shape = (sizes.layers, len(sizes.sites), sizes.features)
    create.create(
        path,
        sizes,
        raw=raw,
        attributes={"model_id": "made up"},
        token_id=np.arange(sizes.sequences * sizes.positions, dtype=np.int32).reshape(sizes.sequences, -1),
        norm_weight=np.full(shape, 2, np.float32),
        **options,
    )


def arrays(sizes: Sizes, raw: str, seed: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    result = {}
    for name in (*RAW_VARIABLES[raw], *PER_SEQUENCE):
        dims = VARIABLES[name].dims
        shape = [n for dim, n in zip(dims, sizes.shape(dims), strict=True) if dim != "sequence"]
        result[name] = (rng.normal(size=shape) * 9).astype(VARIABLES[name].dtype)
    return result


@pytest.mark.parametrize("raw", RAW_VARIABLES)
@pytest.mark.parametrize("compression", ["fast", "small", "none"])
def test_xarray_alone_reads_the_store(tmp_path: Path, raw: str, compression: str) -> None:
    path = tmp_path / "s.zarr"
    bias = np.full((2, 2, 4), -1, np.float32)
    make(path, raw=raw, compression=compression, norm_bias=bias, vocabulary=TEXT)
    written = [arrays(SIZES, raw, number) for number in range(3)]
    for number in (1, 0, 2):
        write.write_sequence(path, number, written[number])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(path)
    assert set(dataset.data_vars) == set(stored_variables(raw, ["norm_bias", *FINAL_PEAKS, "digest"]))
    vocabulary = xr.open_zarr(path, group="vocabulary")
    assert dict(zip(vocabulary.id.values.tolist(), vocabulary.text.values.tolist(), strict=True)) == TEXT
    assert list(dataset.signal.values) == ["input", "output"]
    assert list(dataset.site.values) == ["ln_attn", "ln_mlp"]
    for name, variable in VARIABLES.items():
        if name in dataset:
            assert dataset[name].dims == variable.dims
            assert dataset[name].dtype == np.dtype(variable.dtype)
            assert dataset[name].attrs["units"]
            assert dataset[name].attrs["long_name"]
            assert dataset[name].dtype != object
    for number, content in enumerate(written):
        for name, values in content.items():
            np.testing.assert_array_equal(dataset[name].isel(sequence=number), values, err_msg=name)
    assert dataset.done.values.all()
    assert dataset.norm_weight.values.min() == 2
    assert dataset.norm_bias.values.max() == -1
    assert dataset.attrs["format_version"] == FORMAT_VERSION
    assert dataset.attrs["raw"] == raw


def test_a_chunk_is_one_matrix_and_a_shard_one_sequence(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    array = open_group(tmp_path / "s.zarr")["norm_input"]
    assert array.chunks == (1, 1, 1, 5, 4)  # type: ignore[union-attr]
    assert array.shards == (1, 2, 2, 5, 4)  # type: ignore[union-attr]


def test_sequences_that_share_files_do_not_disturb_each_other(tmp_path: Path) -> None:
    sizes = Sizes(sequences=700, layers=1, sites=("ln_attn",), positions=2, features=3)
    assert sequences_per_group(700) == 3
    make(tmp_path / "s.zarr", sizes, raw="none")
    order = [4, 3, 0, 699, 5]
    written = {number: arrays(sizes, "none", number) for number in order}
    for number in order:
        write.write_sequence(tmp_path / "s.zarr", number, written[number])
    write.write_sequence(tmp_path / "s.zarr", 3, written[3])
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    assert list(np.flatnonzero(dataset.done.values)) == sorted(order)
    for number, content in written.items():
        for name, values in content.items():
            np.testing.assert_array_equal(dataset[name].isel(sequence=number), values, err_msg=name)


def test_a_thousand_sequences_of_eighty_sites_need_few_files(tmp_path: Path) -> None:
    sizes = Sizes(sequences=1000, layers=40, sites=("ln_attn", "ln_mlp"), positions=2, features=2)
    make(tmp_path / "s.zarr", sizes, raw="both")
    writer = write.StoreWriter(tmp_path / "s.zarr")
    names = (*RAW_VARIABLES["both"], *PER_SEQUENCE, "digest", "done")
    files = {writer.file(name, number) for name in names for number in range(1000)}
    assert len(files) < 6000


@given(sequences=st.integers(1, 2000), parts=st.integers(1, 40))
def test_parts_are_disjoint_complete_and_share_no_file(sequences: int, parts: int) -> None:
    ranges = [part_sequences(sequences, part, parts) for part in range(1, parts + 1)]
    assert list(itertools.chain(*ranges)) == list(range(sequences))
    group = sequences_per_group(sequences)
    groups = [{number // group for number in share} for share in ranges]
    assert sum(map(len, groups)) == len(set().union(*groups))
    if group == 1:
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_a_sequence_that_fails_midway_is_not_done(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    content = arrays(SIZES, "input", 0)
    content["nll"] = content["nll"][:-1]  # the wrong shape, noticed last
    with pytest.raises(ValueError, match="nll of sequence 0 has shape"):
        write.write_sequence(tmp_path / "s.zarr", 0, content)
    assert not write.StoreWriter(tmp_path / "s.zarr").done().any()
    assert not list((tmp_path / "s.zarr").rglob("*.partial"))
    write.write_sequence(tmp_path / "s.zarr", 0, arrays(SIZES, "input", 0))
    assert write.StoreWriter(tmp_path / "s.zarr").done().tolist() == [True, False, False]


def test_done_is_set_after_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "s.zarr")
    order: list[str] = []
    replace = AtomicFile.commit

    def commit(self: AtomicFile) -> None:
        replace(self)
        order.append(self._path.parent.name)

    monkeypatch.setattr(AtomicFile, "commit", commit)
    write.write_sequence(tmp_path / "s.zarr", 0, arrays(SIZES, "input", 0))
    assert order[-1] == "done"
    assert set(order[:-1]) == {*RAW_VARIABLES["input"], *PER_SEQUENCE, "digest"}


def test_a_flag_is_set_beside_lost_ones_and_never_beside_damaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    make(path, Sizes(sequences=1001, layers=1, sites=SIZES.sites, positions=2, features=2))
    writer = write.StoreWriter(path)
    writer.mark_done(1)
    flags = writer.file("done", 0)
    assert flags == writer.file("done", 1)  # they share a chunk
    content = bytearray(flags.read_bytes())
    content[0] ^= 1
    flags.write_bytes(content)
    with pytest.raises(OutliersError, match="done of .* is damaged .* outliers verify .* --repair"):
        writer.mark_done(0)
    assert flags.read_bytes() == content
    flags.unlink()
    writer.mark_done(0)
    assert np.flatnonzero(writer.done()).tolist() == [0]


def cached_pages(path: Path) -> int:
    """Pages of a file that the system keeps in memory."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        flags = (ctypes.c_ubyte * -(-len(content) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(content)
        library = ctypes.CDLL(None, use_errno=True)
        assert library.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(content)), flags) == 0
        del start  # else the file could not be closed
        return sum(flag & 1 for flag in flags)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice on its page cache")
def test_activations_do_not_fill_the_page_cache_and_peaks_stay_in_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(bytes(4 * mmap.PAGESIZE))
    with kept.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(kept):
        pytest.skip("this file system is memory")
    sizes = Sizes(sequences=1, layers=2, sites=SIZES.sites, positions=64, features=64)
    make(tmp_path / "s.zarr", sizes)
    write.write_sequence(tmp_path / "s.zarr", 0, arrays(sizes, "input", 0))
    writer = write.StoreWriter(tmp_path / "s.zarr")
    assert [cached_pages(writer.file(name, 0)) for name in RAW_VARIABLES["input"]] == [0, 0]
    assert all(cached_pages(writer.file(name, 0)) for name in ("layer_high", "position_peak"))


@pytest.mark.parametrize("existing", ["file", "empty folder", "store"])
def test_nothing_that_exists_is_replaced(tmp_path: Path, existing: str) -> None:
    path = tmp_path / "s.zarr"
    if existing == "file":
        path.write_text("precious")
    elif existing == "empty folder":
        path.mkdir()
    else:
        make(path)
    with pytest.raises(OutliersError, match="exists already"):
        make(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


def test_two_processes_that_create_at_once_leave_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.zarr"
    rename = create.os.rename

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(create.os, "rename", rename)
        make(path)  # another process was quicker
        rename(source, target)

    monkeypatch.setattr(create.os, "rename", late)
    with pytest.raises(OutliersError, match="created by another process"):
        make(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]
    assert write.StoreWriter(path).sizes == SIZES


def test_a_matrix_too_large_for_a_chunk_is_refused(tmp_path: Path) -> None:
    sizes = Sizes(sequences=1, layers=1, sites=("ln_attn",), positions=2**17, features=2**12)
    with pytest.raises(OutliersError, match="2 GiB"):
        create.create(
            tmp_path / "s.zarr",
            sizes,
            raw="input",
            attributes={},
            token_id=np.zeros((1, 1), np.int32),
            norm_weight=np.zeros((1, 1, 1), np.float32),
        )


def damaged(path: Path, kind: str) -> str:
    if kind == "missing":
        return "no store at"
    if kind == "no zarr":
        path.mkdir()
        (path / "notes.txt").write_text("hello")
        return "no Zarr v3 store"
    make(path)
    metadata = path / "zarr.json"
    content = json.loads(metadata.read_text())
    if kind == "cut":
        metadata.write_text(metadata.read_text()[:100])
        return "damaged"
    if kind == "foreign":
        del content["attributes"]["format"]
        expected = "not one of outlier-features"
    elif kind == "a list":
        content["attributes"] = []
        expected = "damaged"
    else:
        content["attributes"]["format_version"] = FORMAT_VERSION + 1
        expected = "format version 2, and this release reads up to 1"
    metadata.write_text(json.dumps(content))
    return expected


@pytest.mark.parametrize("kind", ["missing", "no zarr", "cut", "foreign", "a list", "newer"])
def test_what_is_no_store_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    expected = damaged(tmp_path / "s.zarr", kind)
    with pytest.raises(OutliersError, match=expected) as caught:
        open_group(tmp_path / "s.zarr")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("sequences", "raw", "layers"), [(2**17 + 1, "none", 1), (2**16, "input", 9)])
def test_a_store_that_no_reader_would_take_is_not_created(
    sequences: int, raw: str, layers: int, tmp_path: Path
) -> None:
    sizes = Sizes(sequences, layers, ("ln_attn", "ln_mlp"), 2, 2)
    with pytest.raises(OutliersError, match="exceed what a store holds.*use fewer --sequences"):
        create.create(
            tmp_path / "s.zarr",
            sizes,
            raw=raw,
            attributes={},
            token_id=np.zeros((sequences, 2), np.int32),
            norm_weight=np.ones((layers, 2, 2), np.float32),
        )
    assert not list(tmp_path.iterdir())
