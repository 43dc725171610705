"""Peaks of views: streamed equals stored, whatever the chunks; the cache never serves what is stale."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import Criteria, OutliersError, open_store, view_peaks
from analyze.peaks import cache as cache_module
from analyze.peaks.groups import group_keys, of_groups, transpose
from analyze.peaks.stream import block_peaks, stream_peaks
from analyze.peaks.threads import in_threads
from analyze.question.units import scale_unit, scaled
from analyze.question.view import View
from tests import builders, strategies

NAMES = ("layer_high", "layer_low", "position_peak")


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


@settings(max_examples=60, deadline=None)
@given(strategies.activations(), st.data())
def test_streamed_peaks_equal_stored_ones_whatever_the_chunks(x: np.ndarray, data: st.DataObject) -> None:
    store = builders.dataset(x, x[::-1])
    chunks = {dim: data.draw(st.integers(1, size)) for dim, size in store.sizes.items() if dim != "signal"}
    signal = data.draw(st.sampled_from(("input", "output")))
    stored = view_peaks(store, View(signal=signal))
    for part in stream_peaks(store.chunk(chunks), View(signal=signal)):
        place = slice(part.start, part.start + len(part.layer_high))
        for name in NAMES:
            np.testing.assert_array_equal(getattr(part, name), stored[name].values[place], err_msg=name)


@settings(max_examples=60, deadline=None)
@given(strategies.activations(), st.sampled_from(("absolute", "rms", "median")))
def test_block_peaks_equal_loops(x: np.ndarray, scale: str) -> None:
    high, low, peak = block_peaks(x, scale)
    values = strategies.in_view(x, Criteria(scale=scale))
    np.testing.assert_array_equal(high, np.fmax.reduce(values, axis=3))
    np.testing.assert_array_equal(low, np.fmin.reduce(values, axis=3))
    np.testing.assert_array_equal(peak, np.fmax.reduce(np.fmax.reduce(np.abs(values), axis=2), axis=1))


def test_units_by_hand() -> None:
    matrix = np.array([[3, -4], [np.nan, np.inf]], np.float32)
    assert scale_unit(matrix, "rms") == pytest.approx(np.sqrt(12.5))
    assert scale_unit(matrix, "median") == 3.5
    assert np.isnan(scale_unit(np.full((1, 2), np.nan, np.float32), "rms"))
    np.testing.assert_array_equal(scaled(np.array([0, 2, -2, np.nan], np.float32), 0.0), [0, np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(scaled(np.array([np.inf, np.nan], np.float32), np.nan), [np.inf, np.nan])


def test_plain_views_read_no_activations(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    for name in ("norm_input", "norm_output"):
        for file in (path / name).glob("c.*"):
            file.unlink()
    store = open_store(path)
    assert view_peaks(store, View(sequences=(2, 0)))["layer_high"].values.shape == (2, 4, 2, 5)
    # The whole of every dimension, spelled out, is the plain view.
    whole = View(layer_range=(0, 4), sites=("ln_mlp", "ln_attn"), sequences=(0, 1, 2))
    assert view_peaks(store, whole)["position_peak"].values.shape == (3, 7, 5)


def test_norm_outputs_are_derived_where_they_are_not_kept(tmp_path: Path) -> None:
    x = builders.random_activations()
    weight = builders.arrays_of(x)["norm_weight"]
    bias = np.linspace(-1, 1, weight.size, dtype=np.float32).reshape(weight.shape)
    # A layer norm as in Ba et al. 2016, in float64, its weight stored less 1.
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    normalised = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    expected = normalised * (1.0 + weight[None, :, :, None]) + bias[None, :, :, None]
    path = builders.on_disk(
        tmp_path / "s.zarr",
        x,
        raw="input",
        norm_bias=bias,
        attributes={"norm_kind": "layer", "norm_weight_offset": 1.0},
    )
    store = open_store(path)
    peaks = view_peaks(store, View(signal="output", skip_first=1))
    np.testing.assert_allclose(peaks["layer_high"].values, expected[:, :, :, 1:].max(axis=3), rtol=1e-5, atol=1e-6)
    rechunked = view_peaks(store.chunk({"feature": 2, "layer": 3}), View(signal="output", skip_first=1))
    np.testing.assert_array_equal(rechunked["position_peak"].values, peaks["position_peak"].values)


def test_deriving_says_what_it_lacks(tmp_path: Path) -> None:
    path = builders.on_disk(
        tmp_path / "s.zarr", builders.random_activations(), raw="input", attributes={"norm_epsilon": None}
    )
    with pytest.raises(OutliersError, match="no attribute norm_epsilon; capture with --raw both"):
        view_peaks(open_store(path), View(signal="output", skip_first=1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", builders.random_activations())


def cached_folders(path: Path) -> list[Path]:
    assert not (path / ".views").exists()
    return sorted(cache_module.cache_folder().glob("*"))


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(one[name].values, other[name].values)


def test_a_view_is_computed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = view_peaks(open_store(path), View(skip_first=2))
    assert len(cached_folders(path)) == 1
    monkeypatch.setattr("analyze.peaks.lookup.stream_peaks", lambda *_: pytest.fail("the activations were read again"))
    same(first, view_peaks(open_store(path), View(skip_first=2)))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        view_peaks(open_store(path), View(skip_first=1))


def test_criteria_share_the_cache_of_their_view(path: Path) -> None:
    store = open_store(path)
    view_peaks(store, Criteria(skip_first=1, magnitude=2))
    view_peaks(store, View(skip_first=1))
    assert len(cached_folders(path)) == 1


def test_the_cache_is_no_part_of_the_store(path: Path) -> None:
    before = set(xr.open_zarr(path).variables)
    view_peaks(open_store(path), View(skip_first=1))
    assert set(xr.open_zarr(path).variables) == before


def test_a_changed_store_is_computed_again(path: Path, tmp_path: Path) -> None:
    old = view_peaks(open_store(path), View(skip_first=1))["layer_high"].values.copy()
    other = builders.on_disk(tmp_path / "other.zarr", builders.random_activations(seed=1))
    shutil.rmtree(path)
    shutil.copytree(other, path)
    new = view_peaks(open_store(path), View(skip_first=1))["layer_high"].values
    assert not np.array_equal(old, new)
    same(view_peaks(open_store(path), View(skip_first=1)), view_peaks(open_store(other), View(skip_first=1)))


def test_a_dataset_that_the_user_changed_is_not_cached(path: Path) -> None:
    store = open_store(path)
    assert cache_module.cache_key(store, View(skip_first=1)) is not None
    doubled = store.assign(norm_input=store["norm_input"] * 2)
    for changed in (doubled, store.isel(sequence=[0]), store.chunk({"layer": 2})):
        assert cache_module.cache_key(changed, View(skip_first=1)) is None
        view_peaks(changed, View(skip_first=1))
    assert cached_folders(path) == []
    single = view_peaks(store, View(skip_first=1))["layer_high"].values
    np.testing.assert_array_equal(view_peaks(doubled, View(skip_first=1))["layer_high"].values, 2 * single)


def test_a_read_only_store_is_cached_for_the_user(
    path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def refuse(self: Path, *args: object, **options: object) -> None:
        if path in self.parents:
            raise PermissionError(13, "Permission denied")
        make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    first = view_peaks(open_store(path), View(skip_first=1))
    assert len(list((user_cache / "outlier-features" / "views").glob("*"))) == 1
    monkeypatch.setattr("analyze.peaks.lookup.stream_peaks", lambda *_: pytest.fail("the activations were read again"))
    same(first, view_peaks(open_store(path), View(skip_first=1)))


def test_a_pass_that_fails_leaves_nothing_behind(path: Path) -> None:
    file = path / "norm_input" / "c.2.0.0.0.0"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(OutliersError, match="norm_input is damaged at sequence 2"):
        view_peaks(open_store(path), View(skip_first=1))
    assert cached_folders(path) == []


def test_a_store_that_changes_meanwhile_is_not_cached(path: Path) -> None:
    store = open_store(path)
    os.utime(path / "nll" / "c.0.0", ns=(1, 1))
    with pytest.raises(OutliersError, match="changed while it was read"):
        view_peaks(store, View(skip_first=1))
    assert cached_folders(path) == []


def test_a_cache_that_is_not_whole_is_computed_again(path: Path) -> None:
    first = view_peaks(open_store(path), View(skip_first=1))
    values = {name: first[name].values.copy() for name in NAMES}
    file = next((cached_folders(path)[0] / "layer_high").glob("c.*"))
    del first
    file.write_bytes(file.read_bytes()[:50])
    again = view_peaks(open_store(path), View(skip_first=1))
    for name in NAMES:
        np.testing.assert_array_equal(again[name].values, values[name])


def test_progress_is_told(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    view_peaks(open_store(path), View(skip_first=1), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_pooled_groups_cover_all_features_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = builders.random_activations()
    peaks = view_peaks(builders.dataset(x), View())
    whole = list(of_groups(lambda group: group, peaks, Criteria(counting="pooled")))
    monkeypatch.setattr("analyze.peaks.groups._BLOCK", 2 * 3 * 7)
    criteria = Criteria(counting="pooled")
    assert [key[1] for key in group_keys(peaks, criteria)] == [range(2), range(2, 4), range(4, 5)]
    parts = list(of_groups(lambda group: group, peaks, criteria))
    for name in ("layer", "position"):
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole[0], name))
    np.testing.assert_array_equal(whole[0].position, np.abs(x).max(axis=(1, 2)).reshape(21, 5).T)


@pytest.mark.parametrize("shape", [(1, 1), (3, 130), (130, 65), (64, 64)])
def test_transpose(shape: tuple[int, int]) -> None:
    source = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    target = np.empty(shape[::-1], np.float32)
    transpose(source, target)
    np.testing.assert_array_equal(target, source.T)


def test_work_that_has_not_begun_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyze.peaks.threads.threads", lambda most: 1)
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise KeyboardInterrupt
        time.sleep(0.01)
        return item

    with pytest.raises(KeyboardInterrupt):
        list(in_threads(work, range(1000)))
    assert len(begun) < 100
    assert list(in_threads(lambda item: item * item, range(50))) == [n * n for n in range(50)]
