"""The permutation null: uniform subsets, the same for the same seed, and chance alone where there is no structure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyze import Criteria, OutliersError, permutation_null
from analyze.answers.null import random_subsets
from analyze.cli import main
from tests import builders, strategies


@given(st.integers(1, 12), st.data(), st.integers(0, 2**32))
def test_subsets_have_their_sizes(width: int, data: st.DataObject, seed: int) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(0, width), max_size=8)), np.int64)
    marks = random_subsets(np.random.default_rng(seed), sizes, width)
    assert marks.shape == (len(sizes), width)
    assert marks.sum(axis=1).tolist() == sizes.tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_subset_is_as_likely(size: int) -> None:
    import itertools
    import math

    draws = 20_000
    marks = random_subsets(np.random.default_rng(0), np.full(draws, size), 5)
    codes, counts = np.unique(marks @ (1 << np.arange(5)), return_counts=True)
    subsets = {sum(1 << f for f in subset) for subset in itertools.combinations(range(5), size)}
    assert set(codes.tolist()) == subsets
    expected = draws / len(subsets)
    assert (np.abs(counts - expected) < 5 * math.sqrt(expected)).all()


def test_coordination_is_told_from_chance() -> None:
    x = np.random.default_rng(0).normal(size=(4, 6, 2, 30, 40)).astype(np.float32)
    x[..., 7] = 50
    result = permutation_null(builders.dataset(x), Criteria(layers=0.9, positions=0.9), repeats=30)
    assert (result.count, result.distinct_features) == (4, 1)
    assert result.mean == 0
    assert result.interval == (0, 0)
    assert result.p_more == pytest.approx(1 / 31)
    assert result.p_fewer == 1


def test_hits_that_crowd_are_fewer_outliers_than_by_chance() -> None:
    x = np.zeros((2, 4, 2, 30, 20), np.float32)
    x[..., :10] = 50
    result = permutation_null(builders.dataset(x), Criteria(layers=0.9, positions=0.9), repeats=10)
    assert result.count == 20
    assert result.mean == 40  # each feature is hit nearly everywhere by chance
    assert (result.p_more, result.p_fewer) == (1, pytest.approx(1 / 11))


def test_without_structure_the_null_finds_as_many() -> None:
    x = np.random.default_rng(0).normal(size=(6, 4, 2, 20, 50)).astype(np.float32)
    result = permutation_null(builders.dataset(x), Criteria(magnitude=2, layers=0.5, positions=0.3), repeats=40)
    assert 20 < result.count < 280
    low, high = result.interval
    assert low - 15 <= result.count <= high + 15


@pytest.mark.parametrize("counting", ["per-sequence", "pooled"])
@pytest.mark.parametrize("unit", ["site", "layer"])
def test_the_null_counts_as_the_definition_does(counting: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).normal(size=(3, 3, 2, 8, 6)).astype(np.float32)
    criterion = Criteria(magnitude=1.5, layers=0.5, positions=0.4, counting=counting, layer_unit=unit)
    drawn: list[np.ndarray] = []

    def remember(*arguments: object) -> np.ndarray:
        drawn.append(random_subsets(*arguments))
        return drawn[-1]

    monkeypatch.setattr("analyze.answers.null.random_subsets", remember)
    result = permutation_null(builders.dataset(x), criterion, repeats=1)
    permuted = np.stack(drawn).reshape(3, 3, 2, 8, 6).astype(np.float32) * 2
    expected = strategies.oracle(permuted, criterion)
    assert result.null_counts.tolist() == [len(expected)]
    assert result.null_distinct.tolist() == [len({f for _, f in expected})]
    np.testing.assert_array_equal((permuted > 0).sum(axis=-1), (np.abs(x) >= 1.5).sum(axis=-1))


def test_the_same_seed_gives_the_same_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    store = builders.dataset(np.random.default_rng(0).normal(size=(2, 3, 2, 9, 20)).astype(np.float32))
    criterion = Criteria(magnitude=1, layers=0.9, positions=0.5)
    first = permutation_null(store, criterion, repeats=8, seed=3)
    monkeypatch.setattr("analyze.peaks.threads.threads", lambda most: 1)
    again = permutation_null(store, criterion, repeats=8, seed=3)
    other = permutation_null(store, criterion, repeats=8, seed=4)
    assert first.null_counts.tolist() == again.null_counts.tolist()
    assert first.null_counts.tolist() != other.null_counts.tolist()


def test_a_scaled_view_counts_scaled_hits() -> None:
    x = builders.random_activations()
    found = permutation_null(builders.dataset(x), Criteria(magnitude=2, scale="median"), repeats=2)
    same = permutation_null(builders.dataset(x * 64), Criteria(magnitude=2, scale="median"), repeats=2)
    assert found.null_counts.tolist() == same.null_counts.tolist()


@pytest.mark.parametrize(
    ("settings", "message"), [({"repeats": 0}, "repeats is 0; expected 1 or more"), ({"seed": -1}, "seed is -1")]
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(OutliersError, match=message):
        permutation_null(builders.dataset(builders.random_activations()), **settings)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    assert main(["null", str(path), "--magnitude", "3", "--repeats", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == permutation_null(path, Criteria(magnitude=3), repeats=5).to_dict()
    assert main(["null", str(path), "--repeats", "2"]) == 0
    assert "after permutation" in capsys.readouterr().out
