"""Figures draw what was computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analyze import Criteria, OutliersError, sweep
from analyze.answers.sweep_figure import steps, sweep_figure
from analyze.display.figures import check_path, save
from tests import builders


def store() -> object:
    return builders.dataset(builders.random_activations())


def test_the_curve_passes_through_every_row() -> None:
    result = sweep(store(), None, np.linspace(1, 20, 39).tolist())
    (line, width) = sweep_figure(result).axes[0].lines
    assert line.get_drawstyle() == "steps-pre"
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    for row in result.rows():
        # Under steps-pre a corner's count holds from the corner before it up to and with the corner.
        assert y[np.searchsorted(x, np.float32(row["magnitude"]))] == row["count"]
    assert set(np.asarray(width.get_ydata())) == {5}


def test_every_jump_is_at_a_critical_magnitude() -> None:
    result = sweep(store(), None, [1, 20])
    (critical,) = result.critical.values()
    x = np.asarray(sweep_figure(result).axes[0].lines[0].get_xdata())
    assert set(x[1:-1].tolist()) == {value for value in critical.tolist() if 1 < value < 20}


def test_steps_by_hand() -> None:
    magnitude, count = steps(np.array([1, 2, 2, 5], np.float32))
    assert magnitude.tolist() == [1, 2, 5]
    assert count.tolist() == [4, 3, 1]


def test_the_heat_map_shows_the_counts_of_two_thresholds() -> None:
    result = sweep(store(), None, [6, 1, 3], [0.1, 0.9])
    axes = sweep_figure(result).axes[1]
    shown = axes.collections[0].get_array()
    expected = result.table["count"].isel(positions=0).sortby("magnitude").transpose("layers", "magnitude")
    np.testing.assert_array_equal(np.asarray(shown).reshape(2, 3), expected.values)
    assert [text.get_text() for text in axes.texts] == [f"{n}" for n in expected.values.ravel()]


@pytest.mark.parametrize(
    ("swept", "panels"),
    [
        ((None,), 1),
        (([1, 2],), 1),
        ((None, [0.1, 0.2]), 1),
        ((None, [0.1, 0.2], [0, 1]), 1),
        (([1, 2], None, [0, 1]), 2),
        (([1, 2], [0.1, 0.2], [0, 1]), 2),
        (([0],), 1),
        (([2, 2], [0.5, 0.5]), 2),
    ],
)
def test_every_shape_of_sweep_can_be_drawn(swept: tuple, panels: int, tmp_path: Path) -> None:
    figure = sweep_figure(sweep(store(), Criteria(scale="median", signal="output"), *swept))
    assert len([axes for axes in figure.axes if axes.get_label() != "<colorbar>"]) == panels
    save(figure, tmp_path / "figure.png")


def test_a_count_that_is_infinite_everywhere_can_be_drawn(tmp_path: Path) -> None:
    result = sweep(store(), None, [1, 2], [0, 0.5], [0])
    save(sweep_figure(result), tmp_path / "figure.svg")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_the_suffix_decides(tmp_path: Path, name: str, start: bytes) -> None:
    save(sweep_figure(sweep(store())), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    result = sweep(store(), None, [1, 2], [0.1, 0.9])
    written = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        save(sweep_figure(result), tmp_path / folder / name)
        written.append((tmp_path / folder / name).read_bytes())
    assert written[0] == written[1]
    assert b"Matplotlib v" not in written[0]


def test_another_suffix_and_an_absent_folder_are_refused() -> None:
    with pytest.raises(OutliersError, match=r"suffix '.pdf'; expected a figure file ending in .png or .svg"):
        check_path("a.pdf")
    with pytest.raises(OutliersError, match="cannot write absent/a.png; expected a file in a folder that exists"):
        check_path("absent/a.png")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutliersError, match="cannot write"):
        save(sweep_figure(sweep(store())), tmp_path / "nowhere" / "a.png")


def test_a_model_name_is_no_formula(tmp_path: Path) -> None:
    data = builders.dataset(builders.random_activations()).assign_attrs(model_id=r"$\frac{$ \n")
    save(sweep_figure(sweep(data)), tmp_path / "a.png")
