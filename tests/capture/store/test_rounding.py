"""Rounding to bfloat16 against exact arithmetic, and its way through every path that reads values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import (
    Criteria,
    OutliersError,
    all_conventions,
    dettmers_table,
    find_outliers,
    layer_metrics,
    open_store,
    permutation_null,
    sweep,
    view_peaks,
)
from analyze.cli import main
from analyze.peaks.cache import cache_key
from analyze.question.units import round_bfloat16
from analyze.question.view import View
from tests import builders
from tests.strategies import nearest_bfloat16

TIE = 5.984375  # halfway between 5.96875 and 6, whose last bit is even


def bits(value: int) -> np.float32:
    return np.array(value, np.uint32).view(np.float32)[()]


@settings(max_examples=500)
@given(st.integers(0, 2**32 - 1))
def test_any_float32_goes_to_the_nearest_bfloat16(pattern: int) -> None:
    value = bits(pattern)
    rounded = round_bfloat16(np.array([value]))[0]
    if math.isnan(value):
        assert rounded.view(np.uint32) == pattern
    else:
        assert float(rounded) == nearest_bfloat16(float(value))
        assert math.copysign(1, rounded) == math.copysign(1, value)


@given(st.integers(0, 2**16 - 2))
def test_halfway_goes_to_even(leading: int) -> None:
    half = bits((leading << 16) | 0x8000)
    if math.isfinite(bits(leading << 16)):
        even = leading + leading % 2
        assert round_bfloat16(np.array([half]))[0].view(np.uint32) == even << 16
        # A bit below and a bit above the tie there is no question.
        around = np.array([(leading << 16) | 0x7FFF, (leading << 16) | 0x8001], np.uint32).view(np.float32)
        assert round_bfloat16(around).view(np.uint32).tolist() == [leading << 16, (leading + 1) << 16]


def test_what_is_bfloat16_already_is_not_copied() -> None:
    values = np.array([[1, -6.0, np.inf, 0]], np.float32)
    assert np.shares_memory(round_bfloat16(values), values)
    other = np.array([[1.001, np.nan]], np.float32)
    kept = other.copy()
    round_bfloat16(other)
    np.testing.assert_array_equal(other, kept)
    assert round_bfloat16(np.empty((0, 3), np.float32)).shape == (0, 3)


def test_pytorch_rounds_the_same() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(round_bfloat16(values), expected)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two features that reach 6 in bfloat16 only, at every place."""
    x = np.full((2, 3, 2, 5, 8), 1.001, np.float32)
    x[..., 2], x[..., 5] = TIE, -TIE
    x[..., 3] = np.nextafter(np.float32(TIE), np.float32(0))
    return builders.on_disk(tmp_path / "s.zarr", x, x)


ROUNDED = Criteria(rounding="bfloat16")
VIEWS = ({}, {"skip_first": 1}, {"layer_range": (1, 3)}, {"sites": ("ln_mlp",)}, {"sequences": (1,)})


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("counting", ["per-sequence", "pooled"])
def test_every_view_rounds(path: Path, view: dict, counting: str) -> None:
    plain = Criteria(counting=counting, **view)
    rounded = Criteria(counting=counting, rounding="bfloat16", **view)
    assert find_outliers(path, plain).count == 0
    found = find_outliers(path, rounded)
    assert {row.feature for row in found.features} == {2, 5}
    assert {(row.max_magnitude, row.critical_magnitude) for row in found.features} == {(6, 6)}
    result = sweep(path, rounded, [5.96, 5.97, 6, 6.001])
    groups = found.count // 2
    assert result.table["count"].values.ravel().tolist() == [3 * groups, 2 * groups, 2 * groups, 0]
    assert sweep(path, plain, [5.96, 5.97, 6, 6.001]).table["count"].values.ravel()[1:].tolist() == [3 * groups, 0, 0]
    peaks = view_peaks(open_store(path), rounded)
    assert peaks["layer_low"].isel(feature=5).values.max() == -6


def test_a_scale_is_taken_of_rounded_values(path: Path) -> None:
    peaks = view_peaks(open_store(path), View(scale="median", rounding="bfloat16"))
    assert peaks["position_peak"].values[0, 0].tolist() == [1, 1, 6, 5.96875, 1, 6, 1, 1]
    exact = view_peaks(open_store(path), View(scale="median"))
    assert exact["position_peak"].values[0, 0, 2] == np.float32(np.float32(TIE) / np.float64(np.float32(1.001)))


def test_what_reads_values_one_by_one_rounds_them(path: Path) -> None:
    table = dettmers_table(path, ROUNDED)
    assert (table.outliers, table.quartiles, table.largest_median) == (2, (6, 6, 6), 6)
    assert dettmers_table(path).outliers == 0
    metrics = layer_metrics(path, ROUNDED)
    assert set(metrics["max_magnitude"].values.ravel()) == {6}
    assert set(metrics["median_magnitude"].values.ravel()) == {1}
    assert permutation_null(path, ROUNDED, repeats=3).null_counts.min() > 0
    assert permutation_null(path, repeats=3).null_counts.max() == 0
    rows = all_conventions(path, ROUNDED)
    assert {row["distinct_features"] for row in rows} == {2}


def test_caches_of_rounded_and_exact_views_are_apart(path: Path) -> None:
    store = open_store(path)
    keys = {cache_key(store, View(rounding=word, scale="rms")) for word in ("none", "bfloat16")}
    assert len(keys) == 2
    assert sweep(path, ROUNDED, [6]).table["count"].item() == 4
    assert sweep(path, None, [6]).table["count"].item() == 0
    assert sweep(path, ROUNDED, [6]).table["count"].item() == 4


def test_a_rounded_view_is_served_from_the_exact_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_outliers(path, Criteria(skip_first=1))
    monkeypatch.setattr("analyze.peaks.stream.stream_peaks", lambda *_: pytest.fail("the activations were read again"))
    assert find_outliers(path, Criteria(skip_first=1, rounding="bfloat16")).count == 4


@pytest.mark.parametrize(
    ("words", "rounding", "count"),
    [
        (["--preset", "study"], "bfloat16", 4),
        (["--preset", "study", "--rounding", "none"], "none", 0),
        (["--preset", "dettmers"], "none", 0),
        (["--rounding", "bfloat16"], "bfloat16", 4),
        ([], "none", 0),
    ],
)
def test_the_command_line_says_what_was_done(
    path: Path, words: list[str], rounding: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find", str(path), "--json", *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["criteria"]["rounding"], answer["count"]) == (rounding, count)
    assert ("rounded to bfloat16" in str(Criteria(**answer["criteria"]))) == (rounding == "bfloat16")
    for command in ("sweep", "null", "metrics"):
        assert main([command, str(path), "--json", "--rounding", rounding]) == 0
        assert json.loads(capsys.readouterr().out)["criteria" if command != "metrics" else "dettmers"]


def test_another_word_is_refused() -> None:
    with pytest.raises(OutliersError, match="rounding is 'float16'; expected one of none, bfloat16"):
        Criteria(rounding="float16")  # type: ignore[arg-type]
