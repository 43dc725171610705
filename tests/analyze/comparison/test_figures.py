"""The figures draw the rows that they are given, and look as they did.

The golden images were made by `python -m tests.analyze.comparison.test_figures`;
look at them before you make them again.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.testing.compare import compare_images

from analyze import Criteria
from analyze.comparison.figures import PLANS, draw, figure_of, spread, write_figures
from analyze.comparison.result import Comparison, columns
from analyze.display.figures import save, words

GOLDEN = Path(__file__).parents[2] / "golden"
BY_NAME = {plan.name: plan for plan in PLANS}
DOTS = 60


def row(model: str, *, own: bool = True, **values: Any) -> dict[str, Any]:
    """A row of both tables at once."""
    result: dict[str, Any] = dict.fromkeys(columns(table4=True))
    result |= {"model": model, "published": None if own else "dettmers2022_table4", "count": 3, "doubtful": []}
    return {**result, **values}


def shares(layers: float, positions: float, spread: float = 0.04) -> dict[str, float]:
    return {
        "mean_layer_fraction": layers,
        "mean_layer_fraction_low": layers - spread,
        "mean_layer_fraction_high": layers + spread,
        "median_layer_fraction": layers - 0.1,
        "mean_position_fraction": positions,
        "mean_position_fraction_low": positions - spread,
        "mean_position_fraction_high": positions + spread,
        "median_position_fraction": positions + 0.1,
    }


ROWS = [
    row("org/small", total_parameters=135_000_000, perplexity=20.0, **shares(0.3, 0.6), median_magnitude=12.0),
    row("org/big", total_parameters=9_000_000_000, perplexity=11.0, **shares(0.7, 0.5), median_magnitude=40.0, count=9),
    row("calm", total_parameters=2_000_000_000, perplexity=15.0, count=0, mean_layer_fraction=np.nan),
    row("nobody knows", count=2, perplexity=np.nan),
    *(
        row(model, own=False, total_parameters=size, perplexity=ppl, count=count, median_magnitude=magnitude)
        | {"mean_layer_fraction": layers, "mean_position_fraction": positions, "median_magnitude_of": "most common"}
        for model, size, ppl, layers, positions, count, magnitude in [
            ("FSEQ", 125_000_000, 25.7, 0.25, 0.22, 2, 23.0),
            ("FSEQ", 6_700_000_000, 13.3, 1.0, 0.75, 6, 40.0),
            ("GPT2", 117_000_000, 33.5, 0.25, 0.06, 1, 7.0),
        ]
    ),
]
SHOWN = ("dettmers-3a-parameters", "dettmers-3b-perplexity", "dettmers-4b-outliers")


def comparison(rows: list[dict[str, Any]]) -> Comparison:
    moe = [{**row, "experts": 8, "active_parameters": row["total_parameters"]} for row in rows]
    return Comparison(Criteria(), Criteria(), 10, 0, (*rows, *moe), tuple(rows), ())


@pytest.mark.parametrize("name", SHOWN)
def test_figures_look_as_they_did(name: str, tmp_path: Path) -> None:
    image = tmp_path / f"{name}.png"
    draw(ROWS, BY_NAME[name], str(Criteria())).savefig(image, dpi=DOTS)
    assert compare_images(str(GOLDEN / f"{name}.png"), str(image), tol=2) is None


def test_a_moved_point_is_seen(tmp_path: Path) -> None:
    moved = [dict(row) for row in ROWS]
    moved[0]["mean_layer_fraction"] = 0.9
    draw(moved, BY_NAME[SHOWN[0]], str(Criteria())).savefig(tmp_path / "moved.png", dpi=DOTS)
    assert compare_images(str(GOLDEN / f"{SHOWN[0]}.png"), str(tmp_path / "moved.png"), tol=2) is not None


def points(figure: Any) -> set[tuple[float, float, str, bool]]:
    """What is drawn: x, y, marker, and whether it is hollow."""
    return {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]), str(line.get_marker()), line.get_mfc() == "white")
        for line in figure.axes[0].lines
        if line.get_marker() in ("o", "s", "D", "x")
    }


@pytest.mark.parametrize("name", BY_NAME)
def test_every_known_number_is_drawn_and_no_other(name: str) -> None:
    plan = BY_NAME[name]
    rows = getattr(comparison(ROWS), plan.table)
    expected = set()
    for one in rows:
        x = one[plan.x]
        if x is None or np.isnan(x):
            continue
        own = one["published"] is None
        if one["count"] == 0:
            expected.add((x, 0.0, "x", False))
        for series in plan.series:
            for key, marker in ((series.key, series.marker), (series.median, "D")):
                value = None if key is None else one[key]
                if value is not None and not np.isnan(value) and (own or marker != "D"):
                    expected.add((x, value, marker, not own))
    assert points(figure_of(comparison(ROWS), plan)) == expected
    assert len(expected) > 2


def test_axes_are_those_of_the_originals() -> None:
    for plan in PLANS:
        (axes,) = figure_of(comparison(ROWS), plan).axes
        low, high = axes.get_xlim()
        if plan.x == "perplexity":
            assert low > high
            assert axes.get_xscale() == "linear"
        else:
            assert axes.get_xscale() == "log"
            assert all(re.fullmatch(r"\d+[KMBT]", label.get_text()) for label in axes.get_xticklabels())
        assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize("rows", [[], ROWS[2:3], ROWS[3:4], ROWS[:1], ROWS[4:5]], ids=["no", "calm", "?", "one", "pub"])
def test_few_rows_can_be_drawn(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    for plan in (PLANS[2], PLANS[5], PLANS[7]):
        figure = draw(rows, plan)
        figure.savefig(tmp_path / "a.png", dpi=20)
        empty = not any(row[plan.x] is not None and not np.isnan(row[plan.x]) for row in rows)
        assert ("no such model" in [text.get_text() for text in figure.axes[0].texts]) == empty


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_strangers_name_is_text(tmp_path: Path) -> None:
    name = r"$\frac{$ <b>" + "\x1b\n" + "x" * 300
    figure = draw([{**ROWS[0], "model": name}], BY_NAME[SHOWN[0]])
    save(figure, tmp_path / "a.svg")
    (text,) = figure.axes[0].texts
    assert len(text.get_text()) < 40
    assert words("a$b\n") == r"a\$b "
    figure = draw([{**ROWS[0], "model": "org/"}, {**ROWS[0], "model": ""}], BY_NAME[SHOWN[0]])
    save(figure, tmp_path / "a.png")


def test_extreme_numbers_can_be_drawn(tmp_path: Path) -> None:
    odd = [
        {**ROWS[0], "total_parameters": 0, "perplexity": 1e30},
        {**ROWS[1], "total_parameters": 10**15, "perplexity": 1.0, "median_magnitude": 3e38, "count": 10**9},
        {**ROWS[0], "perplexity": np.inf},
    ]
    for plan in (PLANS[2], PLANS[5], PLANS[7]):
        draw(odd, plan).savefig(tmp_path / "a.png", dpi=20)


def test_all_files_are_written_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyze.comparison.figures.PLANS", PLANS[4:5])
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        written = write_figures(comparison(ROWS), folder)
        assert {file.name for file in written} == {"dettmers-3a-parameters.png", "dettmers-3a-parameters.svg"}
        contents.append([file.read_bytes() for file in written])
    assert contents[0] == contents[1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.3))
def test_names_are_kept_apart(places: list[float], gap: float) -> None:
    places = sorted(places)
    moved = spread(places, gap)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(moved))
    if all(b - a > gap for a, b in itertools.pairwise(places)):
        assert moved == pytest.approx(places)
    # As little as it takes: no set of moves with these gaps has a smaller sum of squares; the centre stays.
    assert np.mean(moved) == pytest.approx(np.mean(places))


def test_names_by_hand() -> None:
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0, 0.1, 1], 0.2) == pytest.approx([-0.05, 0.15, 1])
    assert spread([0, 0.3, 0.3], 0.2) == pytest.approx([0, 0.2, 0.4])


if __name__ == "__main__":
    for shown in SHOWN:
        draw(ROWS, BY_NAME[shown], str(Criteria())).savefig(GOLDEN / f"{shown}.png", dpi=DOTS)
