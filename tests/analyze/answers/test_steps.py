"""Kept step functions: exact, found again, and never stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import Criteria, open_store, sweep
from analyze.answers.sweep import _steps
from analyze.answers.sweep_steps import histogram, hit_steps
from analyze.peaks import cache as cache_module
from analyze.peaks.lookup import view_peaks
from tests import builders, strategies


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


def coarse(x: np.ndarray) -> np.ndarray:
    """Values as float16 holds them."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", coarse(builders.random_activations()))


@settings(max_examples=80, deadline=None)
@given(strategies.activations(), strategies.criteria(), st.lists(st.sampled_from(strategies.MAGNITUDES), min_size=1))
def test_steps_equal_a_loop_over_hits(x: np.ndarray, criterion: Criteria, magnitudes: list[float]) -> None:
    x = coarse(x)
    steps = _steps(view_peaks(builders.dataset(x, x), criterion), criterion)
    assert steps is not None
    for magnitude in magnitudes:
        with np.errstate(over="ignore"):
            limit = np.float32(magnitude)
        expected = strategies.oracle(x, Criteria(**{**vars(criterion), "magnitude": magnitude}))
        assert int((steps.critical >= limit).sum()) == len(expected)
        for place, kind, total in ((0, steps.layer, steps.layer_units), (1, steps.position, steps.positions)):
            hits = int(kind.at(np.array([limit]))[0])
            assert hits == round(sum(value[place] * total for value in expected.values()))


def test_hit_steps_by_hand() -> None:
    counts = histogram(np.array([[1, 2, 2, -np.inf]], np.float32), np.array([np.inf], np.float32))
    assert counts is not None
    steps = hit_steps(counts)
    assert steps.value.tolist() == [1, 2]
    assert steps.at(np.array([0, 1, 1.5, 2, 2.5], np.float32)).tolist() == [3, 3, 2, 2, 0]


def test_a_second_sweep_reads_no_peaks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    magnitudes = np.linspace(0, 30, 200).tolist()
    expected = sweep(path, None, magnitudes, use_cache=False)
    first = sweep(path, None, [6, 1])
    monkeypatch.setattr("analyze.answers.sweep.view_peaks", lambda *_, **__: pytest.fail("the peaks were read again"))
    again = sweep(path, None, magnitudes)
    assert again.table.identical(expected.table)
    np.testing.assert_array_equal(*(next(iter(result.critical.values())) for result in (again, expected)))
    assert first.table["count"].values.ravel().tolist() == [
        int(again.critical[0.25, 0.06].size - np.searchsorted(again.critical[0.25, 0.06], m)) for m in (6, 1)
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 0.5},
        {"positions": 0.5},
        {"counting": "pooled"},
        {"layer_unit": "layer"},
        {"signal": "output"},
        {"sequences": (0, 1)},
        {"skip_first": 1},
    ],
)
def test_other_criteria_have_other_steps(path: Path, change: dict) -> None:
    sweep(path, Criteria(magnitude=2))
    other = Criteria(magnitude=2, **change)
    assert sweep(path, other).table.identical(sweep(path, other, use_cache=False).table)


def test_a_changed_store_has_other_steps(path: Path, tmp_path: Path) -> None:
    other = builders.on_disk(tmp_path / "other.zarr", coarse(builders.random_activations(seed=5)))
    sweep(path, None, [2])
    shutil.rmtree(path)
    shutil.copytree(other, path)
    assert sweep(path, None, [2, 3]).rows() == sweep(other, None, [2, 3]).rows()


def test_a_damaged_file_is_made_again(path: Path) -> None:
    expected = sweep(path, None, [1, 6]).rows()
    (file,) = cache_module.cache_folder().glob("*.npz")
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    assert sweep(path, None, [1, 6]).rows() == expected
    file.write_bytes(data[:100])
    assert sweep(path, None, [1, 6]).rows() == expected


def test_a_store_with_all_bits_is_swept_without(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    assert sweep(path, None, [1, 6]).table.identical(sweep(path, None, [1, 6], use_cache=False).table)
    assert not cache_module.cache_folder().exists()


def test_a_sweep_that_nothing_can_be_kept_of_is_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    expected = sweep(path, None, [1, 6], use_cache=False)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert sweep(path, None, [1, 6]).table.identical(expected.table)
    assert open_store(path) is not None
