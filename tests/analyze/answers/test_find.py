"""find_outliers against the definitions, hit by hit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analyze import Criteria, OutliersError, critical_magnitudes, find_outliers, open_store
from tests import builders, strategies
from tests.strategies import oracle

STUDY_INPUT = np.array(
    [[[-3, 0, 6, -2], [-2, -3, 6, 1], [-2, 0, 8, 3]], [[0, 3, 6, 1], [3, -1, 9, -3], [0, -2, 6, -2]]], np.float32
)
STUDY_LAYER = np.array(
    [[[-1, 1, 1, -1], [-1, -1, 1, -1], [1, 1, 1, 2]], [[2, -1, 0, -1], [-2, 1, 0, 1], [2, -2, 0, 2]]], np.float32
)


def study_activations() -> np.ndarray:
    """The study's walk-through: residual stream before and after one layer, (sequence 2, layer 2, site 1, 3, 4)."""
    return np.stack([STUDY_INPUT, STUDY_INPUT + STUDY_LAYER], axis=1)[:, :, None]


def check(x: np.ndarray, store: object, criterion: Criteria) -> None:
    found = find_outliers(store, criterion)
    expected = oracle(x, criterion)
    rows = {(row.sequence, row.feature): row for row in found.features}
    assert set(rows) == set(expected)
    assert found.count == len(expected)
    assert found.distinct_features == len({f for _, f in expected})
    assert found.hidden_size == x.shape[-1]
    assert found.saturated == (found.distinct_features > x.shape[-1] / 2)
    for name, (layers, positions, largest) in expected.items():
        row = rows[name]
        assert (row.layer_fraction, row.position_fraction) == (layers, positions)
        assert row.max_magnitude == largest
        assert row.critical_magnitude >= np.float32(min(criterion.magnitude, 3e38))
    for place, mean in ((0, found.mean_layer_fraction), (1, found.mean_position_fraction)):
        if expected:
            assert mean == pytest.approx(np.mean([values[place] for values in expected.values()]), rel=1e-12)
        else:
            assert math.isnan(mean)
    order = [(-row.critical_magnitude, row.sequence or 0, row.feature) for row in found.features]
    assert order == sorted(order)


@settings(max_examples=120, deadline=None)
@given(strategies.activations(), strategies.criteria())
def test_plain_views_equal_a_loop_over_hits(x: np.ndarray, criterion: Criteria) -> None:
    data = builders.dataset(x, x[..., ::-1])
    check(x if criterion.signal == "input" else x[..., ::-1], data, criterion)


@settings(max_examples=60, deadline=None)
@given(strategies.activations(3), strategies.criteria(plain=False), st.data())
def test_other_views_equal_a_loop_over_hits(x: np.ndarray, criterion: Criteria, data: st.DataObject) -> None:
    sequences, layers, sites, positions, _ = x.shape
    first = data.draw(st.integers(0, layers - 1))
    names = builders.site_names(sites)
    changes = {
        "layer_range": (first, data.draw(st.integers(first + 1, layers))),
        "sites": tuple(data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))),
        "sequences": tuple(sorted(data.draw(st.lists(st.integers(0, sequences - 1), min_size=1, unique=True)))),
        "skip_first": data.draw(st.integers(0, positions - 1)),
    }
    chosen = data.draw(st.lists(st.sampled_from(list(changes)), unique=True))
    criterion = Criteria(**{**vars(criterion), **{name: changes[name] for name in chosen}})
    store = builders.dataset(x, x[..., ::-1])
    chunks = {dim: data.draw(st.integers(1, size)) for dim, size in store.sizes.items() if dim != "signal"}
    check(x if criterion.signal == "input" else x[..., ::-1], store.chunk(chunks), criterion)


@settings(max_examples=100, deadline=None)
@given(strategies.activations(3), strategies.criteria(), st.sampled_from(strategies.MAGNITUDES))
def test_the_critical_magnitude_decides_every_threshold(x: np.ndarray, criterion: Criteria, other: float) -> None:
    data = builders.dataset(x, x)
    critical = critical_magnitudes(data, criterion)
    values = np.atleast_2d(critical.values)
    for magnitude in (criterion.magnitude, other):
        with np.errstate(over="ignore"):
            limit = np.float32(magnitude)
        expected = oracle(x, Criteria(**{**vars(criterion), "magnitude": magnitude}))
        at = {(n if criterion.counting == "per-sequence" else None, f) for n, f in np.argwhere(values >= limit)}
        assert at == set(expected)
    for value in np.unique(values[np.isfinite(values) & (values >= 0)]):
        just_above = float(np.nextafter(value, np.float32(np.inf)))
        assume(math.isfinite(just_above))
        for magnitude, kept in ((float(value), values >= value), (just_above, values > value)):
            assert len(oracle(x, Criteria(**{**vars(criterion), "magnitude": magnitude}))) == kept.sum()


def test_the_study_walk_through() -> None:
    found = find_outliers(builders.dataset(study_activations()), Criteria(magnitude=6, layers=1, positions=1))
    assert [(row.sequence, row.feature) for row in found.features] == [(0, 2), (1, 2)]
    assert [row.critical_magnitude for row in found.features] == [7, 6]
    assert [row.max_magnitude for row in found.features] == [9, 9]
    assert found.distinct_features == 1
    assert found.mean_layer_fraction == found.mean_position_fraction == 1


def test_dimension_two_persists_when_pooled() -> None:
    found = find_outliers(
        builders.dataset(study_activations()), Criteria(counting="pooled", layer_unit="layer", layers=1, positions=0.5)
    )
    assert [(row.sequence, row.feature, row.critical_magnitude) for row in found.features] == [(None, 2, 7)]


def test_a_value_as_written_hits_its_own_threshold() -> None:
    x = np.full((1, 1, 1, 1, 1), 6.7, np.float32)
    assert float(x.max()) < 6.7
    assert find_outliers(builders.dataset(x), Criteria(magnitude=6.7)).count == 1


def test_perplexity_is_exp_of_the_mean_over_chosen_sequences(tmp_path: Path) -> None:
    nll = np.array([[np.nan, 1, 2], [np.nan, 3, 4]])
    path = builders.on_disk(tmp_path / "s.zarr", np.ones((2, 1, 1, 3, 2)), nll=nll)
    assert find_outliers(path).perplexity == pytest.approx(math.exp(2.5), rel=1e-6)
    assert find_outliers(path, Criteria(sequences=(1,))).perplexity == pytest.approx(math.exp(3.5), rel=1e-6)


def test_an_empty_result_is_strict_json(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", np.ones((1, 1, 1, 1, 2)))
    result = find_outliers(path, Criteria(magnitude=1e300)).to_dict()
    assert result["mean_layer_fraction"] is result["mean_position_fraction"] is result["perplexity"] is None
    assert (result["count"], result["features"], result["saturated"]) == (0, [], False)
    json.dumps(result, allow_nan=False)


def test_the_json_object_has_the_documented_keys(tmp_path: Path) -> None:
    x = builders.random_activations()
    path = builders.on_disk(tmp_path / "s.zarr", x)
    result = find_outliers(path, Criteria(layers=0, positions=0)).to_dict()
    assert list(result) == [
        "count",
        "distinct_features",
        "hidden_size",
        "saturated",
        "mean_layer_fraction",
        "mean_position_fraction",
        "perplexity",
        "criteria",
        "features",
        "store_id",
    ]
    assert list(result["features"][0]) == [
        "sequence",
        "feature",
        "layer_fraction",
        "position_fraction",
        "max_magnitude",
        "critical_magnitude",
    ]
    assert result["saturated"] is True
    assert all(row["critical_magnitude"] is None for row in result["features"])  # nothing is asked for: +inf
    assert Criteria(**result["criteria"]) == Criteria(layers=0, positions=0)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    x = builders.random_activations((2, 2, 2, 3, 4))
    x[0, 0, 0, 0, 0], x[1, 1, 1, 2, 3] = np.nan, np.inf
    path = builders.on_disk(tmp_path / "s.zarr", x)
    found = find_outliers(path)
    assert found.nonfinite_count == found.to_dict()["nonfinite_count"] == 2
    assert find_outliers(path, Criteria(sequences=(1,))).nonfinite_count == 1
    assert find_outliers(path, Criteria(layer_range=(1, 2), sites=("ln_attn",))).nonfinite_count == 0
    assert "NaN or infinite" in str(found)


def test_a_result_reads_well() -> None:
    found = find_outliers(builders.dataset(study_activations()), Criteria(layers=0.5))
    assert "1 of 4 (25.0% of the width)" in str(found)
    assert "<table>" in found._repr_html_()
    saturated = find_outliers(builders.dataset(study_activations()), Criteria(magnitude=0))
    assert saturated.saturated
    assert "saturated" in str(saturated)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_range": (0, 9)}, "layer-range is 0:9; the store has layers 0 to 3"),
        ({"sites": ("ln_mlp", "elsewhere")}, "sites has elsewhere; the store has ln_attn, ln_mlp"),
        ({"sequences": (3,)}, "sequences has 3; the store has sequences 0 to 2"),
        ({"skip_first": 7}, "skip-first is 7; the store has 7 positions"),
    ],
)
def test_a_view_outside_the_store_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(OutliersError, match=message):
        find_outliers(builders.dataset(builders.random_activations()), Criteria(**settings))


@pytest.mark.parametrize("raw", ["none", "output"])
def test_a_view_without_its_activations_is_refused(tmp_path: Path, raw: str) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), raw=raw)
    assert find_outliers(path).count > 0
    with pytest.raises(OutliersError, match=r"needs the norm inputs themselves.*capture again with --raw"):
        find_outliers(open_store(path), Criteria(skip_first=1))
