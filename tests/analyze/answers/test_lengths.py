"""Every question to stores whose sequences differ in length, or whose tokens are left out, against brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import (
    Criteria,
    View,
    compare,
    critical_magnitudes,
    dettmers_table,
    feature_map,
    find_outliers,
    layer_metrics,
    open_store,
    permutation_null,
    portrait,
    quantize,
    sweep,
    view_peaks,
    walk,
)
from analyze.answers.info import store_info
from capture.errors import OutliersError
from tests import builders, strategies

pytestmark = pytest.mark.slow

TOKENS = 4


def ragged(x: np.ndarray, length: np.ndarray, tokens: np.ndarray | None = None) -> xr.Dataset:
    """A Dataset of such lengths, with a few different tokens."""
    store = builders.dataset(x, x / 2, length=length)
    if tokens is not None:
        store["token_id"] = (("sequence", "position"), np.where(store["token_id"] < 0, -1, tokens).astype(np.int32))
    return store


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, Criteria]:
    """Activations, lengths, tokens, and criteria whose view leaves some of them out."""
    x = draw(strategies.activations())
    sequences, positions = x.shape[0], x.shape[3]
    length = np.array(draw(st.lists(st.integers(1, positions), min_size=sequences, max_size=sequences)), np.int32)
    tokens = np.array(
        draw(st.lists(st.integers(0, TOKENS - 1), min_size=sequences * positions, max_size=sequences * positions))
    ).reshape(sequences, positions)
    criterion = replace(
        draw(strategies.criteria(plain=False)),
        skip_first=draw(st.integers(0, positions - 1)),
        skip_tokens=tuple(draw(st.sets(st.integers(0, TOKENS), max_size=2))),
    )
    return x, length, tokens, criterion


def counts_of(length: np.ndarray, tokens: np.ndarray, criterion: Criteria) -> np.ndarray:
    return (np.arange(tokens.shape[1]) < length[:, None]) & ~np.isin(tokens, criterion.skip_tokens)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_find_sweep_and_critical_magnitudes_count_each_sequence_by_its_own_positions(case: Any) -> None:
    x, length, tokens, criterion = case
    store = ragged(x, length, tokens)
    counts = counts_of(length, tokens, criterion)
    if not counts[:, criterion.skip_first :].any():
        with pytest.raises(OutliersError, match="leaves out every position"):
            find_outliers(store, criterion)
        return
    values = x if criterion.signal == "input" else x / 2
    expected = strategies.oracle(values, criterion, counts)
    found = find_outliers(store, criterion)
    assert {(row.sequence, row.feature): (row.layer_fraction, row.position_fraction) for row in found.features} == {
        place: shares[:2] for place, shares in expected.items()
    }
    (row,) = sweep(store, criterion).rows()
    assert row["count"] == len(expected)
    for name, index in (("mean_layer_fraction", 0), ("mean_position_fraction", 1)):
        mean = sum(shares[index] for shares in expected.values()) / len(expected) if expected else math.nan
        assert row[name] == pytest.approx(mean, nan_ok=True)
        assert getattr(found, name) == pytest.approx(mean, nan_ok=True)
    with np.errstate(over="ignore"):
        passing = critical_magnitudes(store, criterion) >= np.float32(criterion.magnitude)
    assert int(passing.sum()) == len(expected)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_equal_lengths_answer_as_no_lengths(case: Any) -> None:
    x, _, tokens, criterion = case
    length = np.full(len(x), x.shape[3])
    stores = [ragged(x, length, tokens), ragged(x, length, tokens).drop_vars("length")]
    if not counts_of(length, tokens, criterion)[:, criterion.skip_first :].any():
        return
    first, second = (find_outliers(store, criterion).to_dict() for store in stores)
    assert first == second
    a, b = (sweep(store, criterion, [1, 6], [0, 0.5], [0.1, 0.6]).rows() for store in stores)
    np.testing.assert_equal(a, b)
    a, b = (permutation_null(store, criterion, repeats=2).to_dict() for store in stores)
    np.testing.assert_equal(a, b)
    if criterion.scale == "absolute":
        xr.testing.assert_identical(*(layer_metrics(store, criterion) for store in stores))


X = builders.random_activations((4, 3, 2, 9, 6), 5)
LENGTH = np.array([9, 2, 5, 7], np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.on_disk(tmp_path_factory.mktemp("ragged") / "s.zarr", X, X / 2, length=LENGTH)


@pytest.mark.parametrize("number", range(4))
def test_a_padded_sequence_answers_as_itself_alone(number: int) -> None:
    """Whatever is asked of a store of one sequence, NaN behind its end changes nothing."""
    end = int(LENGTH[number])
    padded = builders.dataset(X[number : number + 1], X[number : number + 1] / 2, length=LENGTH[number : number + 1])
    whole = builders.dataset(X[number : number + 1, ..., :end, :], X[number : number + 1, ..., :end, :] / 2)
    padded["nll"][0, :end] = whole["nll"][0]
    criteria = Criteria(magnitude=2, positions=0.3)
    for scale in ("absolute", "rms", "median"):
        one = replace(criteria, scale=scale, skip_first=1)
        np.testing.assert_equal(find_outliers(padded, one).to_dict(), find_outliers(whole, one).to_dict())
        np.testing.assert_equal(sweep(padded, one, [1, 2, 3]).rows(), sweep(whole, one, [1, 2, 3]).rows())
        np.testing.assert_equal(permutation_null(padded, one).to_dict(), permutation_null(whole, one).to_dict())
        np.testing.assert_equal(portrait(padded, 0, one).to_dict(), portrait(whole, 0, one).to_dict())
    np.testing.assert_equal(feature_map(padded, criteria).to_dict(), feature_map(whole, criteria).to_dict())
    np.testing.assert_equal(dettmers_table(padded, criteria).to_dict(), dettmers_table(whole, criteria).to_dict())
    np.testing.assert_equal(walk(padded, 0).to_dict(), walk(whole, 0).to_dict())
    own, alone = (layer_metrics(store, View()) for store in (padded, whole))
    xr.testing.assert_identical(own.isel(position=slice(end)), alone)
    assert own["token_ratio"].isel(position=slice(end, None)).isnull().all()
    tables = [compare([store], criteria, quartiles=True).to_dict() for store in (padded, whole)]
    np.testing.assert_equal(*tables)


def test_metrics_of_several_lengths_are_those_of_their_tokens() -> None:
    found = layer_metrics(ragged(X, LENGTH), View(), sink_ratio=3, sink_share=0.4)
    for layer in range(3):
        for site in range(2):
            rows = [X[n, layer, site, : LENGTH[n]] for n in range(4)]
            joined = np.concatenate(rows)
            here = found.isel(layer=layer, site=site)
            assert float(here["max_magnitude"]) == np.abs(joined).max()
            assert float(here["median_magnitude"]) == pytest.approx(np.median([np.median(np.abs(r)) for r in rows]))
            power = np.square(joined, dtype=np.float64).mean(axis=0)
            assert float(here["kurtosis"]) == pytest.approx(np.mean(power**2) / np.mean(power) ** 2)
            ratios = np.abs(joined).max(axis=1) / np.median(np.abs(joined), axis=1)
            assert float(here["max_median_ratio"]) == pytest.approx(ratios.mean())
            hits = sum((np.abs(r) >= 3 * np.median(np.abs(r))).sum(axis=0) for r in rows)
            assert int(here["residual_sinks"]) == np.count_nonzero(hits > 0.4 * LENGTH.sum())
            n, p = int(here["extreme_sequence"]), int(here["extreme_position"])
            assert p < LENGTH[n]
            assert np.abs(X[n, layer, site, p]).max() == np.abs(joined).max()


def test_a_quantiser_loses_what_it_loses_on_the_tokens_that_count() -> None:
    """Against stores of one sequence without padding: sums of squares add up, and nothing is said to be left out."""
    names = ("int8-tensor", "int4-token", "mxfp4")
    padded = quantize(ragged(X, LENGTH), names)
    skipped = quantize(ragged(X, LENGTH), names, view=View(skip_first=1, skip_tokens=(11, 30)))
    for found, tokens in ((padded, None), (skipped, (11, 30))):
        lost, whole = np.zeros((3, 3, 2)), np.zeros((3, 2))
        for n, end in enumerate(LENGTH):
            rows = [p for p in range(end) if tokens is None or (p > 0 and 9 * n + p not in tokens)]
            alone = X[n : n + 1, :, :, rows] / 2
            squares = np.square(alone, dtype=np.float64).sum(axis=(0, 3, 4))
            lost += quantize(builders.dataset(alone * 2, alone), names).table["error"].values * squares
            whole += squares
        np.testing.assert_allclose(found.table["error"].values, lost / whole, rtol=1e-6)
        assert found.left_out == 0


@pytest.mark.parametrize("counting", ["per-sequence", "pooled"])
def test_what_no_permutation_can_change_is_found_after_each(counting: Any) -> None:
    """Tokens whose features all hit, or none: the null is the count itself, by the sequences' own lengths."""
    x = np.where(np.arange(9)[:, None] % 3 == 0, 10, 1) * np.ones((3, 2, 1, 9, 4), np.float32)
    length = np.array([9, 2, 4])
    for share in (0.3, 0.4, 0.5, 0.55):
        criteria = Criteria(positions=share, counting=counting)
        found = permutation_null(ragged(x, length), criteria, repeats=3)
        per = [3 / 9, 1 / 2, 2 / 4]
        expected = 4 * ((share <= 6 / 15) if counting == "pooled" else sum(each >= share for each in per))
        assert found.count == expected
        assert found.null_counts.tolist() == [expected] * 3


@pytest.mark.parametrize("counting", ["per-sequence", "pooled"])
def test_compare_counts_as_find_does_and_draws_again_by_length(path: Path, counting: Any) -> None:
    criteria = Criteria(magnitude=2, positions=0.3, counting=counting)
    (row,) = compare([path], criteria, resamples=40, seed=3).study
    found = find_outliers(path, criteria)
    assert row["count"] == found.count > 0
    assert row["mean_position_fraction"] == pytest.approx(found.mean_position_fraction)
    nll = builders.arrays_of(X, length=LENGTH)["nll"].astype(np.float64)
    drawn = np.random.default_rng(3).integers(4, size=(40, 4))
    perplexities, counts, means = [], [], []
    for numbers in drawn:
        perplexities.append(np.exp(np.concatenate([nll[n, 1 : LENGTH[n]] for n in numbers]).mean()))
        again = find_outliers(ragged(X[numbers], LENGTH[numbers]), criteria)
        counts.append(again.count)
        means.append(again.mean_position_fraction)
    for name, values in (("perplexity", perplexities), ("count", counts), ("mean_position_fraction", means)):
        known = np.array(values)[~np.isnan(values)]
        low, high = np.quantile(known, (0.025, 0.975))
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))


def test_perplexity_and_sizes_are_of_valid_positions(path: Path) -> None:
    nll = builders.arrays_of(X, length=LENGTH)["nll"].astype(np.float64)
    expected = np.exp(np.concatenate([nll[n, 1 : LENGTH[n]] for n in range(4)]).mean())
    assert find_outliers(path).perplexity == pytest.approx(expected)
    info = store_info(path)
    assert info.perplexity == pytest.approx(expected)
    assert (info.shortest, info.positions, info.tokens) == (2, 9, 23)
    assert ("sequences", "4 of 2 to 9 positions, 23 in all") in info.summary()
    lost = nll.copy()
    lost[1, 1] = np.nan  # a likelihood that is none stays one
    store = ragged(X, LENGTH)
    store["nll"] = (("sequence", "position"), lost)
    assert math.isnan(find_outliers(store).perplexity)


def test_views_of_a_store_on_disk_are_streamed_and_cached(path: Path) -> None:
    for criteria in (
        Criteria(magnitude=1, skip_first=2, scale="rms"),
        Criteria(magnitude=2, skip_tokens=(0, 5, 9, 10, 31)),
        Criteria(magnitude=2, skip_tokens=(0, 5, 9, 10, 31), counting="pooled", signal="output"),
    ):
        tokens = np.arange(36).reshape(4, 9)
        counts = counts_of(LENGTH, tokens, criteria)
        expected = strategies.oracle(X if criteria.signal == "input" else X / 2, criteria, counts)
        for _ in range(2):
            found = find_outliers(path, criteria)
            assert {(row.sequence, row.feature) for row in found.features} == set(expected)
            assert sweep(path, criteria).rows()[0]["count"] == len(expected)


def test_tokens_that_occur_nowhere_need_no_pass(tmp_path: Path) -> None:
    bare = builders.on_disk(tmp_path / "bare.zarr", X, raw="none")
    plain = view_peaks(open_store(bare), View())
    xr.testing.assert_identical(view_peaks(open_store(bare), View(skip_tokens=(999,))), plain)
    with pytest.raises(OutliersError, match="--skip-tokens"):
        view_peaks(open_store(bare), View(skip_tokens=(3,)))


def test_words_for_tokens_are_what_the_store_says() -> None:
    store = ragged(X, LENGTH)
    with pytest.raises(OutliersError, match="'bos', and the store does not say which tokens these are"):
        View(skip_tokens=("bos",)).resolve(store)
    store.attrs["special_tokens"] = {"bos": [1], "eos": [], "special": [1, 7]}
    assert View(skip_tokens=("special", 3, "bos")).resolve(store).skip_tokens == (1, 3, 7)
    assert View(skip_tokens=["eos"]).resolve(store).skip_tokens == ()
    store.attrs["special_tokens"] = {"bos": [1], "eos": "2", "special": [-1]}
    for word in ("eos", "special"):
        with pytest.raises(OutliersError, match="does not say"):
            View(skip_tokens=(word,)).resolve(store)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("pad",), "skip-tokens has 'pad'; expected token numbers, or bos, eos, special"),
        ((1.5,), "skip-tokens has 1.5; expected a whole number"),
        ((-1,), "skip-tokens has -1; expected token numbers, 0 or more"),
    ],
)
def test_wrong_tokens_are_refused(tokens: Any, message: str) -> None:
    with pytest.raises(OutliersError, match=message):
        View(skip_tokens=tokens)


def test_a_view_of_nothing_and_lengths_that_cannot_be_are_refused(path: Path) -> None:
    store = ragged(X, LENGTH)
    for ask in (find_outliers, critical_magnitudes, permutation_null, layer_metrics):
        with pytest.raises(OutliersError, match="leaves out every position of its sequences"):
            ask(store, Criteria(sequences=(1,), skip_first=2))
    with pytest.raises(OutliersError, match="position is 2; the store has positions 0 to 1"):
        walk(store, 0, sequence=1, positions=(2,))
    store["length"] = ("sequence", np.array([9, 2, 10, 7], np.int32))
    with pytest.raises(OutliersError, match="length of sequence 2 is 10; expected 1 to 9"):
        find_outliers(store)
