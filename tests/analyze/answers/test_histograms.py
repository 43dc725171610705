"""Histograms of peaks: exact below critical magnitudes, by whichever way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.answers import sweep_steps
from analyze.answers.sweep_steps import histogram, hit_steps, ranked_histogram


def test_too_many_bits_are_not_squeezed_into_bins() -> None:
    values = np.array([[1.0, np.nextafter(np.float32(1), np.float32(2))]], np.float32)
    assert histogram(values, np.array([np.inf], np.float32)) is None
    assert histogram(values[:, :1], np.array([np.inf], np.float32)) is not None
    assert (
        histogram(values, np.array([0.5], np.float32)) is not None
    )  # what counts is never above the critical magnitude


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 300),
    st.integers(1, 40),
    st.sampled_from([0.0, 1.0, 8.0]),
    st.sampled_from(["C", "F"]),
    st.data(),
)
def test_a_ranked_histogram_in_either_order(
    seed: int, features: int, units: int, spread: float, order: str, data: st.DataObject
) -> None:
    """Peaks of bfloat16 models, close together (counted) or far apart (sorted), beside sorting in float64."""
    rng = np.random.default_rng(seed)
    peaks = np.exp2(spread * rng.standard_normal((features, units))).astype(np.float32)
    peaks = (peaks.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    peaks[rng.random(peaks.shape) < data.draw(st.sampled_from([0, 0.1]))] = data.draw(st.sampled_from([0, -np.inf]))
    cap = rng.choice([peaks.max(), peaks.min(), np.inf, 0.5, 1.0, 1024.0], features).astype(np.float32)
    rank = data.draw(st.integers(0, units))
    critical, counts = ranked_histogram(np.array(peaks, order=order), rank, cap)
    ordered = np.sort(peaks.astype(np.float64), axis=1)[:, ::-1]
    expected = np.minimum(cap, ordered[:, rank - 1] if rank else np.inf)
    assert critical.tolist() == expected.tolist()
    assert counts is not None
    steps = hit_steps(counts)
    limits = np.unique(np.concatenate([peaks[np.isfinite(peaks)], [0, 0.7, 3]])).astype(np.float32)
    hits = (np.minimum(peaks, critical[:, None])[..., None] >= limits).sum(axis=(0, 1))
    assert steps.at(limits).tolist() == hits.tolist()


@pytest.mark.parametrize(
    ("octaves", "order", "counted", "sorted_"),
    [
        (0, "F", 1, 0),  # all features together
        (5, "F", 4, 0),  # 640 bins a feature: fewer features at once
        (100, "F", 0, 304 // 8),  # too many for any
        (0, "C", 0, 1),
    ],
)
def test_the_way_that_is_taken(
    octaves: int, order: str, counted: int, sorted_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way counts every peak below the largest critical magnitude once."""
    ways = {"_count": 0, "_sort": 0}
    for name in ways:

        def spied(*arguments: object, name: str = name, way: object = getattr(sweep_steps, name)) -> None:
            ways[name] += 1
            way(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(sweep_steps, name, spied)
    features = 256 if counted else 304
    peaks = np.ones((features, 16), np.float32)
    peaks[:, 3] = 2.0**octaves
    critical, counts = ranked_histogram(np.array(peaks, order=order), 2, np.full(features, np.inf, np.float32))
    assert ways == {"_count": counted, "_sort": sorted_}
    assert (critical == 1).all()
    assert counts is not None
    assert hit_steps(counts).at(np.array([0.5, 1, 1.5], np.float32)).tolist() == [peaks.size, peaks.size, 0]
