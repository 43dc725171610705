"""The pure arithmetic: thresholds, required hits, ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from analyze import Criteria, OutliersError
from analyze.question.ranks import critical_magnitude, kth_largest, rank_ready, required_hits, tails, threshold


@given(st.floats(0, 1), st.integers(1, 5000))
def test_required_hits_is_the_smallest_that_suffices(fraction: float, total: int) -> None:
    k = required_hits(fraction, total)
    assert 0 <= k <= total
    assert k / total >= fraction
    assert k == 0 or (k - 1) / total < fraction


@given(st.integers(1, 3000), st.data())
def test_a_share_as_threshold_asks_for_just_that_share(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    assert required_hits(hits / total, total) == hits


@pytest.mark.parametrize(
    ("fraction", "total", "hits"),
    [(0.06, 2048, 123), (0.25, 60, 15), (0.07, 100, 7), (0.0, 9, 0), (1, 9, 9), (1e-300, 9, 1)],
)
def test_required_hits_by_hand(fraction: float, total: int, hits: int) -> None:
    assert required_hits(fraction, total) == hits


@given(
    st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 9)),
        elements=st.floats(0, 8, width=16) | st.just(math.nan),
    ),
    st.data(),
)
def test_kth_largest_is_the_kth_of_a_sorted_list(peaks: np.ndarray, data: st.DataObject) -> None:
    ranks = tuple(data.draw(st.lists(st.integers(0, peaks.shape[1]), min_size=1, max_size=4)))
    result = kth_largest(rank_ready(peaks), ranks)
    for row, k in enumerate(ranks):
        for f in range(len(peaks)):
            ordered = sorted((-math.inf if math.isnan(v) else v for v in peaks[f].tolist()), reverse=True)
            assert result[row, f] == (math.inf if k == 0 else ordered[k - 1])


def test_the_critical_magnitude_by_hand() -> None:
    layers = np.array([[9, 3, 5, 1]], np.float32)
    positions = np.array([[2, 8, 4, 6]], np.float32)
    assert critical_magnitude(layers, positions, 0.5, 0.5).tolist() == [5]
    assert critical_magnitude(layers, positions, 0.25, 1).tolist() == [2]
    assert critical_magnitude(layers, positions, 0, 0).tolist() == [math.inf]


def test_thresholds_are_float32() -> None:
    assert threshold(6.7) == np.float32(6.7)
    assert float(threshold(6.7)) < 6.7
    assert threshold(1e300) == np.inf


def test_tails_by_hand() -> None:
    assert tails(np.array([5, 1, 0, 2])).tolist() == [3, 2, 2]


def test_presets() -> None:
    assert Criteria.preset(None) == Criteria()
    assert Criteria().to_dict() == {
        "signal": "input",
        "layer_range": None,
        "sites": None,
        "sequences": None,
        "skip_first": 0,
        "skip_tokens": [],
        "scale": "absolute",
        "rounding": "none",
        "magnitude": 6.0,
        "layers": 0.25,
        "positions": 0.06,
        "counting": "per-sequence",
        "layer_unit": "site",
    }
    study, dettmers = Criteria.preset("study"), Criteria.preset("dettmers")
    assert (study.signal, study.counting, study.layer_unit) == ("output", "per-sequence", "site")
    assert (dettmers.signal, dettmers.counting, dettmers.layer_unit) == ("output", "pooled", "layer")
    assert (study.rounding, dettmers.rounding) == ("bfloat16", "none")
    for preset in (study, dettmers):
        assert (preset.magnitude, preset.layers, preset.positions) == (6.0, 0.25, 0.06)
    assert Criteria.preset("dettmers", layer_unit="site", magnitude=5).layer_unit == "site"


def test_criteria_survive_json_and_hash() -> None:
    criteria = Criteria(layer_range=(1, 3), sites=("ln_mlp",), sequences=(0, 2), skip_first=1, scale="rms")
    again = Criteria(**criteria.to_dict())
    assert again == criteria
    assert hash(again) == hash(criteria)
    assert "without the first 1 positions" in str(criteria)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"magnitude": -0.5}, "magnitude is -0.5; expected a finite number, 0 or more"),
        ({"magnitude": math.nan}, "magnitude is nan"),
        ({"magnitude": math.inf}, "magnitude is inf"),
        ({"magnitude": "6"}, "magnitude is '6'"),
        ({"magnitude": True}, "magnitude is True"),
        ({"layers": 1.01}, "layers is 1.01; expected a fraction from 0 to 1"),
        ({"positions": -1e-9}, "positions is -1e-09"),
        ({"positions": math.nan}, "positions is nan"),
        ({"counting": "both"}, "counting is 'both'; expected one of per-sequence, pooled"),
        ({"layer_unit": "block"}, "layer-unit is 'block'; expected one of site, layer"),
        ({"signal": "middle"}, "signal is 'middle'; expected one of input, output"),
        ({"scale": "log"}, "scale is 'log'; expected one of absolute, rms, median"),
        ({"skip_first": -1}, "skip-first is -1"),
        ({"skip_first": 1.5}, "skip-first has 1.5; expected a whole number"),
        ({"skip_first": True}, "skip-first has True"),
        ({"sequences": (0.5,)}, "sequences has 0.5"),
        ({"layer_range": (3, 3)}, "layer-range is 3:3"),
        ({"layer_range": (3,)}, "layer-range is"),
        ({"sites": ()}, "sites is ''; expected one or more, each once"),
        ({"sequences": (1, 1)}, "sequences is '1,1'; expected one or more, each once"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(OutliersError, match=message.replace("(", r"\(")):
        Criteria(**settings)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(OutliersError, match="preset is 'mine'; expected one of study, dettmers"):
        Criteria.preset("mine")


def test_numpy_numbers_are_welcome() -> None:
    import json

    criteria = Criteria(
        magnitude=np.float32(6),
        layers=np.float64(0.25),
        skip_first=np.int64(1),
        sequences=np.arange(2),
        layer_range=np.array([0, 3]),
    )
    assert criteria == Criteria(skip_first=1, sequences=(0, 1), layer_range=(0, 3))
    json.dumps(criteria.to_dict())
