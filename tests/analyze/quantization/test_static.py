"""Scales of a calibration text on another text, against loops over the definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyze import OutliersError, View, open_store, quantize, quantize_static
from analyze.cli import main
from analyze.quantization.schemes import scheme
from tests import builders
from tests.analyze.quantization.test_quantize import spread, weighted

SHAPE = (4, 2, 2, 9, 24)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    use, calibration = spread(SHAPE, 1), spread((5, *SHAPE[1:]), 2) * np.float32(0.4)
    return (
        builders.on_disk(tmp_path / "use.zarr", use, use),
        builders.on_disk(tmp_path / "cal.zarr", calibration, calibration, raw="none"),
    )


def maxima(path: Path) -> np.ndarray:
    """Largest magnitude of each calibration sequence, (sequence, layer, site)."""
    data = open_store(path)
    ends = [np.abs(data[name].sel(signal="output").values) for name in ("layer_high", "layer_low")]
    return np.maximum(*ends).max(axis=3)


def lost(x: np.ndarray, name: str, limit: float) -> tuple[float, float]:
    """Share of squares lost and of values clipped, of (sequence, position, feature), with one scale."""
    result = [scheme(name).quantised(matrix.copy(), np.float32(limit)) for matrix in x]
    wide = x.astype(np.float64)
    return float(((wide - result) ** 2).sum() / (wide**2).sum()), float((np.abs(x) > limit).mean())


def test_every_place_is_the_definition(stores: tuple[Path, Path]) -> None:
    found = quantize_static(*stores, ["int8-tensor", "int4-tensor", "fp8-tensor"], resamples=5)
    x, limits = open_store(stores[0])["norm_output"].values, maxima(stores[1]).max(axis=0)
    own = quantize(stores[0], ["int8-tensor", "int4-tensor", "fp8-tensor"], use_cache=False)
    for row in found.rows():
        if row["layer"] is None:
            continue
        i, j = row["layer"], builders.SITES.index(row["site"])
        error, clipped = lost(x[:, i, j], row["scheme"], limits[i, j])
        assert row["error"] == pytest.approx(error, rel=1e-6)
        assert row["clipped_share"] == pytest.approx(clipped)
        assert clipped > 0
    for number in range(3):
        assert np.allclose(found.own_error[number], own.table["error"].values[number], rtol=1e-12)


def test_places_without_values_count_nowhere_and_rows_are_as_those_of_quantize(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    values = spread((3, *SHAPE[1:]))
    values[:, 0, 0] = 0
    data = weighted(builders.dataset(values, values))
    found = quantize_static(data, data, ["int4-tensor"], resamples=9)
    one, *_, last = found.rows()
    assert np.isnan(found.rows()[1]["error"])
    assert one["error"] == pytest.approx(np.nanmean(found.error))
    assert all(np.isfinite(row["error"]) for row in found.number_rows())
    own = quantize(data, ["int4-tensor"]).rows()
    assert list(own[0]) == [name for name in one if name not in ("own_error", "clipped_share")]
    x, weights = values[:, 1, 1].astype(np.float64), data["weight_norm"].values[1, 1].astype(np.float64) ** 2
    limit = np.float32(np.abs(values[:, 1, 1]).max())
    result = [scheme("int4-tensor").quantised(matrix.copy(), limit) for matrix in values[:, 1, 1]]
    assert last["output_error"] == pytest.approx(((x - result) ** 2 * weights).sum() / (x**2 * weights).sum())
    assert not recwarn.list


def test_draws_of_calibration_sequences_are_those_of_a_loop(stores: tuple[Path, Path]) -> None:
    found = quantize_static(*stores, ["int8-tensor"], resamples=7, seed=3)
    assert list(found.by_number) == [1, 2, 4, 5]
    x, each = open_store(stores[0])["norm_output"].values, maxima(stores[1])
    generator = np.random.default_rng(3)
    for count, (errors, shares) in found.by_number.items():
        for draw in range(7):
            limits = each[generator.integers(5, size=count)].max(axis=0)
            expected = [lost(x[:, i, j], "int8-tensor", limits[i, j]) for i in range(2) for j in range(2)]
            error, clipped = np.mean(expected, axis=0)
            assert errors[0, draw] == pytest.approx(error, rel=1e-6)
            assert shares[draw] == pytest.approx(clipped)


def test_what_clips_is_named(stores: tuple[Path, Path]) -> None:
    found = quantize_static(*stores, resamples=1)
    data = open_store(stores[0])
    x, tokens, limits = data["norm_output"].values, data["token_id"].values, maxima(stores[1]).max(axis=0)
    beyond = np.abs(x) > limits[None, :, :, None, None]
    by_token: dict[int, int] = {}
    for n, _, _, p in np.argwhere(beyond.any(axis=4)):
        by_token[int(tokens[n, p])] = by_token.get(int(tokens[n, p]), 0) + 1
    assert {token.token_id: token.places for token in found.tokens}.items() <= by_token.items()
    assert found.tokens[0].places == max(by_token.values())
    counts = beyond.sum(axis=(0, 3))
    for channel in found.channels:
        assert channel.values == counts[channel.layer, builders.SITES.index(channel.site), channel.feature]
    assert found.channels[0].values == counts.max()


def test_its_own_scales_clip_nothing(stores: tuple[Path, Path]) -> None:
    found = quantize_static(stores[0], stores[0], resamples=3)
    assert not found.clipped_share.any()
    assert found.channels == found.tokens == ()
    errors, shares = found.by_number[1]
    assert shares.mean() > 0
    assert errors.shape == (2, 3)


def test_views_and_values_that_are_not_finite(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    found = quantize_static(*stores, ["int8-tensor"], view=View(layer_range=(1, 2), sites=("ln_mlp",), sequences=(2,)))
    x = open_store(stores[0])["norm_output"].values[[2], 1, 1]
    assert found.rows()[1]["error"] == pytest.approx(lost(x, "int8-tensor", maxima(stores[1])[:, 1, 1].max())[0])
    values = spread(SHAPE)
    values[0, 1, 0, 2, 3] = np.inf
    broken = builders.on_disk(tmp_path / "b.zarr", values, values)
    assert np.isfinite(quantize_static(broken, stores[1], resamples=2).error).all()
    with pytest.raises(OutliersError, match="no finite largest magnitude in sequence 0 at layer 1, ln_attn"):
        quantize_static(stores[0], broken)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--scheme", "int8-token"], "int8-token takes its scales from what it quantises"),
        (["--threshold", "6"], "scales-from is for one store, without"),
        (["--transform", "hadamard"], "scales-from is for one store, without"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    words: list[str], told: str, stores: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(stores[0]), "--scales-from", str(stores[1]), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("change", ["width", "weights"])
def test_the_store_of_another_model_is_refused(change: str, stores: tuple[Path, Path], tmp_path: Path) -> None:
    data = open_store(stores[1])
    other: Any = data.assign(norm_weight=data["norm_weight"] + 1)
    if change == "width":
        other = builders.on_disk(tmp_path / "o.zarr", spread((1, 2, 2, 9, 12)))
    with pytest.raises(OutliersError, match="calibration store is of another model"):
        quantize_static(stores[0], other)


def test_the_command_prints_what_the_function_finds(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", str(stores[0]), "--scales-from", str(stores[1]), "--csv", str(tmp_path / "s.csv")]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == quantize_static(*stores).to_dict()
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 2 * 5
    assert main(words) == 0
    assert "95% interval" in capsys.readouterr().out
