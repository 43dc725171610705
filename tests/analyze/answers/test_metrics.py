"""Metrics of the field against their definitions, written out in loops."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from analyze import Criteria, OutliersError, View, dettmers_table, extreme_tokens, layer_metrics
from analyze.answers.metrics import MatrixStatistics, matrix_statistics, metric_rows
from analyze.cli import main
from tests import builders


def activations() -> np.ndarray:
    """Tame values with a massive activation at the first token and a sink."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 2, 2, 6, 8)).astype(np.float32)
    x[:, :, :, 0, 3] = 2000
    x[:, 1, :, :, 5] = -30 - np.arange(6)
    return x


def test_layer_metrics_equal_their_definitions() -> None:
    x = activations()
    result = layer_metrics(builders.dataset(x))
    for layer in range(2):
        for site in range(2):
            matrices = [np.abs(x[n, layer, site]).astype(np.float64) for n in range(2)]
            tokens = np.concatenate(matrices)
            got = {name: result[name].values[layer, site] for name in result if result[name].ndim == 2}
            assert got["max_magnitude"] == tokens.max()
            assert got["median_magnitude"] == pytest.approx(np.median([np.median(m) for m in matrices]))
            massive = [(m > 100) & (m >= 1000 * np.median(m)) for m in matrices]
            assert got["massive_activations"] == sum(m.sum() for m in massive) == 2
            assert got["massive_features"] == 1
            rms = np.sqrt(np.mean(tokens**2, axis=0))
            assert got["kurtosis"] == pytest.approx(np.mean(rms**4) / np.mean(rms**2) ** 2)
            assert got["max_median_ratio"] == pytest.approx(np.mean(tokens.max(axis=1) / np.median(tokens, axis=1)))
            np.testing.assert_array_equal(result["channel_maxima"].values[layer, site], tokens.max(axis=0))
            assert got["channel_max"] == tokens.max()
            assert got["channel_median"] == pytest.approx(np.median(tokens.max(axis=0)))
            assert got["residual_sinks"] == (1 if layer == 1 else 0)
            assert (got["extreme_position"], got["extreme_feature"]) == (0, 3)
            assert (got["extreme_sequence"], got["extreme_token_id"]) == (0, 0)


def test_massive_activations_need_both_their_magnitude_and_their_ratio() -> None:
    matrix = np.full((4, 4), 0.1, np.float32)
    matrix[0] = [99, 101, 2000, 100]
    tame, wild = matrix_statistics(matrix), matrix_statistics(np.where(matrix < 1, np.float32(1), matrix))
    assert tame.massive.tolist() == [0, 1, 1, 0]  # the median is 0.1: all four have the ratio, two the magnitude
    assert wild.massive.tolist() == [0, 0, 1, 0]  # the median is 1: one has the ratio


def test_metrics_of_a_view_and_whatever_the_chunks() -> None:
    x = activations()
    view = View(skip_first=1, layer_range=(1, 2), sequences=(1,))
    part = layer_metrics(builders.dataset(x[1:, 1:2, :, 1:]))
    chosen = layer_metrics(builders.dataset(x).chunk({"sequence": 2, "layer": 2, "feature": 3, "position": 4}), view)
    for name in part:
        if not str(name).startswith("extreme"):
            np.testing.assert_array_equal(part[name].values, chosen[name].values, err_msg=str(name))
    assert chosen["extreme_sequence"].values.tolist() == [[1, 1]]
    assert chosen["extreme_position"].values.tolist() == [[5, 5]]
    assert chosen["extreme_token_id"].values.tolist() == [[11, 11]]
    assert chosen["layer"].values.tolist() == [1]


def test_extremes_of_kurtosis() -> None:
    equal, single = np.ones((1, 1, 1, 3, 4), np.float32), np.zeros((1, 1, 1, 3, 4), np.float32)
    single[..., 2] = 7
    assert layer_metrics(builders.dataset(equal))["kurtosis"].item() == 1
    result = layer_metrics(builders.dataset(single))
    assert result["kurtosis"].item() == 4
    assert math.isnan(result["max_median_ratio"].item())  # every median is zero


def test_what_is_not_finite_is_left_out() -> None:
    clean = np.abs(activations()[0, 0, 0, 1:]) + np.float32(0.1)
    dirty = np.concatenate([np.full((1, 8), np.nan, np.float32), clean])
    dirty[0, 1] = np.inf
    one, other = matrix_statistics(clean), matrix_statistics(dirty)
    for name in vars(one):
        if name not in ("position", "token_ratio"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert other.position == one.position + 1
    np.testing.assert_array_equal(other.token_ratio, [np.nan, *one.token_ratio])
    nothing = matrix_statistics(np.full((2, 3), np.nan, np.float32))
    assert (nothing.position, nothing.feature, nothing.massive.sum(), nothing.sink.sum()) == (-1, -1, 0, 0)
    row = layer_metrics(builders.dataset(np.full((1, 1, 1, 2, 3), np.nan))).isel(layer=0, site=0)
    assert int(row["extreme_token_id"]) == -1
    assert math.isnan(float(row["max_magnitude"]))


def test_another_scale_is_refused() -> None:
    with pytest.raises(OutliersError, match="scale is 'rms'; metrics are defined on the values themselves"):
        layer_metrics(builders.dataset(activations()), View(scale="rms"))
    with pytest.raises(OutliersError, match="scale is 'median'; quartiles"):
        dettmers_table(builders.dataset(activations()), Criteria(scale="median"))


def test_extreme_tokens() -> None:
    x = activations()
    rows = extreme_tokens(builders.dataset(x), count=3)
    assert [(row["sequence"], row["position"], row["token_id"]) for row in rows] == [(0, 0, 0), (1, 0, 6), (0, 5, 5)]
    assert [(row["feature"], row["magnitude"]) for row in rows] == [(3, 2000), (3, 2000), (5, 35)]
    (row,) = extreme_tokens(builders.dataset(x), View(skip_first=1, sequences=(1,)), count=1)
    assert (row["sequence"], row["position"], row["token_id"], row["feature"]) == (1, 5, 11, 5)


def test_table_4_by_loops() -> None:
    x = activations()
    x[:, :, :, 1::2, 3] *= -10
    table = dettmers_table(builders.dataset(x, x), Criteria.preset("dettmers", magnitude=6, layers=0.5))
    hits = {f: x[..., f][np.abs(x[..., f]) >= 6] for f in range(8)}
    assert (table.outliers, table.most_common, table.largest) == (2, 5, 3)
    assert table.one_sided == sum(bool((hits[f] > 0).all() or (hits[f] < 0).all()) for f in (3, 5)) == 1
    assert table.quartiles == pytest.approx(np.quantile(hits[5], (0.25, 0.5, 0.75)))
    assert table.largest_median == pytest.approx(np.median(np.abs(hits[3])))
    share = [len(set(np.argwhere(np.abs(x[..., f]) >= 6)[:, 1])) / 2 for f in (3, 5)]
    assert table.layers == pytest.approx(np.mean(share))
    assert table.criteria.counting == "pooled"


def test_table_4_without_outliers_or_activations(tmp_path: Path) -> None:
    empty = dettmers_table(builders.dataset(activations()), Criteria(magnitude=1e6))
    assert (empty.outliers, empty.most_common, empty.quartiles) == (0, None, None)
    assert empty.to_dict()["layers"] is None
    path = builders.on_disk(tmp_path / "s.zarr", activations(), raw="none")
    table = dettmers_table(path, Criteria.preset("dettmers", signal="input"))
    assert (table.outliers, table.one_sided) == (2, 2)
    assert table.quartiles is None
    assert math.isnan(table.largest_median)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    path, csv = builders.on_disk(tmp_path / "s.zarr", activations()), tmp_path / "rows.csv"
    assert main(["metrics", str(path), "--signal", "input", "--json", "--csv", str(csv)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["layers"] == metric_rows(layer_metrics(path))
    assert result["dettmers"]["most_common"] == 5
    assert len(result["extreme_tokens"]) == 10
    assert len(csv.read_text().splitlines()) == 5
    assert main(["metrics", str(path)]) == 0
    assert "Table 4 of Dettmers" in capsys.readouterr().out
    none = builders.on_disk(tmp_path / "none.zarr", activations(), raw="none")
    assert main(["metrics", str(none)]) == 2
    assert "the store keeps no activations" in capsys.readouterr().err


def test_every_statistic_says_how_sequences_combine() -> None:
    """One that did not would keep the value of the first sequence."""
    assert all("over" in part.metadata for part in dataclasses.fields(MatrixStatistics))


def test_statistics_of_two_sequences_are_those_of_both() -> None:
    rng = np.random.default_rng(0)
    halves = rng.standard_normal((2, 7, 5)).astype(np.float32) * 50
    one, two, both = (matrix_statistics(m) for m in (*halves, np.concatenate(halves)))
    for part in dataclasses.fields(MatrixStatistics):
        combine = part.metadata["over"]
        if combine is not None and part.name not in ("massive", "sink"):  # these two are relative to a median
            joined = combine(getattr(one, part.name), getattr(two, part.name))
            np.testing.assert_allclose(joined, getattr(both, part.name), rtol=1e-12)
