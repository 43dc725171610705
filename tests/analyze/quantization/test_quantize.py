"""What quantisers lose on a store, against the definition in float64; in memory, on disk and on a cluster alike."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyze import OutliersError, Quantization, View, activations, open_store, quantize, quantize_figure, scheduler
from analyze.cli import main
from analyze.quantization import quantize as module_of
from analyze.quantization.columns import kept_shares
from analyze.quantization.result import side_by_side
from analyze.quantization.schemes import scheme
from analyze.quantization.transforms import Hadamard, random_signs, smooth_scales
from analyze.quantization.variants import channel_maxima
from tests import builders

SHAPE = (3, 2, 2, 9, 40)
WEIGHT = ("layer", "site", "feature")


def spread(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_t(3, shape)
    return (values * np.geomspace(0.2, 6, shape[-1])).astype(np.float32)


def weighted(store: xr.Dataset) -> xr.Dataset:
    """The store with norms and peaks of weights."""
    rng = np.random.default_rng(9)
    shape = tuple(store.sizes[dim] for dim in WEIGHT)
    norm = rng.uniform(0.5, 2, shape).astype(np.float32)
    return store.assign(weight_norm=(WEIGHT, norm), weight_peak=(WEIGHT, norm / 3))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return builders.on_disk(tmp_path / "s.zarr", spread(), spread(seed=1))


def expected(x: np.ndarray, name: str, threshold: float | None, weights: np.ndarray) -> tuple[float, float, float]:
    """Error, output error and kept share at one (layer, site), of (sequence, position, feature), by the definition."""
    lost, weighted_lost, total, weighted_total, kept = 0.0, 0.0, 0.0, 0.0, 0.0
    w = weights.astype(np.float64) ** 2
    for matrix in x:
        stays = np.zeros(x.shape[2], bool) if threshold is None else (np.abs(matrix) >= threshold).any(axis=0)
        result = matrix.astype(np.float64)
        result[:, ~stays] = scheme(name).quantised(np.ascontiguousarray(matrix[:, ~stays]), np.abs(matrix).max())
        squares, all_squares = (matrix - result) ** 2, matrix.astype(np.float64) ** 2
        lost, weighted_lost = lost + squares.sum(), weighted_lost + (squares * w).sum()
        total, weighted_total = total + all_squares.sum(), weighted_total + (all_squares * w).sum()
        kept += stays.mean() / len(x)
    return lost / total, weighted_lost / weighted_total, kept


def test_every_row_is_the_definition() -> None:
    data = weighted(builders.dataset(spread(), spread(seed=1)))
    found = quantize(data, ["int8-tensor", "int4-token", "int4-group32", "mxfp8", "nvfp4"], thresholds=[2, 8])
    x, rows = data["norm_output"].values, found.rows()
    assert len(rows) == 7 * (1 + 4)
    for row in rows:
        if row["layer"] is None:
            mine = [r for r in rows if r["layer"] is not None and all(r[k] == row[k] for k in ("scheme", "threshold"))]
            for name in ("error", "output_error", "kept_share"):
                assert row[name] == pytest.approx(np.mean([r[name] for r in mine]), rel=1e-12)
            continue
        j = builders.SITES.index(row["site"])
        weights = data["weight_norm"].values[row["layer"], j]
        error, output_error, kept = expected(x[:, row["layer"], j], row["scheme"], row["threshold"], weights)
        assert row["error"] == pytest.approx(error, rel=1e-6)
        assert row["output_error"] == pytest.approx(output_error, rel=1e-6)
        assert row["kept_share"] == pytest.approx(kept, abs=1e-12)
        assert row["bits"] == pytest.approx(scheme(row["scheme"]).bits(40, kept))


def test_kept_columns_follow_from_the_peaks_alone(store: Path) -> None:
    limits = (1.0, 4.0, 20.0)
    found = quantize(store, ["int8-token"], thresholds=limits)
    assert np.allclose(found.table["kept_share"].values[1:], kept_shares(open_store(store), limits).values, atol=1e-12)


def test_a_threshold_above_everything_changes_nothing_and_a_lower_one_loses_less(store: Path) -> None:
    found = quantize(store, ["int8-token"], thresholds=(0.1, 3, 1e6)).rows_for_all
    whole, low, middle, high = (row["error"] for row in found)
    assert whole == high
    assert low < middle < whole


def test_transforms_are_applied_before_and_undone_after() -> None:
    data = weighted(builders.dataset(spread(), spread(seed=1)))
    found = quantize(data, ["int4-token"], transforms=["hadamard:3", "smooth:0.5"])
    x, norms = data["norm_output"].values, data["weight_norm"].values.astype(np.float64) ** 2
    rotation = Hadamard("", random_signs(40, 3))
    scales = smooth_scales(np.abs(x).max(axis=(0, 3)), data["weight_peak"].values, 0.5)
    for number in range(2):
        for layer, site in np.ndindex(2, 2):
            lost = np.zeros(40)
            for matrix in x[:, layer, site]:
                s = scales[layer, site]
                y = rotation.forward(matrix, (0, 0)) if number == 0 else matrix / s
                z = scheme("int4-token").quantised(y, np.abs(y).max())
                back = rotation.back(z, (0, 0)) if number == 0 else z * s
                lost += ((matrix.astype(np.float64) - back) ** 2).sum(axis=0)
            total = (x[:, layer, site].astype(np.float64) ** 2).sum(axis=(0, 1))
            error = found.table["error"].values[number, layer, site]
            assert error == pytest.approx(lost.sum() / total.sum(), rel=1e-5)
            output_error = found.table["output_error"].values[number, layer, site]
            weights = norms[layer, site]
            assert output_error == pytest.approx((lost * weights).sum() / (total * weights).sum(), rel=1e-5)


def test_a_rotation_helps_where_one_feature_is_large() -> None:
    values = spread()
    values[..., 3] *= 50
    data = builders.dataset(values, values)
    plain, rotated = (quantize(data, ["int4-token"], transforms=[t]).rows_for_all[0] for t in ("none", "hadamard"))
    clean = np.delete(values, 3, axis=-1)
    assert rotated["error"] < plain["error"]
    assert quantize(builders.dataset(clean, clean), ["int8-token"]).rows_for_all[0]["error"] > 0


def test_in_memory_on_disk_and_however_chunked_the_same_bits(store: Path) -> None:
    settings: dict[str, Any] = {"schemes": ["int8-token", "mxfp4"], "thresholds": [3]}
    disk = quantize(store, **settings)
    memory = quantize(open_store(store).load(), **settings)
    chunked = quantize(open_store(store).chunk({"sequence": 2, "layer": 2, "position": 4}), **settings)
    assert disk.rows() == memory.rows() == chunked.rows()


@pytest.mark.exhaustive
def test_on_a_cluster_the_same_bits(store: Path) -> None:
    pytest.importorskip("distributed")
    with scheduler(workers=1):
        found = quantize(store, ["int8-token", "nvfp4"], thresholds=[3], transforms=["hadamard"], use_cache=False)
    again = quantize(store, ["int8-token", "nvfp4"], thresholds=[3], transforms=["hadamard"], use_cache=False)
    assert found.rows() == again.rows()


def test_norm_outputs_are_derived_where_norm_inputs_are_kept(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "i.zarr", spread(), raw="input")
    derived = activations(open_store(path), "output").values
    assert quantize(path).rows() == quantize(builders.dataset(derived, derived)).rows()


def test_what_was_found_is_kept_and_only_what_is_new_is_computed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    stream = module_of.stream_places

    def counted(data: xr.Dataset, view: View, loss_of: Any, progress: Any) -> Any:
        asked.append([variant.scheme.name for variant in loss_of.variants])
        return stream(data, view, loss_of, progress)

    monkeypatch.setattr(module_of, "stream_places", counted)
    first = quantize(store, ["int8-token", "mxfp4"])
    again = quantize(store, ["mxfp4", "int8-token", "nvfp4"])
    assert quantize(store, ["int8-token", "mxfp4"]).rows() == first.rows()
    assert asked == [["int8-token", "mxfp4"], ["nvfp4"]]
    quantize(store, ["int8-token"], view=View(skip_first=1))
    quantize(store, ["int8-token"], use_cache=False)
    assert asked[2:] == [["int8-token"]] * 2
    for kept in (Path(store).parent / "cache").rglob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:-9] + b"otherwise")  # what is damaged is computed again
    assert quantize(store, ["mxfp4", "int8-token", "nvfp4"]).rows() == again.rows()


def test_views_choose_what_counts_and_the_weights_with_it() -> None:
    data = weighted(builders.dataset(spread(), spread(seed=1)))
    view = View(layer_range=(1, 2), sites=("ln_mlp",), sequences=(0, 2), skip_first=4)
    found = quantize(data, ["int4-token"], view=view, transforms=["none", "smooth:0.3"])
    x = data["norm_output"].values[[0, 2], 1, 1, 4:]
    error, output_error, _ = expected(x, "int4-token", None, data["weight_norm"].values[1, 1])
    row = found.rows()[1]
    assert (row["layer"], row["site"]) == (1, "ln_mlp")
    assert row["error"] == pytest.approx(error, rel=1e-6)
    assert row["output_error"] == pytest.approx(output_error, rel=1e-6)
    maxima = channel_maxima(data, View(signal="output", layer_range=(1, 2), sites=("ln_mlp",), sequences=(0, 2)))
    assert np.array_equal(maxima[0, 0], np.abs(data["norm_output"].values[[0, 2], 1, 1]).max(axis=(0, 1)))


def test_rows_that_are_not_finite_are_counted_and_harm_no_other(tmp_path: Path) -> None:
    values = spread()
    values[1, 0, 1, 2:4, 7] = np.nan
    values[2, 1, 0, 0, 0] = np.inf
    found = quantize(builders.dataset(values, values), ["int8-tensor"])
    assert found.left_out == 3
    assert all(np.isfinite(row["error"]) for row in found.rows())
    assert ("left out", "3 rows with values that are not finite") in found.summary()
    values[:, 0, 0] = np.nan
    rows = quantize(builders.dataset(values, values), ["int8-tensor"]).to_dict()["rows"]
    assert rows[1]["error"] is None
    assert rows[0]["error"] == pytest.approx(np.mean([row["error"] for row in rows[2:]]))
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_left_out_sets_no_scale_of_smoothquant(value: float) -> None:
    values = spread((1, *SHAPE[1:]))
    spoilt = np.insert(values, 4, 1e3, axis=3)
    spoilt[:, :, :, 4, 7] = value
    rows = [
        quantize(weighted(builders.dataset(x, x)), ["int4-token"], transforms=["smooth:0.5"]).rows()
        for x in (values, spoilt)
    ]
    assert rows[0] == rows[1]
    assert all(row["output_error"] is not None for row in rows[0])


def test_positions_that_do_not_count_count_nowhere(tmp_path: Path) -> None:
    values = spread()
    values[2, 1, 1, 0, 0] = np.nan
    path = builders.on_disk(tmp_path / "l.zarr", values, values, length=np.array([9, 4, 6]))
    found = quantize(path, ["int4-token"])
    assert (found.tokens, found.left_out) == (19, 1)
    for i, j in np.ndindex(2, 2):
        parts = [values[n, i, j, :length] for n, length in enumerate((9, 4, 6))]
        parts = [part[np.isfinite(part).all(axis=1)] for part in parts]
        losses = [expected(part[None], "int4-token", None, np.ones(40))[0] for part in parts]
        squares = [np.square(part, dtype=np.float64).sum() for part in parts]
        error = np.dot(losses, squares) / np.sum(squares)
        assert found.table["error"].values[0, i, j] == pytest.approx(error, rel=1e-6)
    skipped = quantize(path, ["int4-token"], view=View(skip_tokens=(0, 9)))  # the first of two sequences
    assert (skipped.tokens, skipped.left_out) == (17, 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--scheme", "int3-token"], "3 bits; expected 4 to 8"),
        (["--scheme", "int9-token"], "9 bits; expected 4 to 8"),
        (["--scheme", "awq"], "scheme is 'awq'; expected"),
        (["--scheme", "int4-group64"], "groups of 64 features, and the model is 40 wide"),
        (["--transform", "smooth:1.5"], "expected smooth:A with A from 0 to 1"),
        (["--transform", "quarot"], "expected none, hadamard"),
        (["--transform", "smooth:0.5"], "no weight_peak"),
        (["--transform", "hadamard:1234567890123456"], "hadamard:SEED (at most 15 digits)"),
        (["--threshold", "0"], "threshold is 0"),
        (["--threshold", "-1"], "threshold is -1.0; expected a finite number"),
        (["--threshold", "6", "--scheme", "mxfp4"], "by token alone"),
        (["--skip-first", "9"], "skip-first is 9"),
        (["--plot", "x.jpg"], "suffix"),
        (["--overwrite"], "overwrite are for --perplexity"),
        (["--model", "m"], "model, trust-remote-code and overwrite are for --perplexity"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    words: list[str], told: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(store), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_store_of_peaks_alone_is_told_what_would_do(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "p.zarr", spread(), raw="none")
    with pytest.raises(OutliersError, match=r"keeps none .* --raw input, output or both; outliers fits answers"):
        quantize(path)


def test_the_command_prints_best_first_and_writes_what_was_asked(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--scheme", "int8-token", "--scheme", "int4-token", "--threshold", "2:6:2"]
    files = ["--csv", str(tmp_path / "q.csv"), "--plot", str(tmp_path / "q.png")]
    assert main(["quantize", str(store), *words, *files, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = quantize(store, ["int8-token", "int4-token"], thresholds=[2, 4, 6])
    assert told == found.to_dict()
    assert set(told["rows"][0]) == {
        *("scheme", "transform", "threshold", "layer", "site", "error", "output_error", "kept_share", "bits")
    }
    with (tmp_path / "q.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["error"]) for row in rows] == [row["error"] for row in told["rows"]]
    assert (tmp_path / "q.png").stat().st_size > 1000
    assert main(["quantize", str(store), *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("int")]
    errors = [float(line[4]) for line in lines]
    assert len(errors) == 8
    assert errors == sorted(errors)


def test_several_stores_stand_side_by_side(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = builders.on_disk(tmp_path / "t.zarr", spread(seed=4), spread(seed=5))
    results = [quantize(path, ["int8-token", "mxfp4"]) for path in (store, other)]
    rows = side_by_side(results)
    assert [row["scheme"] for row in rows] == [row["scheme"] for row in results[0].best_first()]
    for label, result in zip(("s.zarr", "t.zarr"), results, strict=True):
        by_name = {row["scheme"]: row["error"] for row in result.rows_for_all}
        assert {row["scheme"]: row[f"{label} error"] for row in rows} == by_name
    table = tmp_path / "both.csv"
    words = ["--scheme", "int8-token", "--scheme", "mxfp4", "--csv", str(table)]
    assert main(["quantize", str(store), str(other), *words]) == 0
    assert "side by side" in capsys.readouterr().out
    assert main(["quantize", str(store), str(other), *words, "--json"]) == 0
    assert [one["store"] for one in json.loads(capsys.readouterr().out)["stores"]] == [str(store), str(other)]
    assert main(["quantize", str(store), str(other), "--plot", str(tmp_path / "x.png")]) == 2
    for more, names in (([], {"s.zarr", "t.zarr"}), (["--keep-paths"], {str(store), str(other)})):
        assert main(["quantize", str(store), str(other), *words, *more]) == 0
        with table.open() as file:
            assert {row["store"] for row in csv.DictReader(file)} == names


@pytest.mark.parametrize("thresholds", [(), (2, 4, 8)])
def test_the_figure_draws_every_variant(store: Path, thresholds: tuple[float, ...]) -> None:
    found: Quantization = quantize(store, ["int8-token", "mxfp4"], thresholds=thresholds)
    left, right, *_ = quantize_figure(found).axes
    drawn = [value for line in left.get_lines() for value in np.atleast_1d(line.get_ydata())]
    assert {row["error"] for row in found.rows_for_all} <= {float(value) for value in drawn}
    assert right.get_images()[0].get_array().shape == (len(found.rows_for_all), 4)
