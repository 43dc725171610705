"""Does the phase transition survive the threshold? The verdict over thresholds and conventions."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Final

from analyze.answers.sweep import sweep
from analyze.display.shown import Shown
from analyze.display.text import jsonable
from analyze.question.criteria import COUNTINGS, LAYER_UNITS, SATURATED, Criteria
from analyze.transitions.transition import OUTCOMES, Point, Transition, check_settings, examined, models
from analyze.transitions.verdict import transition_test
from analyze.types import Progress, Store
from capture.errors import OutliersError
from capture.store.schema import SIGNALS

Row = dict[str, Any]
Convention = tuple[str, str, str]

GRID_REPEATS: Final = 1_999
VERDICTS: Final = ("step", "onset", "smooth", "none", "undecided", "empty")
CONVENTIONS: Final[tuple[Convention, ...]] = tuple(itertools.product(SIGNALS, COUNTINGS, LAYER_UNITS))


@dataclass(frozen=True)
class TransitionGrid(Shown):
    """Verdicts over thresholds and conventions.

    Parameters
    ----------
    criteria : what does not vary
    against, at, absent, repeats, seed : as in `transition`
    magnitudes, layers : thresholds, in the order asked for
    models : names, by x
    cells : one an outcome, convention, least share of layers and magnitude: `outcome`, `signal`, `counting`,
        `layer_unit`, `layers`, `magnitude`, `verdict`, `change` and `size` (None without a step), `points` (that took
        part), `without_outliers` and `saturated` (models, of all), `spearman`, `spearman_p`, `step_p` and `smooth_p`
        (over none), `reason`

    Notes
    -----
    Verdicts are those of `transition_test`, and two more: `onset`, a step that lies exactly where features begin to
    qualify, so that its height is the criterion's own; `empty`, no outlier in any model. Neighbouring cells share their
    data: a hundred cells that agree are not a hundred findings.
    """

    criteria: Criteria
    against: str
    at: float | None
    absent: str
    repeats: int
    seed: int
    magnitudes: tuple[float, ...]
    layers: tuple[float, ...]
    models: tuple[str, ...]
    cells: tuple[Row, ...] = field(repr=False)

    def counts(self, outcome: str) -> dict[Convention, Counter[str]]:
        """How often each verdict fell, for each convention."""
        result: dict[Convention, Counter[str]] = {convention: Counter() for convention in CONVENTIONS}
        for row in self.cells:
            if row["outcome"] == outcome:
                result[row["signal"], row["counting"], row["layer_unit"]][row["verdict"]] += 1
        return result

    def summary(self) -> list[tuple[str, Any]]:
        """What was varied."""
        return [
            ("criterion", str(self.criteria)),
            ("models", f"{len(self.models)} against {self.against}"),
            ("verdicts", f"over {len(self.magnitudes)} magnitudes and {len(self.layers)} least shares of layers"),
        ]

    def rows(self) -> list[Row]:
        """One record a cell."""
        return list(self.cells)

    def tables(self) -> list[tuple[str, list[Row]]]:
        """How often each verdict fell."""
        return [("", self.verdict_counts())]

    def verdict_counts(self) -> list[Row]:
        """One row an outcome and convention: how many cells have which verdict."""
        return [
            {
                "outcome": outcome,
                **dict(zip(("signal", "counting", "layer_unit"), convention, strict=True)),
                **{verdict: count[verdict] for verdict in VERDICTS},
            }
            for outcome in OUTCOMES
            for convention, count in self.counts(outcome).items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "criteria": self.criteria.to_dict(),
            **{name: getattr(self, name) for name in ("against", "at", "absent", "repeats", "seed")},
            "magnitudes": list(self.magnitudes),
            "layers": list(self.layers),
            "models": list(self.models),
            "summary": self.verdict_counts(),
            "rows": jsonable(self.cells),
        }


def transition_grid(
    stores: Sequence[Store],
    criteria: Criteria | None = None,
    magnitudes: Sequence[float] | None = None,
    layers: Sequence[float] | None = None,
    *,
    against: str = "total",
    at: float | None = None,
    absent: str = "zero",
    repeats: int = GRID_REPEATS,
    seed: int = 0,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> TransitionGrid:
    """Test the transition for every combination of magnitude, least share of layers, signal, counting and layer unit.

    Each store is swept once for each of the eight conventions.

    Parameters
    ----------
    stores, against, at, absent, seed, use_cache : as in `transition`
    criteria : share of positions and view, whatever its conventions; and the thresholds that are not varied
    magnitudes, layers : thresholds; None for that of `criteria`
    repeats : as in `transition`, for each cell
    progress : called with (finished, all) sweeps

    Raises
    ------
    OutliersError
        As `transition`, or a threshold out of range.
    """
    criteria = Criteria() if criteria is None else criteria
    check_settings(against, absent)
    magnitudes = (criteria.magnitude,) if magnitudes is None else tuple(magnitudes)
    layers = (criteria.layers,) if layers is None else tuple(layers)
    for name, values in (("magnitude", magnitudes), ("layers", layers)):
        if len(set(values)) != len(values):
            raise OutliersError(f"{name} has a number twice; expected each once")
    # Neighbouring cells often have the very same points.
    test = cache(partial(transition_test, at=at, repeats=repeats, seed=seed))
    opened = models(stores, criteria, against)
    rows: list[Row] = []
    for number, (signal, counting, unit) in enumerate(CONVENTIONS):
        settings: Any = {"signal": signal, "counting": counting, "layer_unit": unit}
        chosen = replace(criteria, **settings)
        tables = []
        for place, model in enumerate(opened):
            result = sweep(model.store, chosen, magnitudes, layers, use_cache=use_cache)
            tables.append((model, result.rows(), result.hidden_size))
            if progress is not None:
                progress(number * len(opened) + place + 1, len(CONVENTIONS) * len(opened))
        # A sweep's rows have magnitudes fastest, in the order asked for.
        for cell, (least, magnitude) in enumerate(itertools.product(layers, magnitudes)):
            found = [(model, swept[cell], width) for model, swept, width in tables]
            points = [_point(model.name, model.x, row) for model, row, _ in found]
            saturated = sum(row["distinct_features"] / width > SATURATED for _, row, width in found)
            where = {**settings, "layers": least, "magnitude": magnitude}
            rows += _cell(examined("stores", points, chosen, against, absent, test), where, saturated)
    order = {outcome: number for number, outcome in enumerate(OUTCOMES)}
    rows.sort(key=lambda row: order[row["outcome"]])
    names = tuple(model.name for model in opened)
    return TransitionGrid(
        criteria, against, at, absent, repeats, seed, tuple(magnitudes), tuple(layers), names, tuple(rows)
    )


def _point(model: str, x: float, row: Row) -> Point:
    return Point(model, x, row["count"], 100 * row["mean_layer_fraction"], 100 * row["mean_position_fraction"])


def _cell(result: Transition, where: Row, saturated: int) -> list[Row]:
    """One row an outcome."""
    rows = []
    for outcome in OUTCOMES:
        test = result.tests.get(outcome)
        verdict = "undecided" if test is None else test.verdict
        if result.without == len(result.points):
            verdict = "empty"
        elif result.onset(outcome):
            verdict = "onset"
        step = test.best("step") if test is not None and verdict in ("step", "onset") else None
        p_values = {} if test is None else test.p_values
        rows.append(
            {
                "outcome": outcome,
                **where,
                "verdict": verdict,
                "change": None if step is None else step.change,
                "size": None if step is None else step.size,
                "points": 0 if test is None else test.points,
                "without_outliers": result.without,
                "saturated": saturated,
                "spearman": math.nan if test is None else test.spearman,
                "spearman_p": math.nan if test is None else test.spearman_p,
                "step_p": p_values.get("step over none", math.nan),
                "smooth_p": p_values.get("smooth over none", math.nan),
                "reason": result.left_out.get(outcome, "") if test is None else test.reason,
            }
        )
    return rows
