"""Portraits, maps and walks against plain NumPy, and against the tensors of the study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyze import Criteria, OutliersError, critical_magnitudes, feature_map, open_store, portrait, walk
from analyze.cli import main
from analyze.display.figures import save, words
from analyze.display.tables import print_result
from analyze.portraits.drawing import signed_number, signed_ticks
from analyze.portraits.figures import map_figure, portrait_figure
from analyze.portraits.walk_figure import walk_figure
from tests import builders

# The study's picture: [batch, sequence, hidden], dimension 2 persists.
STREAM = np.array(
    [[[-3, 0, 6, -2], [-2, -3, 6, 1], [-2, 0, 8, 3]], [[0, 3, 6, 1], [3, -1, 9, -3], [0, -2, 6, -2]]], np.float32
)
ADDED = np.array(
    [[[-1, 1, 1, -1], [-1, 1, 1, -1], [1, 1, 1, 2]], [[2, -1, 0, -1], [-2, 1, 0, 1], [2, -2, 0, 2]]], np.float32
)
AFTER = np.array(
    [[[-4, 1, 7, -3], [-3, -2, 7, 0], [-1, 1, 9, 5]], [[2, 2, 6, 0], [1, 0, 9, -2], [2, -4, 6, 0]]], np.float32
)


def study(path: Path) -> Path:
    """A store of one layer whose attention adds what the study adds, and whose last norm sees 1 more everywhere."""
    return builders.on_disk(path, np.stack([STREAM, AFTER], axis=1)[:, None])


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    values = builders.random_activations((3, 4, 2, 7, 5))
    values[1, 2, 1, 3, 0] = -80
    values[0, 1, 0, 2, 1] = 0
    return values


@pytest.fixture(scope="module")
def path(x: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.on_disk(tmp_path_factory.mktemp("portraits") / "s.zarr", x)


def outlier_at(x: np.ndarray, magnitude: float, layers: float, positions: float) -> bool:
    """The definition, for one feature: (sequence, layer, site, position), all sequences as one."""
    hit = np.abs(x) >= magnitude
    by_unit = hit.any(axis=(0, 3)).mean() >= layers
    by_position = hit.any(axis=(1, 2)).mean() >= positions
    return bool(by_unit and by_position)


@pytest.mark.parametrize("signal", ["input", "output"])
@pytest.mark.parametrize("feature", [0, 3])
def test_a_portrait_by_hand(x: np.ndarray, path: Path, signal: str, feature: int) -> None:
    found = portrait(path, feature, Criteria(magnitude=2, layers=0.5, positions=0.3, signal=signal), tokens=4)
    values = (x if signal == "input" else x / 2)[..., feature]  # the builder's norm outputs are halves
    magnitudes = np.abs(values)
    for n, row in enumerate(found.sequences):
        hit = magnitudes[n] >= 2
        assert (row["lowest"], row["highest"]) == (values[n].min(), values[n].max())
        assert row["layer_fraction"] == hit.any(axis=2).mean()
        assert row["position_fraction"] == hit.any(axis=(0, 1)).mean()
        critical = row["critical_magnitude"]
        assert row["outlier"] == outlier_at(values[n : n + 1], 2, 0.5, 0.3)
        assert outlier_at(values[n : n + 1], critical, 0.5, 0.3)
        assert not outlier_at(values[n : n + 1], np.nextafter(np.float32(critical), np.inf), 0.5, 0.3)
    every = critical_magnitudes(path, Criteria(layers=0.5, positions=0.3, signal=signal)).values
    assert [row["rank"] for row in found.sequences] == [1 + int((row > row[feature]).sum()) for row in every]
    pooled = found.pooled_critical_magnitude
    assert outlier_at(values, pooled, 0.5, 0.3)
    assert not outlier_at(values, np.nextafter(np.float32(pooled), np.inf), 0.5, 0.3)
    assert found.ranking[found.pooled_rank - 1] == pooled
    assert found.sequence == np.unravel_index(magnitudes.argmax(), magnitudes.shape)[0]
    assert found.exact
    np.testing.assert_array_equal(found.magnitudes.values, magnitudes[found.sequence])
    np.testing.assert_array_equal(found.layers["high"].values, values.max(axis=3))
    np.testing.assert_array_equal(found.layers["low"].values, values.min(axis=3))
    by_position = magnitudes.max(axis=(1, 2))
    order = sorted(np.ndindex(by_position.shape), key=lambda place: (-by_position[place], place))[:4]
    assert [(row["sequence"], row["position"]) for row in found.tokens] == order
    assert [row["token_id"] for row in found.tokens] == [7 * n + p for n, p in order]
    assert [row["magnitude"] for row in found.tokens] == [by_position[place] for place in order]
    rows = {(row["layer"], row["site"]): row for row in found.layer_rows}
    assert rows[2, "ln_mlp"]["lowest"] == values[:, 2, 1].min()


def test_a_portrait_of_a_view(x: np.ndarray, path: Path) -> None:
    view = {"skip_first": 2, "layer_range": (1, 4), "sites": ("ln_mlp",), "sequences": (0, 2), "scale": "rms"}
    found = portrait(path, 0, Criteria(**view, magnitude=1, layers=0.5, layer_unit="layer"), sequence=2)
    part = x[[0, 2], 1:, 1:, 2:].astype(np.float64)
    scaled = np.abs(part[..., 0]) / np.sqrt((part**2).mean(axis=(3, 4)))[..., None]
    np.testing.assert_allclose(found.magnitudes.values, scaled[1], rtol=1e-6)
    assert [row["sequence"] for row in found.sequences] == [0, 2]
    assert found.magnitudes["position"].values.tolist() == [2, 3, 4, 5, 6]
    assert found.magnitudes["layer"].values.tolist() == [1, 2, 3]
    top = np.unravel_index(scaled.max(axis=(1, 2)).argmax(), (2, 5))
    assert (found.tokens[0]["sequence"], found.tokens[0]["position"]) == ((0, 2)[top[0]], top[1] + 2)


def test_without_activations_the_map_is_a_bound_that_is_met(x: np.ndarray, tmp_path: Path) -> None:
    bare = builders.on_disk(tmp_path / "none.zarr", x, raw="none")
    found = portrait(bare, 0, sequence=1)
    magnitudes = np.abs(x[1, ..., 0])
    assert not found.exact
    assert (found.magnitudes.values >= magnitudes).all()
    bound = np.minimum(magnitudes.max(axis=2)[..., None], magnitudes.max(axis=(0, 1)))
    np.testing.assert_array_equal(found.magnitudes.values, bound)
    assert found.magnitudes.values.max() == magnitudes.max() == 80
    assert "the store keeps no activations" in str(found)
    assert found.to_dict()["map"] == {"sequence": 1, "exact": False}
    with pytest.raises(OutliersError, match="the store keeps no activations"):
        portrait(bare, 0, Criteria(skip_first=1))


@pytest.mark.parametrize("counting", ["per-sequence", "pooled"])
def test_a_map_by_hand(x: np.ndarray, path: Path, counting: str) -> None:
    criteria = Criteria(magnitude=3, layers=0.5, positions=0.3, counting=counting)
    found = feature_map(path, criteria, top=3)
    critical = critical_magnitudes(path, criteria).values.reshape(-1, 5).max(axis=0)
    order = sorted(range(5), key=lambda f: (-critical[f], f))[:3]
    assert found.table["feature"].values.tolist() == order
    assert found.table["critical_magnitude"].values.tolist() == critical[order].tolist()
    for row, f in zip(found.rows(), order, strict=True):
        for layer, site in np.ndindex(4, 2):
            values = x[:, layer, site, :, f].ravel()
            peak = found.table["peak"].sel(feature=f).values[layer, site]
            assert peak == values[np.abs(values).argmax()]
        hit = [layer for layer in range(4) if (np.abs(x[:, layer, ..., f]) >= 3).any()]
        assert (row["first_layer"], row["last_layer"]) == ((hit[0], hit[-1]) if hit else (None, None))
        assert row["outlier"] == (critical[f] >= 3)
    first = found.rows()[0]
    assert (first["feature"], first["peak"], first["peak_layer"], first["peak_site"]) == (0, -80, 2, "ln_mlp")
    assert len(feature_map(path, top=99).rows()) == 5


def test_the_walk_of_the_study(tmp_path: Path) -> None:
    path = study(tmp_path / "study.zarr")
    for n in range(2):
        found = walk(path, 2, sequence=n, layer=0, site="ln_attn")
        assert (found.positions, found.features) == ((0, 1, 2), (0, 1, 2, 3))
        np.testing.assert_array_equal(found.before, STREAM[n])
        np.testing.assert_array_equal(found.contribution, ADDED[n])
        np.testing.assert_array_equal(found.after, AFTER[n])
        assert found.contribution.dtype == np.float64
        assert found.next_site == "layer 0, ln_mlp"
        assert not found.unchanged
        expected = [STREAM[n, :, 2], AFTER[n, :, 2], AFTER[n, :, 2] + 1]
        np.testing.assert_array_equal(found.stream.values, expected)
        assert (found.stream.values >= 6).all()  # it persists
    last = walk(path, 2, layer=0, site="ln_mlp", positions=(2, 0), features=(2, 1))
    np.testing.assert_array_equal(last.contribution, np.ones((2, 2)))
    np.testing.assert_array_equal(last.before, AFTER[0][[2, 0]][:, [2, 1]])
    assert last.next_site == "the last norm"


def test_a_walk_starts_at_the_largest_change_that_is_allowed() -> None:
    x = np.zeros((1, 3, 2, 2, 4), np.float32)
    x[0, 1:, :, 1, 3] += 5  # added by ln_mlp of layer 0
    x[0, 2, 1, 1, 3] += 100  # added by ln_attn of layer 2
    data = builders.dataset(x)
    data["final_input"].values[...] = x[:, -1, -1]
    found = walk(data, 3, positions=(0, 1))
    assert (found.layer, found.site) == (2, "ln_attn")
    assert (walk(data, 3, positions=(1,), site="ln_mlp").layer, walk(data, 3, positions=(1,), layer=0).site) == (
        0,
        "ln_mlp",
    )
    assert found.features == (0, 1, 2, 3)
    assert walk(data, 3, positions=(1,), layer=1, site="ln_attn").unchanged


def test_a_walk_where_both_sublayers_read_the_same_stream_says_so() -> None:
    x = np.repeat(np.arange(3, dtype=np.float32), 2).reshape(1, 3, 2, 1, 1) * np.ones((1, 1, 1, 3, 6), np.float32)
    found = walk(builders.dataset(x), 0, layer=1, site="ln_attn")
    assert found.unchanged
    assert found.summary()[-1] == ("unchanged", "layer 1, ln_mlp reads the same stream: what both add shows there")
    assert not walk(builders.dataset(x), 0, layer=1, site="ln_mlp").unchanged


def test_rounded_activations_are_said_to_be(x: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    data = builders.dataset(x).assign_attrs(rounded={"mantissa_bits": 7})
    results = (portrait(data, 0), feature_map(data), walk(data, 0))
    for result, show in zip(results, (print_result, print_result, print_result), strict=True):
        assert result.to_dict()["mantissa_bits"] == 7
        assert "activations have 7 mantissa bits" in result._repr_html_()
        show(result)
        assert "activations have 7 mantissa bits" in capsys.readouterr().out


def test_a_walk_shows_the_first_three_positions_or_as_many_as_there_are(x: np.ndarray) -> None:
    assert walk(builders.dataset(x), 0).positions == (0, 1, 2)
    assert walk(builders.dataset(x[..., :2, :]), 0).positions == (0, 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda path: portrait(path, 5), "feature is 5; the store has features 0 to 4"),
        (lambda path: portrait(path, -1), "feature is -1; the store has features 0 to 4"),
        (lambda path: portrait(path, 1.5), "feature is 1.5; expected a whole number, 0 to 4"),
        (lambda path: portrait(path, True), "feature is True; expected a whole number"),
        (lambda path: portrait(path, 0, sequence=3), "sequence is 3; the store has sequences 0 to 2"),
        (lambda path: portrait(path, 0, Criteria(sequences=(0,)), sequence=2), "sequence is 2, which the view leaves"),
        (lambda path: portrait(path, 0, tokens=0), "tokens is 0; expected 1 or more"),
        (lambda path: portrait(path, 0, Criteria(layer_range=(0, 9))), "layer-range is 0:9; the store has layers 0"),
        (lambda path: feature_map(path, top=0), "top is 0; expected 1 or more features"),
        (lambda path: walk(path, 7), "feature is 7; the store has features 0 to 4"),
        (lambda path: walk(path, 0, sequence=-1), "sequence is -1; the store has sequences 0 to 2"),
        (lambda path: walk(path, 0, layer=4), "layer is 4; the store has layers 0 to 3"),
        (lambda path: walk(path, 0, site="ln"), "site is 'ln'; the store has ln_attn, ln_mlp"),
        (lambda path: walk(path, 0, positions=(7,)), "position is 7; the store has positions 0 to 6"),
        (lambda path: walk(path, 0, positions=()), "positions is ''; expected one or more, each once"),
        (lambda path: walk(path, 0, features=(1, 1)), "features is '1,1'; expected one or more, each once"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(path: Path, function: Any, message: str) -> None:
    with pytest.raises(OutliersError, match=message):
        function(path)


@pytest.mark.parametrize(("raw", "lacking"), [("none", "norm_input and no final_input"), ("output", "norm_input")])
def test_a_walk_needs_norm_inputs(x: np.ndarray, tmp_path: Path, raw: str, lacking: str) -> None:
    bare = builders.on_disk(tmp_path / "bare.zarr", x, raw=raw)
    message = rf"the store keeps no {lacking} \(--raw {raw}\); capture again with --raw input or both"
    with pytest.raises(OutliersError, match=message):
        walk(bare, 0)


def test_numbers_that_are_none_are_passed_over() -> None:
    x = builders.random_activations((2, 2, 2, 4, 3))
    x[0, :, :, :, 1] = np.nan
    x[1, 1, 1, 2, 1] = np.inf
    data = builders.dataset(x)
    found = portrait(data, 1)
    assert found.sequence == 1
    assert (found.tokens[0]["position"], found.tokens[0]["magnitude"]) == (2, np.inf)
    assert len(found.tokens) == 4  # of eight positions four have no number
    everywhere = portrait(builders.dataset(np.full((1, 1, 1, 2, 2), np.nan)), 0)
    assert (everywhere.tokens, everywhere.sequence) == ((), 0)
    for result, draw in (
        (found, portrait_figure),
        (everywhere, portrait_figure),
        (feature_map(data), map_figure),
        (walk(data, 1, positions=(0, 2)), walk_figure),
    ):
        draw(result).draw_without_rendering()
        json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 3, 3, 9, 30)])
def test_every_shape_can_be_drawn(shape: tuple[int, ...]) -> None:
    data = builders.dataset(1000 * builders.random_activations(shape))
    portrait_figure(portrait(data, 0, Criteria(magnitude=1e6))).draw_without_rendering()
    map_figure(feature_map(data, Criteria(layers=0, positions=0))).draw_without_rendering()
    step = walk(data, 0, positions=tuple(range(shape[3])), features=tuple(range(shape[4])))
    walk_figure(step).draw_without_rendering()


def test_figures_show_what_was_computed(x: np.ndarray, path: Path) -> None:
    found = portrait(path, 0)
    drawn = np.asarray(portrait_figure(found).axes[0].collections[0].get_array()).reshape(8, 7)
    expected = found.magnitudes.values.reshape(8, 7)
    visible = drawn > drawn.min()  # below the scale all is alike
    np.testing.assert_array_equal(drawn[visible], expected[visible])
    assert expected[~visible].max() <= drawn.min()
    strongest = feature_map(path, top=2)
    peaks = np.asarray(map_figure(strongest).axes[0].collections[0].get_array())
    np.testing.assert_array_equal(peaks.reshape(2, 8), strongest.table["peak"].values.reshape(2, 8))
    step = walk(path, 0)
    figure = walk_figure(step)
    matrices = [axes for axes in figure.axes if axes.images]
    for axes, matrix in zip(matrices, (step.before, step.contribution, step.after), strict=True):
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), matrix)
        assert [text.get_text() for text in axes.texts] == [signed_number(value) for value in matrix.ravel()]


def test_many_positions_are_drawn_by_their_largest() -> None:
    x = np.ones((1, 1, 1, 1100, 1), np.float32)
    x[0, 0, 0, 777] = 50
    drawn = np.asarray(portrait_figure(portrait(builders.dataset(x), 0)).axes[0].collections[0].get_array()).ravel()
    assert drawn.size == 367
    assert np.flatnonzero(drawn == 50).tolist() == [777 // 3]


HOSTILE = "$\\frac{$<script>\x1b[31m\n[red]\u202e漢"


def test_a_strangers_words_are_shown_and_never_interpreted(
    x: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", x, attributes={"model_id": HOSTILE})
    for command in (["show", str(path), "--feature", "0"], ["map", str(path)], ["walk", str(path), "--feature", "0"]):
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert all(character.isprintable() or character == "\n" for character in shown)
    assert words(HOSTILE) == "\\$\\frac{\\$<script> [31m [red] \\u6f22"
    data = open_store(path)
    for figure in (portrait_figure(portrait(data, 0)), map_figure(feature_map(data)), walk_figure(walk(data, 0))):
        assert words(HOSTILE) in figure.get_suptitle()
    found = portrait(data, 0)
    strange = replace(found, tokens=tuple({**row, "token_text": HOSTILE} for row in found.tokens))
    save(portrait_figure(strange), tmp_path / "figure.svg")
    assert "<script" not in (tmp_path / "figure.svg").read_text()


def test_ticks_and_numbers() -> None:
    assert signed_ticks(25000, 6) == [-10000, -1000, -100, -10, 0, 10, 100, 1000, 10000]
    assert signed_ticks(5, 2) == [0]
    assert [signed_number(v) for v in (-0.0, 0.5, -1234.5, 22348.2, float("nan"))] == [
        "0",
        "0.5",
        "\N{MINUS SIGN}1,234",
        "22,348",
        "nan",
    ]


def test_the_commands(x: np.ndarray, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--magnitude", "2", "--signal", "output", "--skip-first", "1", "--json"]
    assert main(["show", str(path), "--feature", "0", "--sequence", "2", "--tokens", "3", *words]) == 0
    criteria = Criteria(magnitude=2, signal="output", skip_first=1)
    expected = portrait(path, 0, criteria, sequence=2, tokens=3).to_dict()
    assert json.loads(capsys.readouterr().out) == expected
    assert len(expected["tokens"]) == 3
    assert main(["map", str(path), "--top", "2", "--counting", "pooled", *words]) == 0
    pooled = Criteria(magnitude=2, signal="output", skip_first=1, counting="pooled")
    assert json.loads(capsys.readouterr().out) == feature_map(path, pooled, top=2).to_dict()
    place = ["--sequence", "1", "--layer", "1", "--site", "ln_mlp", "--positions", "0,2:4", "--features", "1,4"]
    assert main(["walk", str(path), "--feature", "1", *place, "--json"]) == 0
    step = walk(path, 1, sequence=1, layer=1, site="ln_mlp", positions=(0, 2, 3), features=(1, 4))
    assert json.loads(capsys.readouterr().out) == step.to_dict()
    for command in ("show", "walk"):
        assert main([command, str(path), "--feature", "0"]) == 0
    assert "= the stream after" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "--feature", "9"], "feature is 9; the store has features 0 to 4"),
        (["show"], "Missing option '--feature'"),
        (["show", "--feature", "0", "--plot", "a.pdf"], "expected a figure file ending in .png or .svg"),
        (["map", "--top", "-1"], "top is -1; expected 1 or more features"),
        (["map", "--preset", "nobody"], "preset is 'nobody'; expected one of study, dettmers"),
        (["walk", "--feature", "0", "--positions", "a"], "positions is 'a'; expected indices such as 0,2,5:8"),
        (["walk", "--feature", "0", "--positions", "5:2"], "positions is '5:2'; expected FIRST:STOP with FIRST < STOP"),
        (
            ["walk", "--feature", "0", "--plot", "absent/a.png"],
            "cannot write absent/a.png; expected a file in a folder",
        ),
        (["walk", "--feature", "0", "--features", "9"], "feature is 9; the store has features 0 to 4"),
    ],
)
def test_wrong_words_exit_with_2(
    path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], str(path), *words[1:]]) == 2
    assert message in capsys.readouterr().err


def test_a_plain_dataset_serves_too(path: Path) -> None:
    plain = xr.open_zarr(path)
    assert portrait(plain, 0, Criteria(sequences=(1, 2))).to_dict() == (
        portrait(path, 0, Criteria(sequences=(1, 2))).to_dict()
    )
    assert walk(plain, 2, sequence=1).to_dict() == walk(path, 2, sequence=1).to_dict()
    assert feature_map(plain).to_dict() == feature_map(path).to_dict()
