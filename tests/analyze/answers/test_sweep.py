"""Sweeps: every row equals the definition, ties and boundaries included."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import analyze
from analyze import Criteria, OutliersError, find_outliers
from analyze import sweep as run
from analyze.question.ranks import Limits
from tests import builders, strategies

magnitudes = st.lists(st.sampled_from(strategies.MAGNITUDES) | st.floats(0, 10), min_size=1, max_size=5)
fractions = st.lists(st.sampled_from(strategies.FRACTIONS) | st.floats(0, 1), min_size=1, max_size=3)


@settings(max_examples=80, deadline=None)
@given(strategies.activations(), strategies.criteria(), magnitudes, fractions, fractions)
def test_every_row_equals_a_loop_over_hits(
    x: np.ndarray, criterion: Criteria, magnitudes: list[float], layers: list[float], positions: list[float]
) -> None:
    result = run(builders.dataset(x, x), criterion, magnitudes, layers, positions)
    rows = iter(result.rows())
    for a in layers:
        for b in positions:
            for m in magnitudes:
                row = next(rows)
                assert (row["magnitude"], row["layers"], row["positions"]) == (m, a, b)
                settings = {**vars(criterion), "magnitude": m, "layers": a, "positions": b}
                expected = strategies.oracle(x, Criteria(**settings))
                assert row["count"] == len(expected)
                assert row["distinct_features"] == len({f for _, f in expected})
                for place, name in ((0, "mean_layer_fraction"), (1, "mean_position_fraction")):
                    if expected:
                        mean = np.mean([values[place] for values in expected.values()])
                        assert row[name] == pytest.approx(mean, rel=1e-12)
                    else:
                        assert math.isnan(row[name])
    assert next(rows, None) is None


@settings(max_examples=60, deadline=None)
@given(strategies.activations(), strategies.criteria(), magnitudes)
def test_a_row_equals_find_to_the_last_bit(x: np.ndarray, criterion: Criteria, magnitudes: list[float]) -> None:
    store = builders.dataset(x, x)
    for row in run(store, criterion, magnitudes).rows():
        found = find_outliers(store, Criteria(**{**vars(criterion), "magnitude": row["magnitude"]}))
        np.testing.assert_equal(
            [found.count, found.distinct_features, found.mean_layer_fraction, found.mean_position_fraction],
            [row["count"], row["distinct_features"], row["mean_layer_fraction"], row["mean_position_fraction"]],
        )


@settings(deadline=None)
@given(
    st_numpy.arrays(
        np.float32,
        (3, 6),
        elements=st.sampled_from((0.0, 1e-45, 0.5, 6.0, 6.5, 3e38, math.inf, -math.inf)) | st.floats(0, width=32),
    ),
    st.lists(st.floats(0, width=32) | st.sampled_from((0.0, 1e-45, 0.5, 6.0, 6.25)), min_size=1),
)
def test_limits_that_a_magnitude_reaches(peaks: np.ndarray, limits: list[float]) -> None:
    ordered = np.unique(np.asarray(limits, np.float32))
    peaks[np.isnan(peaks)] = 0
    expected = [[sum(value >= limit for limit in ordered) for value in row] for row in peaks]
    assert Limits(ordered).reached(peaks).tolist() == expected


@pytest.mark.parametrize("count", [1, 10, 1000, 100_000])
def test_many_limits_side_by_side(count: int) -> None:
    limits = np.unique(np.linspace(6, 6.5, count, dtype=np.float32))
    between = np.nextafter(limits, np.float32(np.inf))
    for peaks, side in ((limits, "right"), (between, "right"), (np.float32([0, 5.999, 7, -np.inf, np.inf]), "right")):
        np.testing.assert_array_equal(Limits(limits).reached(peaks), np.searchsorted(limits, peaks, side=side))


def test_peaks_may_be_handled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    store = builders.dataset(builders.random_activations())
    whole, single = run(store, None, [1, 2, 3], [0.1, 0.5]), run(store, None, [1, 2, 3])
    monkeypatch.setattr("analyze.answers.sweep._BAND", 15)
    assert whole.table.identical(run(store, None, [1, 2, 3], [0.1, 0.5]).table)
    assert single.table.identical(run(store, None, [1, 2, 3]).table)


def test_the_sweep_reads_peaks_alone(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), raw="none")
    result = run(path, Criteria.preset("study"), np.linspace(0, 20, 1000).tolist())
    assert len(result.rows()) == 1000
    counts = result.table["count"].values.ravel()
    assert (np.diff(counts) <= 0).all()
    assert counts[0] == 15


def test_steps_and_rows_agree() -> None:
    result = run(builders.dataset(builders.random_activations()), None, [1, 6, 20])
    (critical,) = result.critical.values()
    assert [int((critical >= np.float32(m)).sum()) for m in (1, 6, 20)] == result.table["count"].values.ravel().tolist()


def test_the_json_object_is_strict_and_documented() -> None:
    result = run(builders.dataset(builders.random_activations()), None, [1, 1e30])
    text = json.dumps(result.to_dict(), allow_nan=False)
    rows = json.loads(text)["rows"]
    assert list(rows[0]) == [
        "magnitude",
        "layers",
        "positions",
        "count",
        "distinct_features",
        "mean_layer_fraction",
        "mean_position_fraction",
    ]
    assert rows[1]["mean_layer_fraction"] is None
    assert "<" in result._repr_html_()


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        (([],), "no magnitude to sweep over"),
        (([1, -1],), "magnitude is -1"),
        (([1], [0.5, 1.5]), "layers is 1.5; expected a fraction"),
        (([1], None, [math.nan]), "positions is nan"),
    ],
)
def test_bad_thresholds_are_refused(swept: tuple, message: str) -> None:
    with pytest.raises(OutliersError, match=message):
        run(builders.dataset(builders.random_activations()), None, *swept)


def test_sweep_is_a_function_of_the_package() -> None:
    assert callable(analyze.sweep)
