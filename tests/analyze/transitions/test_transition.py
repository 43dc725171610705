"""Transitions of families of stores: planted steps, trends and neither; grids, figures and the command."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyze import Criteria, OutliersError, find_outliers
from analyze.cli import main
from analyze.comparison.published import TABLES, published
from analyze.transitions.figures import transition_figure, transition_grid_figure
from analyze.transitions.grid import CONVENTIONS, TransitionGrid, transition_grid
from analyze.transitions.transition import (
    AGAINST,
    Point,
    axis_value,
    examined,
    published_transition,
    published_transitions,
    transition,
)
from analyze.transitions.verdict import transition_test
from tests import families

pytestmark = pytest.mark.slow

SOME = {name: families.SIZES[name] for name in ("125M", "1.3B", "6.7B")}


@pytest.fixture(scope="module")
def stepping(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return families.family(families.step, tmp_path_factory.mktemp("step"))


@pytest.fixture(scope="module")
def trending(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return families.family(families.smooth, tmp_path_factory.mktemp("smooth"))


@pytest.fixture(scope="module")
def grid() -> TransitionGrid:
    return transition_grid(families.family(families.step), None, [20, 6, 12], [0.25, 0.5], repeats=499)


def test_a_planted_step_at_6_7b_is_found(stepping: list[Path]) -> None:
    result = transition(stepping)
    assert [point.layers for point in result.points] == pytest.approx([30] * 4 + [90] * 4)
    test = result.tests["layers"]
    assert test.verdict == "step"
    assert test.best("step").between == (2.65e9, 6.7e9)
    expected = "step up by 60.0 percentage points at 4.21B (between 2.65B and 6.7B)"
    assert result.sentence("layers") == expected
    assert not result.onset("layers")
    assert result.sentence("positions") == "no trend: all are alike"


def test_a_planted_trend_has_no_step(trending: list[Path]) -> None:
    result = transition(trending)
    assert result.tests["layers"].verdict == "smooth"
    assert result.sentence("layers") == "smooth trend, up"


def test_a_level_family_has_no_trend() -> None:
    result = transition(families.family(families.flat))
    assert result.tests["layers"].verdict == "none"
    assert result.sentence("layers") == "no trend that 8 points can show"


@pytest.mark.parametrize("criteria", [Criteria(), Criteria(magnitude=3, layers=0.1, counting="pooled")])
def test_points_are_what_find_finds(trending: list[Path], criteria: Criteria) -> None:
    for path, point in zip(trending, transition(trending, criteria, repeats=99).points, strict=True):
        found = find_outliers(path, criteria)
        assert point.count == found.count
        assert point.layers == pytest.approx(100 * found.mean_layer_fraction)
        assert point.positions == pytest.approx(100 * found.mean_position_fraction)


@pytest.mark.parametrize(("against", "factor"), [("total", 1), ("active", 4)])
def test_the_axis(stepping: list[Path], against: str, factor: float) -> None:
    result = transition(stepping, against=against, repeats=99)
    expected = [int(size / factor) for size in families.SIZES.values()]
    assert [point.x for point in result.points] == expected


def test_against_perplexity_the_step_goes_down(stepping: list[Path]) -> None:
    result = transition(stepping, against="perplexity")
    expected = sorted(math.exp(30 / math.log10(size)) for size in families.SIZES.values())
    np.testing.assert_allclose([point.x for point in result.points], expected, rtol=1e-6)
    assert result.sentence("layers").startswith("step down by 60.0 percentage points at 2")


def test_the_order_of_stores_does_not_matter(trending: list[Path]) -> None:
    first, again = (transition(stores, repeats=199) for stores in (trending, trending[::-1]))
    assert first.to_dict() == again.to_dict()


def some_points(layers: list[float], counts: list[int]) -> list[Point]:
    return [
        Point(f"m{n}", 10.0 ** (8 + n / 4), count, layer if count else math.nan, 50.0 if count else math.nan)
        for n, (layer, count) in enumerate(zip(layers, counts, strict=True))
    ]


def run(points: list[Point], absent: str) -> object:
    return examined("stores", points, Criteria(), "total", absent, lambda x, y: transition_test(x, y, repeats=999))


def test_models_without_outliers_count_as_zero_or_not_at_all() -> None:
    points = some_points([30.0, 31, 33, 36, 37, 39, 40, 42, 43], [1, 0, 2, 3, 4, 5, 6, 7, 8])
    zero, drop = run(points, "zero"), run(points, "drop")
    assert zero.without == drop.without == 1
    assert zero.tests["layers"].y[1] == 0
    assert zero.tests["layers"].points == 9
    assert drop.tests["layers"].points == 8
    assert drop.tests["layers"].y.tolist() == [30.0, 33, 36, 37, 39, 40, 42, 43]
    # A count of none is a count.
    assert drop.tests["count"].y.tolist() == pytest.approx(np.log10([2, 1, 3, 4, 5, 6, 7, 8, 9]).tolist())


def test_a_step_made_by_the_criterion_is_called_so() -> None:
    # Below 25% of layers nothing qualifies, so that L% leaps from 0 to 30, however smooth what lies behind.
    points = some_points([0, 0, 0, 0, 30, 31, 30, 32], [0, 0, 0, 0, 1, 1, 1, 1])
    result = run(points, "zero")
    assert result.onset("layers")
    assert result.sentence("layers").endswith("where features begin to qualify: the criterion makes its height")
    assert not result.onset("count")
    assert run(points, "drop").tests["layers"].points == 4
    # One model above the step without outliers: then it is not their onset.
    assert not run(some_points([30] * 4 + [90] * 4, [1] * 8), "zero").onset("layers")


def test_too_few_models_with_outliers() -> None:
    result = run(some_points([0, 0, 0, 30, 40], [0, 0, 0, 1, 1]), "drop")
    assert result.sentence("layers") == "undecided: 2 of 5 models have outliers"
    assert result.to_dict()["left_out"]["layers"] == "2 of 5 models have outliers"
    assert "count" in result.tests


@pytest.mark.parametrize("table", TABLES)
def test_published_points_are_the_table(table: str) -> None:
    result = published_transition(table, repeats=99)
    rows = sorted(published(table).rows(), key=lambda row: row["total_parameters"])
    assert [point.x for point in result.points] == [row["total_parameters"] for row in rows]
    assert [point.layers for point in result.points] == [100 * row["mean_layer_fraction"] for row in rows]


def test_what_the_published_numbers_say() -> None:
    results, left_out = published_transitions()
    assert left_out == {}
    said = {result.family: result for result in results}
    assert said["dettmers2022_table4"].sentence("layers") == "smooth trend, up"
    assert said["dettmers2022_table4"].sentence("positions").startswith("undecided: step and smooth trend are 1.2")
    assert said["study_dense"].sentence("layers").startswith("undecided: 5 points")
    assert said["study_moe"].sentence("layers").startswith("undecided: 7 points cannot show a step")
    # The claim's own numbers are searched, whatever is named: naming what was read off them would be circular.
    named, _ = published_transitions(at=6.7e9, repeats=99)
    assert [result.tests["layers"].at for result in named] == [6.7e9, 6.7e9, None]
    low, high = published_transition("study_dense", at=6.7e9).tests["layers"].size_interval
    assert (low, high) == (pytest.approx(-6.2, abs=0.05), pytest.approx(4.7, abs=0.05))


def test_a_table_without_the_axis_is_left_out() -> None:
    results, left_out = published_transitions(against="perplexity", repeats=99)
    assert [result.family for result in results] == ["study_dense", "dettmers2022_table4"]
    assert left_out == {"study_moe": "has no perplexity"}
    active, _ = published_transitions(against="active", repeats=99)
    assert [point.x for point in active[1].points] == [0.6e9, 1.7e9, 4e9, 8e9, 14e9]  # all of a dense model's


# Grids


def test_a_grid_has_what_single_tests_have(grid: TransitionGrid) -> None:
    stores = families.family(families.step)
    assert len(grid.rows()) == 3 * len(CONVENTIONS) * 3 * 2
    for row in grid.rows()[::29]:
        names = ("signal", "counting", "layer_unit", "magnitude", "layers")
        single = transition(stores, Criteria(**{name: row[name] for name in names}), repeats=499)
        test = single.tests[row["outcome"]]
        assert row["without_outliers"] == single.without
        assert row["points"] == test.points
        expected = "onset" if single.onset(row["outcome"]) else test.verdict
        assert row["verdict"] == ("empty" if single.without == 8 else expected)
        assert row["step_p"] == pytest.approx(test.p_values.get("step over none", math.nan), nan_ok=True)
        if row["verdict"] == "step":
            assert row["change"] == test.best("step").change


def test_the_planted_step_survives_until_nothing_qualifies(grid: TransitionGrid) -> None:
    found = {(row["magnitude"], row["layers"]): row["verdict"] for row in grid.rows() if row["outcome"] == "layers"}
    assert found == {
        (6, 0.25): "step",
        (12, 0.25): "step",
        (20, 0.25): "empty",
        (6, 0.5): "onset",
        (12, 0.5): "onset",
        (20, 0.5): "empty",
    }
    assert grid.counts("layers")["input", "pooled", "layer"] == {"step": 2, "onset": 2, "empty": 2}
    assert sum(grid.verdict_counts()[0][verdict] for verdict in ("step", "onset", "empty")) == 6


def test_a_grid_drops_models_without_outliers() -> None:
    stores = families.family(families.step, sizes=dict(list(families.SIZES.items())[1:7]))
    dropped = transition_grid(stores, None, [6, 50], [0.5], absent="drop", repeats=99)
    some, empty = dropped.rows()[:2]
    assert (some["points"], some["without_outliers"]) == (3, 3)
    assert some["verdict"] == "none"  # what is left is all alike
    assert (empty["verdict"], empty["points"], empty["reason"]) == ("empty", 0, "0 of 6 models have outliers")


def test_saturated_models_are_counted() -> None:
    rows = transition_grid(families.family(families.step, sizes=SOME), Criteria(layers=0), [0.0, 6], repeats=99).rows()
    assert [row["saturated"] for row in rows if row["outcome"] == "layers"][:2] == [3, 0]


# Wrong input


def test_one_store_is_one_point(stepping: list[Path]) -> None:
    with pytest.raises(OutliersError, match="1 store; expected 3 or more, each of another model, and 8 to show a step"):
        transition(stepping[:1])
    with pytest.raises(OutliersError, match="0 stores; expected 3 or more"):
        transition([])


def test_a_model_twice_is_refused(stepping: list[Path]) -> None:
    with pytest.raises(OutliersError, match="are both of planted/350M; expected each model once"):
        transition([*stepping, stepping[1]])


def test_revisions_of_a_model_are_other_models() -> None:
    # Checkpoints of a training run, against perplexity.
    stores = families.family(families.flat, sizes=SOME, model_id="one", total_parameters=1000)
    with pytest.raises(OutliersError, match="are both of one"):
        transition(stores, against="perplexity")
    for number, store in enumerate(stores):
        store.attrs["model_revision"] = f"step{number}"
    assert len(transition(stores, against="perplexity", repeats=99).points) == 3
    with pytest.raises(OutliersError, match="all 3 models have the same total parameters, 1000"):
        transition(stores)


@pytest.mark.parametrize("value", [None, "7B", True, -3, 0, math.nan])
def test_a_store_without_parameters_is_refused(value: object) -> None:
    stores = families.family(families.step, sizes=SOME, active_parameters=value)
    with pytest.raises(OutliersError, match=r"store 1 does not say its active parameters \(.*\); leave it out"):
        transition(stores, against="active")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"against": "size"}, "against is 'size'; expected one of total, active, perplexity"),
        ({"absent": "nan"}, "absent is 'nan'; expected one of zero, drop"),
        ({"repeats": 5}, "repeats is 5"),
        ({"at": -1.0}, "at is -1.0"),
    ],
)
@pytest.mark.parametrize("function", [transition, transition_grid])
def test_bad_settings_are_refused(settings: dict, message: str, function: Callable) -> None:
    with pytest.raises(OutliersError, match=message):
        function(families.family(families.smooth, sizes=SOME), **settings)


@pytest.mark.parametrize(
    ("swept", "message"),
    [(([6, 6], None), "magnitude has a number twice"), ((None, [2.0]), "layers is 2.0"), (([], None), "no magnitude")],
)
def test_bad_grids_are_refused(swept: tuple, message: str) -> None:
    with pytest.raises(OutliersError, match=message):
        transition_grid(families.family(families.smooth, sizes=SOME), None, *swept)


def test_unknown_tables_are_refused() -> None:
    with pytest.raises(OutliersError, match="published table study_moe has no perplexity; set it against something"):
        published_transition("study_moe", against="perplexity")
    with pytest.raises(OutliersError, match="repeats is 1"):
        published_transitions(repeats=1)
    with pytest.raises(OutliersError, match="published table 'x' is unknown"):
        published_transition("x")


@pytest.mark.parametrize(
    ("against", "value", "text"),
    [("total", 6.7e9, "6.7B"), ("active", 125e6, "125M"), ("total", 12, "12"), ("perplexity", 13.54, "13.5")],
)
def test_places_for_a_reader(against: str, value: float, text: str) -> None:
    assert axis_value(against, value) == text


# Figures and the command


def test_the_figure_draws_every_point_and_the_step(stepping: list[Path]) -> None:
    result = transition(stepping)
    figure = transition_figure([result, published_transition("dettmers2022_table4", repeats=99)])
    assert len(figure.axes) == 4
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    (points,) = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(points.get_ydata(), [30] * 4 + [90] * 4)
    assert "step: step, weight 1.00" in lines
    assert "step up by 60.0" in axes.get_title(loc="left").replace("\n", " ")
    hollow = [line.get_markerfacecolor() for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert (points.get_markerfacecolor(), hollow) == ("black", ["white"])


def test_names_are_no_formulas(stepping: list[Path], tmp_path: Path) -> None:
    result = replace(transition(stepping, repeats=99), family=r"$\frac{$")
    transition_figure([result]).savefig(tmp_path / "a.png")


def test_the_grid_is_drawn_tile_by_tile(grid: TransitionGrid) -> None:
    figure = transition_grid_figure(grid, "layers")
    assert len(figure.axes) == 8
    symbols = {
        (text.get_position()[0], round(text.get_position()[1])): text.get_text()
        for text in figure.axes[0].texts
        if text.get_horizontalalignment() == "center"
    }
    # Magnitudes 6, 12, 20 across, shares 0.25, 0.5 up; sorted, though asked for otherwise.
    assert symbols == {
        (0, 0): "\u25b2",
        (1, 0): "\u25b2",
        (2, 0): "",
        (0, 1): "\u25b3",
        (1, 1): "\u25b3",
        (2, 1): "",
    }
    assert [text.get_text() for text in figure.axes[0].texts if text.get_horizontalalignment() == "right"] == ["4", "4"]
    assert "Does L% step with total parameters? 8 models" in figure.get_suptitle()


def test_the_command(stepping: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = stepping[2:5]
    words = [*map(str, stores), "--magnitude", "20,6", "--layers", "0.25,0.5", "--repeats", "99", "--published"]
    assert main(["transition", *words, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["families"][0] == json.loads(json.dumps(transition(stores, repeats=99).to_dict()))
    expected = transition_grid(stores, None, [20, 6], [0.25, 0.5], repeats=99).to_dict()
    assert result["grid"] == json.loads(json.dumps(expected))
    assert [family["family"] for family in result["families"]] == ["stores", *TABLES]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{name}{end}" for name in ("transition", "grid-layers", "grid-positions") for end in (".png", ".svg")}
    assert written == {"transition.json", "transition.csv", "grid.csv", *figures}
    with (tmp_path / "out" / "grid.csv").open(newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == [row["verdict"] for row in result["grid"]["rows"]]


def test_the_command_for_a_reader(stepping: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transition", *map(str, stepping), "--repeats", "199", "--at", "6.7e9", "--layers", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "stores: 8 models against total parameters; |norm input| >= 6 in at least 50%" in shown
    assert "L%: step up by 90.0 percentage points at 6.7B (between 2.65B and 6.7B), where features begin" in shown
    assert "step at 6.7B: 95% interval +90 to +90 percentage points" in shown
    assert "4 of 8 models have no outlier: they count as 0%" in shown


def test_published_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transition", "--published", "--against", "perplexity", "--repeats", "199"]) == 0
    shown = capsys.readouterr().out
    assert "dettmers2022_table4: 10 models against perplexity" in shown
    assert "study_moe is left out: it has no perplexity" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "0 stores; expected 3 or more"),
        (["a.zarr", "b.zarr", "c.zarr"], "a.zarr"),
        (["--published", "--against", "age"], "against is 'age'"),
        (["--published", "--magnitude", "x"], "magnitude is 'x'"),
    ],
)
def test_errors_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transition", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_axis_has_a_name() -> None:
    assert set(AGAINST) == {"total", "active", "perplexity"}
