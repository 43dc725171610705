"""What an analysis costs beside the reading that it cannot do without, and beside other ways: taken in one run."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from analyze import Criteria, View, open_store, quantize, sweep, view_peaks
from analyze.peaks.cache import cache_folder
from analyze.reading.arrays import StoredArray
from capture.store.schema import Sizes
from tests.benchmarks.table import SITES, bfloat16, deviations, in_turns, made_up, record

ROUNDS = 7


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(array: zarr.Array | StoredArray) -> None:
    """Every chunk of the activations read and decompressed, a chunk to a thread, and dropped."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(lambda place: array[place].size, np.ndindex(*array.shape[:3])):
            pass


def test_the_streaming_pass_against_bare_reading(tmp_path: Path) -> None:
    path = made_up(tmp_path / "s.zarr", Sizes(2, 12, SITES, 2048, 2048), raw=True)

    def stream() -> None:
        view_peaks(open_store(path), View(skip_first=1), use_cache=False)

    stream()
    wall, used = in_turns(
        ROUNDS,
        stream,
        lambda: read(zarr.open_array(path / "norm_input", mode="r")),
        lambda: read(StoredArray(path, "norm_input", SITES)),
    )
    for number, reader, aim in ((1, "zarr", "1.2"), (2, "our own reader, which the pass uses,", "")):
        record(
            "Analysis",
            f"streaming pass over 768 MiB of activations / {reader} reading the same chunks in as many threads",
            f"{wall[0] / wall[number]:.2f} (processor time {used[0] / used[number]:.2f}); "
            f"{wall[0]:.2f} s / {wall[number]:.2f} s",
            aim,
        )


def peak_mebibytes(path: Path) -> float:
    """Largest resident memory of a process that streams a view of a store."""
    code = (
        "import resource, sys; from analyze import View, open_store, view_peaks;"
        "view_peaks(open_store(sys.argv[1]), View(skip_first=1));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    # By way of a shell: a process inherits the largest size of the one that started it.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", code, str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_memory_on_a_store_ten_times_as_large(tmp_path: Path) -> None:
    small, large = (made_up(tmp_path / f"{n}.zarr", Sizes(n, 8, SITES, 1024, 1024), raw=True) for n in (2, 20))
    one, ten = peak_mebibytes(small), peak_mebibytes(large)
    record(
        "Analysis",
        "largest memory of a process that streams 1,280 MiB of activations / 128 MiB",
        f"{ten / one:.2f} ({ten:.0f} MiB / {one:.0f} MiB)",
        "flat, at most 1,024 MiB",
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Peaks of 16 x 2,048 tokens of a model 4,096 wide with 32 layers."""
    return made_up(tmp_path_factory.mktemp("wide") / "s.zarr", Sizes(16, 32, SITES, 2048, 4096), raw=False)


def test_a_thousand_thresholds_from_stored_peaks(wide: Path) -> None:
    magnitudes = np.linspace(1, 40, 1000).tolist()

    def first() -> None:
        shutil.rmtree(cache_folder(), ignore_errors=True)
        sweep(wide, None, magnitudes)

    first()  # imports
    (new, kept), (new_used, _) = in_turns(5, first, lambda: sweep(wide, None, magnitudes))
    name = "sweep over 1,000 thresholds, 16 x 2,048 tokens, 4,096 wide, 32 layers: "
    record("Analysis", name + "first time", f"{new:.2f} s (processor time {new_used:.2f} s)", "0.5 s")
    record("Analysis", name + "again, also at others", f"{kept * 1e3:.0f} ms", "0.5 s")


def numpy_counts(magnitudes: np.ndarray, thresholds: list[float]) -> list[int]:
    """The study's count at each threshold, from all activations in memory."""
    counts = []
    for threshold in thresholds:
        hits = magnitudes >= np.float32(threshold)
        layers = hits.any(axis=3).mean(axis=(1, 2))
        positions = hits.any(axis=(1, 2)).mean(axis=1)
        counts.append(int(((layers >= 0.25) & (positions >= 0.06)).sum()))
    return counts


def loop_over_hits(magnitudes: np.ndarray, threshold: float) -> int:
    """The same for one sequence, hit by hit; returns the number of hits."""
    units: dict[int, set[tuple[int, int]]] = {}
    positions: dict[int, set[int]] = {}
    hits = np.argwhere(magnitudes >= np.float32(threshold)).tolist()
    for layer, site, position, feature in hits:
        units.setdefault(feature, set()).add((layer, site))
        positions.setdefault(feature, set()).add(position)
    return len(hits)


def seconds_a_hit(magnitudes: np.ndarray, threshold: float) -> tuple[float, int]:
    """Median time of the loop for one hit, and how many hits it was measured on."""
    taken, hits = [], 0
    for _ in range(3):
        began = time.perf_counter()
        hits = loop_over_hits(magnitudes, threshold)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) / hits, hits


def test_an_ablation_of_twenty_thresholds(tmp_path: Path) -> None:
    path = made_up(tmp_path / "s.zarr", Sizes(4, 8, SITES, 1024, 1024), raw=True, deviation=5)
    thresholds = [float(m) for m in range(1, 21)]
    store = open_store(path)
    magnitudes = np.abs(store["norm_input"].values)

    def first() -> list[int]:
        shutil.rmtree(cache_folder(), ignore_errors=True)
        return sweep(store, Criteria(), thresholds).table["count"].values.ravel().tolist()

    assert first() == numpy_counts(magnitudes, thresholds)
    (new, kept, vectorised), _ = in_turns(
        3, first, lambda: sweep(store, Criteria(), thresholds), lambda: numpy_counts(magnitudes, thresholds)
    )
    each, hits = seconds_a_hit(magnitudes[0, :, :, :32], 6)
    every = sum(int(np.count_nonzero(magnitudes >= np.float32(m))) for m in thresholds)
    loop = each * every
    ways = {
        "NumPy evaluating every threshold from activations in memory": (vectorised, "", ""),
        "a Python loop over hits": (
            loop,
            f"; the loop measured on {hits / 1e6:.1f} million hits and scaled to {every / 1e6:.0f} million",
            "100,000",
        ),
    }
    for name, (seconds, note, aim) in ways.items():
        record(
            "Analysis",
            f"20 thresholds, 4 x 1,024 tokens, 1,024 wide, 8 layers: {name} / sweep",
            f"{seconds / new:,.0f} the first time, {seconds / kept:,.0f} again "
            f"({seconds:.1f} s / {new * 1e3:.0f} ms and {kept * 1e3:.1f} ms{note})",
            aim,
        )


def test_an_ablation_of_twenty_thresholds_on_a_large_store(wide: Path) -> None:
    thresholds = [m / 5 for m in range(1, 21)]  # where the activations lie: no trained model's are so small

    def first() -> None:
        shutil.rmtree(cache_folder(), ignore_errors=True)
        sweep(wide, None, thresholds)

    first()
    (new, kept), _ = in_turns(5, first, lambda: sweep(wide, None, thresholds))
    # The activations would be 34 GB: hits are counted in one matrix of the same values, and taken for all of them.
    sizes = open_store(wide).sizes
    matrices = sizes["sequence"] * sizes["layer"] * sizes["site"]
    shape = (sizes["position"], sizes["feature"])
    matrix = np.abs(bfloat16(deviations(shape[1]) * np.random.default_rng(1).standard_normal(shape, dtype=np.float32)))
    each, hits = seconds_a_hit(matrix[None, None, :1000], 1.2)
    every = matrices * sum(int(np.count_nonzero(matrix >= np.float32(m))) for m in thresholds)
    record(
        "Analysis",
        "20 thresholds, 16 x 2,048 tokens, 4,096 wide, 32 layers: a Python loop over hits / sweep",
        f"{each * every / new:,.0f} the first time, {each * every / kept:,.0f} again "
        f"({each * every / 3600:.1f} hours / {new:.2f} s and {kept * 1e3:.0f} ms; the loop measured on "
        f"{hits / 1e6:.1f} million hits and scaled to {every / 1e9:.1f} thousand million)",
        "100,000",
    )


def test_find_as_a_whole_process(wide: Path, tmp_path: Path) -> None:
    path = made_up(tmp_path / "s.zarr", Sizes(8, 30, SITES, 1024, 576), raw=False)

    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, capture_output=True)

    (small, large, imports), _ = in_turns(
        5,
        lambda: run("-m", "analyze.cli", "find", str(path)),
        lambda: run("-m", "analyze.cli", "find", str(wide)),
        lambda: run("-c", "import numpy, xarray, dask.array"),
    )
    name = "`outliers find`, whole process, "
    record(
        "Analysis",
        name + "8 x 1,024 tokens, 576 wide, 30 layers",
        f"{small:.2f} s, of which numpy, xarray and dask.array alone take {imports:.2f} s to import",
        "1.5 s",
    )
    record("Analysis", name + "16 x 2,048 tokens, 4,096 wide, 32 layers", f"{large:.2f} s", "")


def test_schemes_of_a_quantiser(tmp_path: Path) -> None:
    path = made_up(tmp_path / "s.zarr", Sizes(8, 30, SITES, 1024, 576), raw=True)
    (all_schemes, one, more), _ = in_turns(
        3,
        lambda: quantize(path, use_cache=False),
        lambda: quantize(path, ["int8-token"], thresholds=[6], use_cache=False),
        lambda: quantize(path, ["int8-token"], thresholds=range(3, 13), use_cache=False),
    )
    size = "8 x 1,024 tokens, 576 wide, 30 layers"
    record("Analysis", f"`quantize` with its twelve schemes, {size}", f"{all_schemes:.0f} s", "60 s")
    figure = f"{(more - one) / 9 / one:.2f} ({(more - one) / 9:.1f} s / {one:.1f} s)"
    record("Analysis", f"`quantize`: one more threshold of a scheme / that scheme with one threshold, {size}", figure)
