"""Transition tests as text, files and JSON. Strings from a store are a stranger's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from analyze.display.figures import save
from analyze.display.tables import print_rows, write_csv
from analyze.display.text import plain
from analyze.transitions.figures import transition_figure, transition_grid_figure
from analyze.transitions.grid import TransitionGrid
from analyze.transitions.transition import OUTCOMES, Transition, axis_value
from analyze.transitions.verdict import TransitionTest
from capture.errors import OutliersError
from capture.store.files import write_file
from capture.store.privacy import shortened

NAMES: Final = {"layers": "L%", "positions": "S%", "count": "outliers"}
AXIS_NAMES: Final = {"total": "total parameters", "active": "active parameters", "perplexity": "perplexity"}


def title(result: Transition) -> str:
    """What was tested, in one line."""
    count = len(result.points)
    return f"{result.family}: {count} models against {AXIS_NAMES[result.against]}; {result.criteria}"


def print_transitions(results: Sequence[Transition], grid: TransitionGrid | None, left_out: dict[str, str]) -> None:
    """Points, fits and verdicts for a terminal."""
    for number, result in enumerate(results):
        print(("\n" if number else "") + plain(title(result)))
        print_rows(
            [
                {
                    "model": point.model,
                    AXIS_NAMES[result.against]: axis_value(result.against, point.x),
                    "outliers": point.count,
                    "layer_fraction": point.layers / 100,
                    "position_fraction": point.positions / 100,
                }
                for point in result.points
            ]
        )
        for outcome in OUTCOMES:
            print(f"\n{NAMES[outcome]}: {result.sentence(outcome)}")
            if outcome in result.tests:
                for line in _evidence(result.tests[outcome], result.against, outcome):
                    print(f"  {line}")
        if result.without and result.family == "stores":
            print(f"\n{result.without} of {len(result.points)} models have no outlier: {_ABSENT[result.absent]}")
    for table, reason in left_out.items():
        print(f"\n{table} is left out: it {reason}")
    if grid is not None:
        print(f"\nverdicts over {len(grid.magnitudes)} magnitudes and {len(grid.layers)} least shares of layers")
        print_rows([{**row, "outcome": NAMES[row["outcome"]]} for row in grid.verdict_counts()])
        print("neighbouring cells share their data, and one in twenty shows a trend by chance")


def result_of(results: Sequence[Transition], grid: TransitionGrid | None, left_out: dict[str, str]) -> dict[str, Any]:
    """The object that `outliers transition --json` prints."""
    return {
        "families": [result.to_dict() for result in results],
        "left_out": left_out,
        "grid": None if grid is None else grid.to_dict(),
    }


def write_transitions(
    folder: Path, results: Sequence[Transition], grid: TransitionGrid | None, *, keep_paths: bool = False
) -> list[Path]:
    """Write transition.json, transition.csv and a figure, and of a grid grid.csv and a figure of L% and of S%.

    Of models that are named by a path only its last part is written, unless `keep_paths`.

    Raises
    ------
    OutliersError
        The folder cannot be written.
    """
    written = [folder / "transition.json", folder / "transition.csv"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutliersError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    content = result_of(results, grid, {})
    text = json.dumps(content if keep_paths else shortened(content), allow_nan=False, indent=1)
    write_file(written[0], f"{text}\n".encode())
    write_csv(written[1], [row for result in results for row in fit_rows(result)] or [{"family": ""}])
    figures = {"transition": transition_figure(results)}
    if grid is not None:
        written.append(folder / "grid.csv")
        write_csv(written[-1], grid.rows())
        figures |= {f"grid-{outcome}": transition_grid_figure(grid, outcome) for outcome in ("layers", "positions")}
    for name, figure in figures.items():
        for suffix in (".png", ".svg"):
            written.append(folder / f"{name}{suffix}")
            save(figure, written[-1])
    return written


def fit_rows(result: Transition) -> list[dict[str, Any]]:
    """One row a fitted model of every outcome."""
    return [
        {
            "family": result.family,
            "against": result.against,
            "outcome": outcome,
            "verdict": test.verdict,
            "points": test.points,
            "spearman": test.spearman,
            "spearman_p": test.spearman_p,
            "model": fit.name,
            "parameters": fit.parameters,
            "rss": fit.rss,
            "aicc": fit.aicc,
            "delta": fit.delta,
            "weight": fit.weight,
            "change": math.nan if fit.change is None else fit.change,
            "size": math.nan if fit.size is None else fit.size,
        }
        for outcome, test in result.tests.items()
        for fit in test.fits
    ]


_ABSENT: Final = {
    "zero": "they count as 0% of layers and positions (--absent drop leaves them out)",
    "drop": "they are left out of L% and S%",
}


def _evidence(test: TransitionTest, against: str, outcome: str) -> list[str]:
    lines = []
    if test.fits:
        weights = ", ".join(f"{kind} {weight:.2f}" for kind, weight in test.weights.items())
        lines.append(f"{test.points} points, Akaike weights: {weights}")
        best = "; ".join(
            f"{fit.name} {fit.aicc:.1f}" + ("" if fit.change is None else f" (at {axis_value(against, fit.change)})")
            for fit in test.fits
            if not math.isnan(fit.aicc)
        )
        lines.append(f"AICc: {best}")
    if test.p_values:
        lines.append("p: " + ", ".join(f"{name} {p:.2g}" for name, p in test.p_values.items()))
    if not math.isnan(test.spearman):
        kind = "all permutations" if test.exact else f"{test.repeats:,} permutations"
        lines.append(f"Spearman {test.spearman:.2f}, p {test.spearman_p:.2g} ({kind})")
    step = test.best("step")
    if test.verdict == "step" and step is not None and step.plausible is not None and test.at is None:
        low, high = (axis_value(against, edge) for edge in step.plausible)
        lines.append(f"change points within 2 of the best in AICc: {low} to {high}")
    if test.size_interval is not None and test.at is not None:
        ends = " to ".join(f"{end:+.3g}" for end in test.size_interval)
        unit = "in log10(1 + count)" if outcome == "count" else "percentage points"
        lines.append(f"step at {axis_value(against, test.at)}: 95% interval {ends} {unit}")
    return lines
