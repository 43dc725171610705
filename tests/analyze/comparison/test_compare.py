"""Stores beside each other: every number against plain loops over the stores on disk."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import Comparison, Criteria, OutliersError, compare, dettmers_table, open_store, published
from analyze.answers.ablation import Ablation
from analyze.cli import main
from analyze.comparison import compare as module
from analyze.comparison.bootstrap import draws, interval, intervals, tally
from analyze.comparison.figures import PLANS, figure_of
from analyze.comparison.hits import pack_bits, read_hits
from analyze.comparison.result import as_csv, as_markdown, as_text, markdown
from capture.store.schema import ABLATION
from tests import builders, strategies

pytestmark = pytest.mark.slow

SHAPE = (4, 3, 2, 8, 6)
MOE = {
    "model_id": "org/moe",
    "total_parameters": 7_000_000_000,
    "active_parameters": 1_300_000_000,
    "experts": 64,
    "shared_experts": 1,
    "top_k": 8,
    "routing": "softmax",
    "compute_dtype": "bfloat16",
    "weight_quantisation": "mxfp4",
}
DENSE = {"model_id": "org/dense", "total_parameters": 134_500_000, "active_parameters": 134_500_000, "experts": 0}


def activations(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Values about 6, some of which reach it by rounding only, with a NaN."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) * np.linspace(1, 6, shape[-1]) + rng.normal(size=shape[-1])
    values = np.where(rng.random(shape) < 0.05, 5.9844, values).astype(np.float32)
    values[0, 0, 0, 0, 0] = np.nan
    return values


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two stores that no test changes."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(7)
    paths = []
    for name, seed, attributes in (("moe", 1, MOE), ("dense", 2, DENSE)):
        nll = rng.exponential(3, SHAPE[:1] + SHAPE[3:4])
        nll[:, 0] = np.nan
        x = activations(seed)
        paths.append(builders.on_disk(folder / f"{name}.zarr", x / 2, x, nll=nll, attributes=attributes))
    return paths


@pytest.fixture
def copies(stores: list[Path], tmp_path: Path) -> list[Path]:
    """The same, to be changed."""
    return [shutil.copytree(path, tmp_path / path.name) for path in stores]


def brute(path: Path, criterion: Criteria) -> dict[str, Any]:
    """The study's columns from the raw activations, by loops."""
    data = xr.open_zarr(path)
    x = data[f"norm_{criterion.signal}"].values
    found = strategies.oracle(x, criterion)
    shares = [[values[place] for values in found.values()] for place in (0, 1)]
    nll = [float(v) for row in data["nll"].values for v in row[1:]]
    return {
        "count": len(found),
        "distinct_features": len({f for _, f in found}),
        "share": len({f for _, f in found}) / x.shape[-1],
        "perplexity": math.exp(sum(nll) / len(nll)),
        **{
            f"{kind}_{name}_fraction": function(values)
            for name, values in zip(("layer", "position"), shares, strict=True)
            for kind, function in (("mean", np.mean), ("median", np.median))
        },
    }


def rows_by_model(table: Any) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in table}


def test_both_tables_equal_loops_over_the_stores(stores: list[Path]) -> None:
    result = compare(stores)
    study, table4 = rows_by_model(result.study), rows_by_model(result.table4)
    dettmers = Criteria.preset("dettmers")
    assert (result.criteria, result.dettmers_criteria) == (Criteria.preset("study"), dettmers)
    for path, name in zip(stores, ("org/moe", "org/dense"), strict=True):
        for row, criterion in ((study[name], result.criteria), (table4[name], dettmers)):
            expected = brute(path, criterion)
            assert expected["count"] > 0
            for key, value in expected.items():
                assert row[key] == pytest.approx(value, rel=1e-6 if key == "perplexity" else 1e-12), (name, key)
            assert row["store"] == str(path)
    assert [row["model"] for row in result.moe] == ["org/moe"]
    assert [row["model"] for row in result.dense] == ["org/dense"]
    row = study["org/moe"]
    assert row["precision"] == "bfloat16 (mxfp4)"
    assert [row[name] for name in ("experts", "shared_experts", "top_k", "routing")] == [64, 1, 8, "softmax"]
    assert study["org/dense"]["precision"] == "float32"
    assert row["nonfinite_count"] == 1
    assert "org/moe: 1 values are NaN or infinite; a NaN never hits." in as_text(result)
    # Rounding is what makes these two apart.
    assert brute(stores[0], Criteria.preset("study", rounding="none"))["count"] < row["count"]


def test_table_4_equals_loops_over_the_stores(stores: list[Path]) -> None:
    criterion = Criteria.preset("dettmers")
    for path, row, exact in zip(stores, compare(stores).table4, compare(stores, quartiles=True).table4, strict=True):
        x = xr.open_zarr(path)["norm_output"].values
        found = strategies.oracle(x, criterion)
        largest = max((value[2], f) for (_, f), value in found.items())[1]
        sides = [{bool(v > 0) for v in x[..., f].ravel() if abs(v) >= 6} for _, f in found]
        hits = [abs(float(v)) for v in x[..., largest].ravel() if abs(v) >= 6]
        peaks = [np.nanmax(np.abs(x[n, :, :, p, largest])) for n in range(SHAPE[0]) for p in range(SHAPE[3])]
        assert row["one_sided"] == exact["one_sided"] == sum(len(side) == 1 for side in sides)
        assert row["largest_feature"] == largest
        assert (row["median_magnitude_of"], exact["median_magnitude_of"]) == ("position peaks", "hits")
        assert row["median_magnitude"] == pytest.approx(np.median([p for p in peaks if p >= 6]))
        assert exact["median_magnitude"] == pytest.approx(np.median(hits)) != row["median_magnitude"]
        table = dettmers_table(path, criterion)
        assert (exact["first_quartile"], exact["median"], exact["third_quartile"]) == table.quartiles
        assert exact["one_sided"] == table.one_sided
        assert row["median"] is None


@settings(max_examples=40, deadline=None)
@given(strategies.activations(), strategies.criteria())
def test_any_criterion_equals_a_loop_over_hits(x: np.ndarray, criterion: Criteria) -> None:
    (row,) = compare([builders.dataset(x, x[..., ::-1])], criterion, resamples=2).study
    found = strategies.oracle(x if criterion.signal == "input" else x[..., ::-1], criterion)
    assert (row["count"], row["distinct_features"]) == (len(found), len({f for _, f in found}))
    for place, name in enumerate(("layer", "position")):
        values = [value[place] for value in found.values()]
        for kind, function in (("mean", np.mean), ("median", np.median)):
            expected = function(values) if values else math.nan
            assert row[f"{kind}_{name}_fraction"] == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("view", [{"skip_first": 2}, {"scale": "rms", "magnitude": 1.5}, {"sequences": (0, 3)}])
def test_views_count_what_they_choose(stores: list[Path], view: dict[str, Any]) -> None:
    result = compare(stores[:1], Criteria.preset("study", **view))
    x = xr.open_zarr(stores[0])["norm_output"].values
    for row, criterion in ((result.study[0], result.criteria), (result.table4[0], result.dettmers_criteria)):
        assert row["count"] == len(strategies.oracle(x, criterion))


@pytest.mark.parametrize("counting", ["per-sequence", "pooled"])
@pytest.mark.parametrize("unit", ["site", "layer"])
def test_the_bootstrap_equals_counting_drawn_sequences(counting: Any, unit: Any) -> None:
    x = activations(3, (4, 5, 2, 6, 6)) * np.float32(0.8)
    x[1] *= 1.7
    criterion = Criteria(counting=counting, layer_unit=unit, layers=0.35, positions=0.3)
    store = builders.dataset(x)
    (hits,) = read_hits(store, [criterion.resolve(store)])
    chosen = np.random.default_rng(5).integers(4, size=(60, 4))
    naive: dict[str, list[float]] = {"count": [], "mean_layer_fraction": [], "mean_position_fraction": []}
    for indices in chosen:
        found = strategies.oracle(x[indices], criterion)
        naive["count"].append(len(found))
        for place, name in enumerate(("mean_layer_fraction", "mean_position_fraction")):
            naive[name].append(float(np.mean([v[place] for v in found.values()])) if found else math.nan)
    drawn = tally(hits, draws(4, 60, 5))
    ends = intervals(hits, draws(4, 60, 5))
    for name, values in naive.items():
        np.testing.assert_allclose(getattr(drawn, name), values, rtol=1e-12)
        known = sorted(value for value in values if not math.isnan(value))
        assert len(set(known)) > 1
        assert ends[name] == pytest.approx(tuple(np.quantile(known, (0.025, 0.975))))


def test_the_pooled_bootstrap_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    store = builders.dataset(activations(4))
    (hits,) = read_hits(store, [Criteria(counting="pooled", magnitude=5).resolve(store)])
    whole = tally(hits, draws(4, 50, 0))
    monkeypatch.setattr("analyze.comparison.bootstrap._WORDS_AT_ONCE", 20)
    for name, values in vars(tally(hits, draws(4, 50, 0))).items():
        np.testing.assert_array_equal(values, getattr(whole, name))


def test_draws_are_those_of_numpy() -> None:
    drawn = draws(5, 7, 3)
    chosen = np.random.default_rng(3).integers(5, size=(7, 5))
    assert drawn.tolist() == [[int((row == n).sum()) for n in range(5)] for row in chosen]
    assert draws(3, 0, 0).shape == (0, 3)
    assert all(math.isnan(end) for end in interval(np.array([np.nan])))


def test_the_perplexity_interval_is_of_drawn_sequences(stores: list[Path]) -> None:
    row = compare(stores[:1], resamples=200, seed=9).study[0]
    nll = xr.open_zarr(stores[0])["nll"].values[:, 1:].astype(float)
    chosen = np.random.default_rng(9).integers(4, size=(200, 4))
    values = [math.exp(nll[indices].mean()) for indices in chosen]
    assert (row["perplexity_low"], row["perplexity_high"]) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))))


def test_more_than_64_layer_units() -> None:
    rng = np.random.default_rng(0)
    units = rng.random((130, 5)) < 0.5
    np.testing.assert_array_equal(np.bitwise_count(pack_bits(units)).sum(axis=1), units.sum(axis=0))
    x = rng.normal(size=(2, 70, 1, 3, 4)) * 4
    (row,) = compare([builders.dataset(x)], Criteria(layers=0.3)).study
    assert row["count"] == len(strategies.oracle(np.float32(x), Criteria(layers=0.3))) > 0


@pytest.mark.parametrize("preset", ["study", "dettmers"])
def test_a_norm_counted_twice_changes_nothing(preset: str) -> None:
    x = activations(5, (3, 4, 1, 8, 6))
    once, twice = (
        compare([builders.dataset(values, values)], Criteria.preset(preset), resamples=20).to_dict()
        for values in (x, np.repeat(x, 2, axis=2))
    )
    for table in ("dense", "table4"):
        assert twice[table][0].pop("nonfinite_count") == 2 * once[table][0].pop("nonfinite_count")
    assert once == twice
    assert once["dense"][0]["count"] > 0


def test_weights_by_tokens_are_no_matter_where_windows_are_equal() -> None:
    # The factor that docs/study.md gives, against the two definitions.
    rng = np.random.default_rng(0)
    for lengths in (np.full(5, 16), rng.integers(2, 30, 5)):
        losses = [rng.exponential(3, n - 1) for n in lengths]
        means = np.array([loss.mean() for loss in losses])
        study = (means * lengths).sum() / lengths.sum()
        ours = np.concatenate(losses).mean()
        tokens, windows = lengths.sum(), len(lengths)
        factor = (means * (1 - lengths * windows / tokens)).sum() / (tokens - windows)
        assert study - ours == pytest.approx(factor, abs=1e-12)
        assert (abs(factor) < 1e-12) == (len(set(lengths)) == 1)


def test_the_strongest_feature_need_not_be_among_those_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.full((2, 4, 1, 10, 5), 0.1, np.float32)
    x[:, :2, :, 0, 0] = 90  # the largest, in enough layers, at too few positions
    x[..., 3] = 8
    monkeypatch.setattr("analyze.comparison.hits._MOST_STRONG", 1)
    (row,) = compare([builders.dataset(x, x)], Criteria.preset("study", positions=0.5)).table4
    assert (row["largest_feature"], row["median_magnitude"]) == (3, 8)


def test_activations_are_not_read_and_peaks_once(copies: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("norm_input", "norm_output"):
        for file in (copies[0] / name).glob("c.*"):
            file.unlink()
    calls = []
    inner = module.read_hits.__globals__["view_peaks"]
    monkeypatch.setattr("analyze.comparison.hits.view_peaks", lambda *a, **k: calls.append(a) or inner(*a, **k))
    assert compare(copies).study[0]["count"] > 0
    assert len(calls) == 2


def test_published_rows_are_the_published_numbers(stores: list[Path]) -> None:
    result = compare(stores, published=True)
    for name, table in (
        ("study_moe", result.moe),
        ("study_dense", result.dense),
        ("dettmers2022_table4", result.table4),
    ):
        rows = [row for row in table if row["published"] == name]
        assert len(rows) == len(published(name).rows())
        for row, expected in zip(rows, published(name).rows(), strict=True):
            for key, value in expected.items():
                if key != "hf_id":
                    assert row[key] == (list(value) if key == "doubtful" else value), key
    assert {table.name for table in result.published} == {"study_moe", "study_dense", "dettmers2022_table4"}
    assert [row["median_magnitude"] for row in result.table4[-2:]] == [40, 58]
    alone = compare([], published=True)
    assert (len(alone.moe), len(alone.dense), len(alone.table4)) == (7, 5, 10)


def test_a_dictionary_is_strict_json_with_every_key(stores: list[Path]) -> None:
    content = json.loads(json.dumps(compare(stores, published=True).to_dict(), allow_nan=False))
    assert [len(content[name]) for name in ("moe", "dense", "table4")] == [8, 6, 12]
    keys = {tuple(row) for name in ("moe", "dense") for row in content[name]}
    assert len(keys) == 1
    assert content["criteria"]["rounding"] == "bfloat16"
    assert content["resamples"] == 1000


def test_nothing_found_is_no_number(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "calm.zarr", np.ones((2, 2, 2, 3, 4)))
    result = compare([path])
    row = result.to_dict()["dense"][0]
    assert (row["count"], row["mean_layer_fraction"], row["median_position_fraction"]) == (0, None, None)
    assert (row["count_low"], row["count_high"], row["mean_layer_fraction_low"]) == (0, 0, None)
    assert result.to_dict()["table4"][0]["median_magnitude"] is None
    assert "| 0 [0, 0] | - | - |" in as_markdown(result, "dense").replace("\\", "")
    assert "No such model." in as_markdown(result, "moe")
    assert as_csv(result, "moe").count("\n") == 1
    assert "Mixture" not in as_text(result)


def test_one_sequence_has_no_interval(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "one.zarr", activations(1)[:1] * 2)
    row = compare([path], Criteria()).to_dict()["dense"][0]
    assert row["count"] > 0
    assert {row[f"{name}_{end}"] for name in ("count", "perplexity") for end in ("low", "high")} == {None}
    assert "[" not in as_markdown(compare([path]), "dense").split("\n- ")[0].replace("\\[", "[")


def test_models_are_told_apart(tmp_path: Path) -> None:
    x = activations(1)
    first = builders.on_disk(tmp_path / "a" / "short.zarr", x)
    second = builders.on_disk(tmp_path / "b" / "long.zarr", x)
    third = builders.on_disk(tmp_path / "c" / "long.zarr", x)
    other = builders.on_disk(tmp_path / "d.zarr", x, attributes={"model_id": "other"})
    names = [row["model"] for row in compare([first, second, third, other]).study]
    assert names == ["short", str(second), str(third), "other"]
    assert [row["model"] for row in compare([builders.dataset(x)]).study] == ["test/model"]


def test_attributes_that_are_no_facts_are_not_believed(tmp_path: Path) -> None:
    odd = {"total_parameters": "many", "active_parameters": 2**63, "experts": True, "top_k": 2.5, "routing": ["x"]}
    path = builders.on_disk(tmp_path / "s.zarr", activations(1), attributes={**odd, "model_id": 7, "text_source": None})
    row = compare([path]).study[0]
    assert {row[name] for name in (*odd, "text")} == {None}
    assert row["model"] == "s"
    as_markdown(compare([path]), "dense")


HOSTILE = "=cmd|'/c calc'!A1 `x` <img src=x onerror=alert(1)> *b* [l](http://e.org) www.e.org @me $x$ \x1b[31m\n# h | y"


def test_a_strangers_strings_are_text_everywhere(tmp_path: Path) -> None:
    attributes = {"model_id": HOSTILE, "routing": HOSTILE, "text_source": HOSTILE, "compute_dtype": "+1"}
    path = builders.on_disk(tmp_path / "s.zarr", activations(1), attributes=attributes)
    result = compare([path])
    text = as_markdown(result, "dense")
    (line,) = [line for line in text.splitlines() if line.startswith("| =cmd")]
    assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"\|", text.splitlines()[5]))
    for raw in ("<img", "[l](", "http://", "www.e", "@me", " $x", " *b", "\x1b", " `x"):
        assert raw not in text
    assert "<img" not in result._repr_html_()
    assert "\x1b" not in as_text(result)
    (row,) = csv.DictReader(io.StringIO(as_csv(result, "dense")))
    assert row["model"].startswith("'=cmd")
    assert row["precision"] == "'+1"
    assert "\n" not in row["model"]
    assert result.to_dict()["dense"][0]["model"] == HOSTILE  # JSON needs no care


@settings(max_examples=30)
@given(st.text(max_size=30))
def test_markdown_never_lets_markup_through(text: str) -> None:
    escaped = markdown(text)
    assert not re.search(r"(?<!\\)(\\\\)*[`*_\[\]|<>$]", re.sub(r"\\[`*_\[\]|$#{}~]", "", escaped))
    assert escaped.isprintable()
    shown = html.unescape(re.sub(r"\\(.)", r"\1", escaped))
    assert shown == "".join(c if c.isprintable() else " " for c in text) or "&" in text


def test_the_causal_test_appears_with_its_criterion(copies: list[Path]) -> None:
    criterion = Criteria.preset("dettmers").resolve(xr.open_zarr(copies[1]))
    for number, (one, site) in enumerate(
        [(criterion, "ln_mlp"), (criterion, "ln_attn"), (Criteria(magnitude=2), "both")]
    ):
        top1 = np.full((3, 2, 3), 0.5) - np.array([0, 0.3, 0.1])[:, None, None] - number / 100
        nll = np.array([[1.0, 1.0], [3.0, 3.0], [1.5, 1.5]])
        own = {"store_id": xr.open_zarr(copies[1]).attrs["store_id"]}
        ablation = Ablation(one, site, (1,), ((2,),), 6, 8, 0, top1, top1[:, :, 0], nll, own)
        (copies[1] / ABLATION).mkdir(exist_ok=True)
        (copies[1] / ABLATION / f"{number}.json").write_text(ablation.dump())
    result = compare(copies)
    rows = rows_by_model(result.table4)
    assert rows["org/dense"]["top1_without"] == pytest.approx(0.19)
    assert rows["org/dense"]["perplexity_random"] == pytest.approx(math.exp(1.5))
    assert rows["org/moe"]["top1_with"] is rows_by_model(result.study)["org/dense"]["top1_with"] is None
    assert "49.0% / 19.0% / 39.0%" in as_markdown(result, "table4")
    assert f"{math.exp(1):.5g} / {math.exp(3):.5g} / {math.exp(1.5):.5g}" in as_markdown(result, "table4")
    assert "Top-1" not in as_markdown(result, "dense")
    assert rows_by_model(compare(copies, Criteria(magnitude=2)).study)["org/dense"]["top1_with"] == pytest.approx(0.48)
    (copies[1] / ABLATION / "0.json").write_text("{}")
    with pytest.raises(OutliersError, match=r"0\.json is damaged"):
        compare(copies)


def test_what_cannot_be_compared_is_refused(stores: list[Path], tmp_path: Path) -> None:
    x = activations(1)
    unfinished = builders.on_disk(tmp_path / "half.zarr", x, done=2)
    bare = builders.on_disk(tmp_path / "bare.zarr", x, raw="none")
    store = open_store(stores[0])
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "no store to compare; expected one or more, or published numbers"),
        ([stores[0], stores[0]], {}, "moe.zarr is given twice"),
        ([store, store], {}, "moe.zarr is given twice"),
        (stores[0], {}, "stores is a single store; expected a list of them"),
        (str(stores[0]), {}, "stores is a single store"),
        (store, {}, "stores is a single store"),
        ([stores[0], unfinished], {}, "half.zarr: the capture is unfinished, 2 of 4"),
        ([stores[0], tmp_path / "gone"], {}, "no store at .*gone"),
        ([stores[0], bare], {"criteria": Criteria(skip_first=1)}, "bare.zarr: .*capture again with --raw"),
        ([stores[0]], {"criteria": Criteria(layer_range=(0, 9))}, "moe.zarr: layer-range is 0:9"),
        ([stores[0]], {"criteria": Criteria(scale="rms"), "quartiles": True}, "quartiles are of the values themselves"),
        ([stores[0]], {"resamples": -1}, "resamples is -1; expected a whole number, 0 or more"),
        ([stores[0]], {"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ([stores[0]], {"resamples": 10**9}, "moe.zarr: resamples is 1,000,000,000; expected 8,388,608 or fewer of 4"),
        (
            [stores[0], bare],
            {"quartiles": True},
            "bare.zarr: quartiles need the norm outputs themselves, and the store",
        ),
    ]
    for given_stores, options, message in cases:
        with pytest.raises(OutliersError, match=message):
            compare(given_stores, **options)


def test_a_short_name_is_told_too(stores: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(stores[0], tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutliersError, match=r"^s: layer-range is 0:9; the store has layers 0 to 2$"):
        compare(["s"], Criteria(layer_range=(0, 9)))
    with pytest.raises(OutliersError, match=r"^no store at gone; check"):
        compare(["gone"])


def test_intervals_are_spoken_of_where_there_are_some(stores: list[Path]) -> None:
    assert "Brackets: 95% intervals of 1,000 bootstrap" in as_text(compare(stores))
    assert "Brackets" not in as_text(compare(stores, resamples=0))


def test_published_rows_of_another_criterion_are_told_apart(stores: list[Path]) -> None:
    same = compare(stores, published=True)
    other = compare(stores, Criteria(magnitude=5), published=True)
    for table, convention in (("moe", "study"), ("dense", "study"), ("table4", "dettmers")):
        told = "These published rows do not compare with the stores: they count |norm output| >= 6 in"
        assert markdown(told) not in as_markdown(same, table)
        assert as_markdown(other, table).count(markdown(f"{told[:-30]}")) == 1
        assert markdown(str(Criteria.preset(convention))) in as_markdown(other, table)
        plan = next(plan for plan in PLANS if plan.table == table)
        feet = [" ".join(figure_of(result, plan).legends[0].get_title().get_text().split()) for result in (same, other)]
        assert f"published, otherwise: {Criteria.preset(convention)}" in feet[1]
        assert "otherwise" not in feet[0]


def test_a_view_that_a_later_store_cannot_serve_stops_before_any_work(
    stores: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = builders.on_disk(tmp_path / "small.zarr", np.ones((1, 1, 2, 2, 2)))
    monkeypatch.setattr(module, "read_hits", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(OutliersError, match="small.zarr: skip-first is 2"):
        compare([*stores, small], Criteria(skip_first=2))


def test_the_command(stores: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *map(str, stores), "--published"]
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == compare(stores, published=True).to_dict()
    assert main([*words, "--magnitude", "7", "--preset", "dettmers", "--json"]) == 0
    criteria = json.loads(capsys.readouterr().out)["criteria"]
    assert (criteria["magnitude"], criteria["counting"], criteria["rounding"]) == (7, "pooled", "none")
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "org/moe" in shown
    assert "512+1 shared" in shown
    assert "128*" in shown


@pytest.mark.exhaustive  # draws sixteen images
def test_the_command_writes_tables_and_figures(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", *map(str, stores), "--published"]
    content = compare(stores, published=True).to_dict()
    out = tmp_path / "deep" / "out"
    assert main([*words, "--out", str(out)]) == 0
    assert "25 files" in capsys.readouterr().out
    names = {file.name for file in out.iterdir()}
    assert {f"{t}{s}" for t in ("moe", "dense", "table4") for s in (".md", ".csv", ".json")} < names
    assert len([name for name in names if name.endswith((".png", ".svg"))]) == 16
    named = [{**row, "store": row["store"] and Path(row["store"]).name} for row in content["moe"]]
    assert json.loads((out / "moe.json").read_text())["rows"] == named
    lines = list(csv.DictReader((out / "dense.csv").open()))
    assert [line["model"] for line in lines] == [row["model"] for row in content["dense"]]
    assert float(lines[0]["mean_layer_fraction"]) == content["dense"][0]["mean_layer_fraction"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare"], "no store to compare"),
        (["compare", "MOE", "--out", "MOE"], "is a store; choose another folder for --out"),
        (["compare", "MOE", "--out", "FILE"], "is no folder; choose another --out"),
        (["compare", "MOE", "--magnitude", "-1"], "magnitude is -1.0"),
        (["compare", "MOE", "--resamples", "-1"], "resamples is -1"),
        (["compare", "MOE", "--preset", "mine"], "preset is 'mine'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str], message: str, stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    places = {"MOE": str(stores[0]), "FILE": str(tmp_path / "file")}
    assert main([places.get(word, word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line


def test_a_comparison_shows_itself(stores: list[Path]) -> None:
    result = compare(stores, published=True)
    assert isinstance(result, Comparison)
    shown = result._repr_html_()
    assert "Qwen3-30B" in shown
    assert "LLM.int8()" in shown
