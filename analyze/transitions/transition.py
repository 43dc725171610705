"""The phase transition, tested: whether the outliers of a set of models step with their size, trend, or do neither."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import xarray as xr

from analyze.answers.facts import perplexity
from analyze.answers.sweep import sweep
from analyze.comparison.published import TABLES, published
from analyze.display.shown import Shown
from analyze.display.text import jsonable
from analyze.question.checks import check_choice
from analyze.question.criteria import Criteria
from analyze.reading.open import as_dataset
from analyze.transitions.verdict import LEAST_POINTS, TransitionTest, transition_test
from analyze.types import Progress, Store
from capture.errors import OutliersError, without_passwords

AGAINST: Final = {"total": "total_parameters", "active": "active_parameters", "perplexity": "perplexity"}
OUTCOMES: Final = ("layers", "positions", "count")
ABSENT: Final = ("zero", "drop")
REPEATS: Final = 9_999

Test = Callable[[tuple[float, ...], tuple[float, ...]], TransitionTest]

_LACKS: Final = {word: f"has no {name.replace('_', ' ')}" for word, name in AGAINST.items()}
_ORIGIN: Final = "dettmers2022_table4"
_UNITS: Final = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


@dataclass(frozen=True)
class Point:
    """One model.

    Parameters
    ----------
    model : its name
    x : what it is set against: parameters or perplexity
    count : outliers
    layers, positions : mean L% and S% over them, 0 to 100; NaN where there is none
    """

    model: str
    x: float
    count: int
    layers: float
    positions: float

    def y(self, outcome: str, absent: str) -> float:
        """The number that is tested; NaN where the point takes no part."""
        if outcome == "count":
            return math.log10(1 + self.count)
        value: float = getattr(self, outcome)
        return 0.0 if self.count == 0 and absent == "zero" else value


@dataclass(frozen=True)
class Transition(Shown):
    """A set of models, and what they say about a transition.

    Parameters
    ----------
    family : `stores`, or the name of a published table
    criteria : when a feature is an outlier
    against : `total` or `active` parameters, or `perplexity`
    absent : how a model without outliers takes part in L% and S%: as `zero`, or not at all (`drop`)
    points : the models, by x
    tests : of `layers` (L%), `positions` (S%) and `count` (log10(1 + count)); without those that have too few points
    left_out : why an outcome has no test
    """

    family: str
    criteria: Criteria
    against: str
    absent: str
    points: tuple[Point, ...]
    tests: dict[str, TransitionTest] = field(repr=False)
    left_out: dict[str, str] = field(repr=False)

    @property
    def without(self) -> int:
        """Number of models without any outlier."""
        return sum(point.count == 0 for point in self.points)

    def onset(self, outcome: str) -> bool:
        """Whether a step lies exactly between the models without outliers and those with.

        Its height is then the criterion's own: a feature that qualifies has hits in at least so many layers and
        positions, so that L% and S% cannot rise from 0 little by little.
        """
        return onset(self.points, self.tests[outcome], outcome) if outcome in self.tests else False

    def sentence(self, outcome: str) -> str:
        """The verdict in words."""
        if outcome in self.left_out:
            return f"undecided: {self.left_out[outcome]}"
        test = self.tests[outcome]
        if test.verdict == "undecided":
            return f"undecided: {test.reason}"
        if test.verdict == "none":
            return f"no trend that {test.points} points can show" if test.fits else "no trend: all are alike"
        if test.verdict == "smooth":
            return "smooth trend, " + ("up" if test.spearman > 0 else "down")
        step = test.best("step")
        assert step is not None
        assert step.change is not None
        assert step.between is not None
        assert step.size is not None
        low, high = (axis_value(self.against, edge) for edge in step.between)
        words = (
            f"step {'up' if step.size > 0 else 'down'} by {_height(outcome, abs(step.size))} "
            f"at {axis_value(self.against, step.change)} (between {low} and {high})"
        )
        if step.name == "line and step":
            words += " on a trend"
        if self.onset(outcome):
            words += ", where features begin to qualify: the criterion makes its height"
        return words

    def summary(self) -> list[tuple[str, str]]:
        """What was asked, and the verdict on each outcome in words."""
        asked = f"{self.family}: {len(self.points)} models against {self.against}; {self.criteria}"
        return [("transition", asked), *((outcome, self.sentence(outcome)) for outcome in OUTCOMES)]

    def rows(self) -> list[dict[str, Any]]:
        """One record a model."""
        return [dict(vars(point)) for point in self.points]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "family": self.family,
            "criteria": self.criteria.to_dict(),
            "against": self.against,
            "absent": self.absent,
            "without_outliers": self.without,
            "points": jsonable(self.rows()),
            "tests": {
                outcome: {"sentence": self.sentence(outcome), "onset": self.onset(outcome), **test.to_dict()}
                for outcome, test in self.tests.items()
            },
            "left_out": self.left_out,
        }


def transition(
    stores: Sequence[Store],
    criteria: Criteria | None = None,
    *,
    against: str = "total",
    at: float | None = None,
    absent: str = "zero",
    repeats: int = REPEATS,
    seed: int = 0,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Transition:
    """Test whether L%, S% and the number of outliers step or trend over a set of models.

    Parameters
    ----------
    stores : paths or Datasets, 3 or more, of different models; 8 or more can show a step
    criteria : when a feature is an outlier; the defaults of `Criteria` where None
    against : `total` or `active` parameters, or `perplexity`
    at : change point to test, where it was known before these data: parameters or perplexity
    absent : `zero` (a model without outliers affects 0% of layers and positions, as in Figure 3 of Dettmers et al.
        2022) or `drop` (its mean over no outlier is not defined)
    repeats, seed : of permutations and bootstrap samples, as in `transition_test`
    use_cache, progress : as in `find_outliers`

    Raises
    ------
    OutliersError
        Too few stores, two of the same model, one that does not say what it is set against, or one that cannot be read.
    """
    criteria = Criteria() if criteria is None else criteria
    check_settings(against, absent)
    points = []
    for model in models(stores, criteria, against):
        table = sweep(model.store, criteria, use_cache=use_cache, progress=progress).table.squeeze()
        points.append(
            Point(
                model.name,
                model.x,
                int(table["count"]),
                100 * float(table["mean_layer_fraction"]),
                100 * float(table["mean_position_fraction"]),
            )
        )
    test = partial(transition_test, at=at, repeats=repeats, seed=seed)
    return examined("stores", points, criteria, against, absent, test)


def published_transition(
    table: str, *, against: str = "total", at: float | None = None, repeats: int = REPEATS, seed: int = 0
) -> Transition:
    """Test a published table in the same way.

    Parameters
    ----------
    table : as in `published`
    against, at, repeats, seed : as in `transition`; of a dense model all parameters are active

    Raises
    ------
    OutliersError
        Another table, or one that does not give what it is to be set against.
    """
    check_settings(against, "zero")
    source = published(table)
    points = []
    for row in source.models:
        x = row.get(AGAINST[against], row["total_parameters"] if against == "active" else None)
        if x is None:
            raise OutliersError(f"published table {table} {_LACKS[against]}; set it against something else")
        shares = (100 * row["mean_layer_fraction"], 100 * row["mean_position_fraction"])
        points.append(Point(row["model"], float(x), row["count"], *shares))
    test = partial(transition_test, at=at, repeats=repeats, seed=seed)
    return examined(table, points, source.criteria, against, "zero", test)


def published_transitions(
    *, against: str = "total", at: float | None = None, repeats: int = REPEATS, seed: int = 0
) -> tuple[list[Transition], dict[str, str]]:
    """Every published table that gives what it is to be set against, and why the others do not take part.

    Parameters
    ----------
    against, at, repeats, seed : as in `published_transition`; in Table 4 of Dettmers et al. the change point is
        searched for in any case, because the claim of one at 6.7B was read off these very numbers

    Raises
    ------
    OutliersError
        A setting out of range.
    """
    check_settings(against, "zero")
    lacking = [name for name in TABLES if against == "perplexity" and "perplexity" not in published(name).models[0]]
    results = [
        published_transition(name, against=against, at=None if name == _ORIGIN else at, repeats=repeats, seed=seed)
        for name in TABLES
        if name not in lacking
    ]
    return results, dict.fromkeys(lacking, _LACKS[against])


@dataclass(frozen=True)
class Model:
    """A store, its model's name, and what it is set against."""

    name: str
    x: float
    store: xr.Dataset


def models(stores: Sequence[Store], criteria: Criteria, against: str) -> list[Model]:
    """Open stores and find their place on the axis, the smallest first."""
    if len(stores) < LEAST_POINTS:
        raise OutliersError(
            f"{len(stores)} store{'' if len(stores) == 1 else 's'}; expected {LEAST_POINTS} or more, each of another "
            "model, and 8 to show a step: capture more models"
        )
    result = []
    seen: dict[tuple[str, str], str] = {}
    for number, one in enumerate(stores):
        store = as_dataset(one)
        name = str(store.encoding.get("source", f"store {number + 1}")) if isinstance(one, xr.Dataset) else str(one)
        name = without_passwords(name)
        model = store.attrs.get("model_id")
        if isinstance(model, str):
            key = (model, str(store.attrs.get("model_revision")))
            if key in seen:
                raise OutliersError(
                    f"{seen[key]} and {name} are both of {model}; expected each model once, for a model twice is no "
                    "second point: leave one out"
                )
            seen[key] = name
        x = perplexity(store, criteria.resolve(store)) if against == "perplexity" else store.attrs.get(AGAINST[against])
        if isinstance(x, bool) or not isinstance(x, numbers.Real) or not 0 < float(x) < math.inf:
            raise OutliersError(
                f"{name} does not say its {AGAINST[against].replace('_', ' ')} ({x!r}); leave it out, or set the "
                f"models against one of {', '.join(word for word in AGAINST if word != against)}"
            )
        result.append(Model(model if isinstance(model, str) else Path(name).stem, float(x), store))
    result = _told_apart(result)
    if len({model.x for model in result}) == 1:
        raise OutliersError(
            f"all {len(result)} models have the same {AGAINST[against].replace('_', ' ')}, {result[0].x:.6g}; expected "
            "models that differ in it: set them against something else, or add others"
        )
    return sorted(result, key=lambda model: (model.x, model.name))


def _told_apart(found: list[Model]) -> list[Model]:
    """The same models; of those that are there at several revisions, each with its own in its name."""
    counts = Counter(model.name for model in found)
    return [model if counts[model.name] == 1 else replace(model, name=_with_revision(model)) for model in found]


def _with_revision(model: Model) -> str:
    revision = model.store.attrs.get("model_revision_name") or model.store.attrs.get("model_revision")
    return model.name if revision is None else f"{model.name}@{revision}"


def examined(
    family: str, points: Sequence[Point], criteria: Criteria, against: str, absent: str, test: Test
) -> Transition:
    """Test every outcome over points; one that too few points have is left out."""
    points = sorted(points, key=lambda point: (point.x, point.model))
    tests, left_out = {}, {}
    for outcome in OUTCOMES:
        values = [point.y(outcome, absent) for point in points]
        part = [number for number, value in enumerate(values) if not math.isnan(value)]
        x, y = tuple(points[number].x for number in part), tuple(values[number] for number in part)
        if len(part) < LEAST_POINTS or len(set(x)) < 2:
            left_out[outcome] = f"{len(part)} of {len(points)} models have outliers"
            continue
        tests[outcome] = test(x, y)
    return Transition(family, criteria, against, absent, tuple(points), tests, left_out)


def onset(points: Sequence[Point], test: TransitionTest, outcome: str) -> bool:
    """As `Transition.onset`."""
    step = test.best("step")
    if outcome == "count" or test.verdict != "step" or step is None or step.between is None:
        return False
    below = {point.count == 0 for point in points if point.x <= step.between[0]}
    above = {point.count == 0 for point in points if point.x > step.between[0]}
    return below | above == {True, False} and len(below) == len(above) == 1


def check_settings(against: str, absent: str) -> None:
    """Refuse unknown words."""
    check_choice("against", against, tuple(AGAINST))
    check_choice("absent", absent, ABSENT)


def axis_value(against: str, value: float) -> str:
    """A place on the axis for a reader: 6.7B, or a perplexity."""
    if against != "perplexity":
        for unit, letter in _UNITS:
            if value >= unit:
                return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _height(outcome: str, size: float) -> str:
    return f"a factor of {10**size:.3g}" if outcome == "count" else f"{size:.1f} percentage points"
