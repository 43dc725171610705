"""What is kept of views: for whom, how much of it, and beside others who keep the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyze import OutliersError, View, open_store, view_peaks
from analyze.peaks import cache
from capture.store.drafts import draft_folder
from tests import builders

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", builders.random_activations())


def views() -> list[Path]:
    return sorted(entry for entry in cache.cache_folder().iterdir() if not entry.name.startswith("."))


def test_a_kept_view_is_a_zarr_that_anybody_reads(path: Path) -> None:
    peaks = view_peaks(open_store(path), View(skip_first=1))
    (entry,) = views()
    opened = xr.open_zarr(entry, consolidated=False)
    for name in ("layer_high", "layer_low", "position_peak"):
        np.testing.assert_array_equal(opened[name][0].values, peaks[name].values)


def test_views_of_what_a_store_was_before_go(path: Path) -> None:
    view_peaks(open_store(path), View(skip_first=1))
    (old,) = views()
    os.utime(path / "nll" / "c.0.0", ns=(1, 1))
    view_peaks(open_store(path), View(skip_first=2))
    assert old not in views()
    assert len(views()) == 1


def test_views_of_other_stores_stay(path: Path, tmp_path: Path) -> None:
    other = builders.on_disk(tmp_path / "other.zarr", builders.random_activations(seed=1))
    for store in (path, other):
        view_peaks(open_store(store), View(skip_first=1))
    assert len(views()) == 2


def test_above_the_bound_the_least_used_goes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for skip in (1, 2, 3):
        view_peaks(open_store(path), View(skip_first=skip))
        (newest,) = (entry for entry in views() if entry.stat().st_mtime > time.time() - 3000)
        os.utime(newest, (time.time() - 8000 + 1000 * skip,) * 2)
    first, second, third = sorted(views(), key=lambda entry: entry.stat().st_mtime)
    room = sum(file.stat().st_size for file in second.rglob("*") if file.is_file())
    monkeypatch.setenv("OUTLIERS_CACHE_GB", str(2.5 * room / 1e9))
    cache.tidy(open_store(path))
    assert views() == sorted([second, third])
    os.utime(second)  # in use
    monkeypatch.setenv("OUTLIERS_CACHE_GB", "0")
    cache.tidy(open_store(path))
    assert views() == [second]
    assert not first.exists()


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_a_bound_that_is_none_is_refused(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLIERS_CACHE_GB", text)
    with pytest.raises(OutliersError, match="expected a number of gigabytes"):
        view_peaks(open_store(path), View(skip_first=1))


def test_drafts_of_killed_processes_go_and_those_of_others_stay(path: Path) -> None:
    cache.writable()
    old = cache.cache_folder() / ".old.0123abcd.partial"
    old.mkdir()
    with draft_folder(cache.cache_folder() / "new") as new:
        view_peaks(open_store(path), View(skip_first=1))
        assert new.exists()
    assert not old.exists()


@pytest.mark.parametrize("text", ["[]", "null", '{"attributes": null}', "", "\0\0"])
def test_an_entry_that_is_none_does_not_end_an_answer(path: Path, text: str) -> None:
    cache.writable()
    (cache.cache_folder() / "odd").mkdir()
    (cache.cache_folder() / "odd" / "zarr.json").write_text(text)
    view_peaks(open_store(path), View(skip_first=1))
    assert len(views()) == 2


@pytest.mark.exhaustive
def test_six_equal_questions_at_once(path: Path) -> None:
    words = [sys.executable, "-m", "analyze.cli", "find", str(path), "--skip-first", "1", "--magnitude", "2", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        running = [subprocess.Popen(words, env=environment, stdout=-1, stderr=-1, text=True) for _ in range(6)]
        told = [process.communicate(timeout=300) for process in running]
        assert [process.returncode for process in running] == [0] * 6, told
        assert len({answer for answer, _ in told}) == 1
    assert len(views()) == 1
