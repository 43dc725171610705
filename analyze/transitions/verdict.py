"""What a handful of points supports: step, smooth trend, none, or nothing yet."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata, ttest_ind

from analyze.display.shown import Shown
from analyze.display.text import jsonable
from analyze.question.checks import check_repeats
from analyze.transitions.models import CLOSE, KINDS, PARAMETERS, Candidates, Fit, Kind
from analyze.types import Float64
from capture.errors import OutliersError

LEAST_POINTS: Final = 3
LEVEL: Final = 0.05
"""A step or a smooth trend stands where every p-value against a rival is at most this."""

_TIE: Final = 1e-5  # differences in AICc below this are rounding
_WORDS: Final[dict[Kind, str]] = {"none": "no trend", "smooth": "smooth trend", "step": "step"}


@dataclass(frozen=True)
class TransitionTest(Shown):
    """What points (x, y) say about a step, a smooth trend, or none.

    Parameters
    ----------
    x, y : (point,) float64, ascending in x, then y
    at : change point named beforehand; None where it was searched for
    verdict : `step`, `smooth`, `none` or `undecided`
    reason : why it is undecided; empty otherwise
    fits : every model, see `Candidates`; empty where all y are equal
    p_values : `smooth over none`, `step over none`: by permutation. `smooth over step`, `step over line`,
        `step over curve`: by parametric bootstrap from the best such fit. Those that the kind with the least AICc
        needs; none where all y are equal
    spearman, spearman_p : rank correlation and its two-sided p-value by permutation; NaN where all y are equal
    exact : whether permutations are all there are, and not a sample
    repeats, seed : of the random ones
    size_interval : 95% interval of the step's height at `at`, two plateaus with errors that are Gaussian and alike;
        None where the change point was searched for or has no place
    """

    x: Float64
    y: Float64
    at: float | None
    verdict: str
    reason: str
    fits: tuple[Fit, ...] = field(repr=False)
    p_values: dict[str, float]
    spearman: float
    spearman_p: float
    exact: bool
    repeats: int
    seed: int
    size_interval: tuple[float, float] | None = None

    @property
    def points(self) -> int:
        """Number of points."""
        return len(self.x)

    def best(self, kind: str) -> Fit | None:
        """The model of a kind with the least AICc, or where none has points enough the one with the least residuals."""
        fits = [fit for fit in self.fits if fit.kind == kind]
        return min(
            fits, key=lambda fit: (math.isnan(fit.aicc), fit.rss if math.isnan(fit.aicc) else fit.aicc), default=None
        )

    @property
    def weights(self) -> dict[str, float]:
        """Akaike weight of each kind that has points enough: the sum over its models."""
        usable = [fit for fit in self.fits if not math.isnan(fit.weight)]
        return {
            kind: sum(fit.weight for fit in usable if fit.kind == kind)
            for kind in dict.fromkeys(f.kind for f in usable)
        }

    def summary(self) -> list[tuple[str, str]]:
        """The verdict, and why where it is open."""
        return [("verdict", self.verdict), *([("reason", self.reason)] if self.reason else [])]

    def rows(self) -> list[dict[str, Any]]:
        """One record a fitted model."""
        return [{name: value for name, value in vars(fit).items() if name != "values"} for fit in self.fits]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: null for what is not a number."""
        return {
            "points": self.points,
            "x": self.x.tolist(),
            "y": self.y.tolist(),
            "at": self.at,
            "verdict": self.verdict,
            "reason": self.reason,
            "weights": self.weights,
            "p_values": self.p_values,
            "spearman": jsonable(self.spearman),
            "spearman_p": jsonable(self.spearman_p),
            "permutations": "all" if self.exact else self.repeats,
            "seed": self.seed,
            "size_interval": jsonable(self.size_interval),
            "fits": jsonable(self.rows()),
        }


def transition_test(
    x: npt.ArrayLike, y: npt.ArrayLike, *, at: float | None = None, repeats: int = 9_999, seed: int = 0
) -> TransitionTest:
    """Ask whether y steps, trends or does neither along log x.

    Parameters
    ----------
    x : (point,) positive numbers, 3 or more, two or more of them different; their unit does not matter
    y : (point,) finite numbers
    at : change point to test, where it was known before these data; searched for where None
    repeats : random permutations (all are taken where there are no more than this), and bootstrap samples; 99 or more
    seed : the same seed gives the same p-values, whatever the order of the points

    Raises
    ------
    OutliersError
        Too few points, or numbers out of range.

    Notes
    -----
    The kind with the least AICc is the verdict, provided that no other kind is within 2 of it and that its rivals are
    rejected at 5%. The test statistic is the difference in AICc between two kinds, models and change points searched
    for anew each time, so that the search, which AICc alone underrates, is paid for. Against `none`, y is permuted over
    x: exact whatever the errors' distribution. Against a line, a curve or two plateaus, samples are drawn from the best
    such fit with Gaussian errors. A smooth trend must also not look stepped itself. `none` stands where neither a step
    nor a trend is found by permutation, and a step could have been; it says that these points show nothing, not that
    there is nothing.
    """
    x, y = _checked(x, y, at, repeats, seed)
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    points = len(y)
    if np.ptp(y) <= 1e-9 * np.abs(y).max():
        return TransitionTest(x, y, at, "none", "", (), {}, math.nan, math.nan, False, repeats, seed)
    candidates = Candidates(x, at)
    orders, exact = _orders(points, repeats, seed)
    spearman, spearman_p = _spearman(x, y, orders, exact)
    verdict, reason, p_values = _verdict(candidates, y, orders, exact, repeats, seed)
    return TransitionTest(
        x=x,
        y=y,
        at=at,
        verdict=verdict,
        reason=reason,
        fits=tuple(candidates.fits(y)),
        p_values=p_values,
        spearman=spearman,
        spearman_p=spearman_p,
        exact=exact,
        repeats=repeats,
        seed=seed,
        size_interval=None if at is None else _size_interval(x, y, at),
    )


def _verdict(
    candidates: Candidates, y: Float64, orders: npt.NDArray[np.intp], exact: bool, repeats: int, seed: int
) -> tuple[str, str, dict[str, float]]:
    """Verdict, the reason where undecided, and p-values."""
    if not candidates.usable("step"):
        if candidates.points <= candidates.parameters["step"] + 1:
            enough = candidates.parameters["step"] + 2
            shown = "" if candidates.at is not None else ", and 8 a step"
            return "undecided", f"{candidates.points} points; {enough} or more can show a trend{shown}", {}
        where = "" if candidates.at is None else " of the one named"
        return "undecided", f"no place for a step with two points on each side{where}", {}
    found = {kind: float(values[0]) for kind, values in candidates.by_kind(y[None]).items()}
    by_chance = candidates.by_kind(y[orders])
    p_values = {
        f"{kind} over none": _share(by_chance["none"] - by_chance[kind], found["none"] - found[kind], exact)
        for kind in ("smooth", "step")
    }
    first, second, *_ = sorted(found, key=lambda kind: found[kind])
    if found[second] - found[first] <= CLOSE:
        reason = f"{_WORDS[first]} and {_WORDS[second]} are {found[second] - found[first]:.1f} apart in AICc"
        return "undecided", reason, p_values
    if first == "none":
        seen = [kind for kind in ("smooth", "step") if p_values[f"{kind} over none"] <= LEVEL]
        if seen:
            p = p_values[f"{seen[0]} over none"]
            return "undecided", f"no trend has the least AICc, yet chance alone looks so with p = {p:.2g}", p_values
        least = candidates.least_p()
        if least > LEVEL:
            reason = (
                f"{candidates.points} points cannot show a step: chance makes the clearest one with p = {least:.2g}"
            )
            return "undecided", reason, p_values
        return "none", "", p_values
    # A line with a small step beside it can never be ruled out, so that a trend has to beat plateaus only. But it must
    # not look stepped itself: AICc alone asks more of a step the fewer the points.
    best = min(KINDS["smooth"], key=lambda name: candidates.score(name, y))
    tests: list[tuple[Kind, str]] = [("step", name) for name in KINDS["smooth"]]
    if first == "smooth":
        tests = [("smooth", "step"), ("step", best)]
    for tested, null in tests:
        if candidates.usable(null):
            p_values[f"{tested} over {null}"] = _bootstrap(candidates, y, null, tested, repeats, seed)
    for name, p in p_values.items():
        kind, null = name.split(" over ")
        if kind == first and p > LEVEL:
            return "undecided", f"{_WORDS[first]} has the least AICc, but p = {p:.2g} under {_UNDER[null]}", p_values
    if first == "smooth" and p_values[f"step over {best}"] <= LEVEL:
        p = p_values[f"step over {best}"]
        return "undecided", f"smooth trend has the least AICc, yet looks so stepped with p = {p:.2g} only", p_values
    return first, "", p_values


_UNDER: Final = {"none": "no trend", "line": "a line", "curve": "a smooth curve", "step": "a step"}


def _bootstrap(candidates: Candidates, y: Float64, null: str, kind: Kind, repeats: int, seed: int) -> float:
    """How often samples from the best fit of model `null` favour `kind` over that model's kind as much as y does."""
    rival: Kind = "step" if kind == "smooth" else "smooth"
    values, _ = candidates.fitted(null, y)
    spread = math.sqrt(((y - values) ** 2).sum() / (candidates.points - candidates.coefficients(null)))
    generator = np.random.default_rng((seed, 1 + tuple(PARAMETERS).index(null)))
    samples = values + spread * generator.standard_normal((repeats, candidates.points))
    drawn, found = candidates.by_kind(samples), candidates.by_kind(y[None])
    return _share(drawn[rival] - drawn[kind], float((found[rival] - found[kind])[0]), False)


def _share(drawn: Float64, found: float, exact: bool) -> float:
    """Share of statistics at least as large; of a sample with y itself counted as one (Phipson and Smyth 2010)."""
    more = int(np.count_nonzero(drawn >= found - _TIE))
    return more / len(drawn) if exact else (1 + more) / (1 + len(drawn))


def _orders(points: int, repeats: int, seed: int) -> tuple[npt.NDArray[np.intp], bool]:
    """Permutations of the points, (repeat, point), and whether they are all."""
    if math.factorial(points) <= repeats:
        return np.array(list(itertools.permutations(range(points))), dtype=np.intp), True
    rows = np.tile(np.arange(points), (repeats, 1))
    return np.random.default_rng((seed, 0)).permuted(rows, axis=1), False


def _spearman(x: Float64, y: Float64, orders: npt.NDArray[np.intp], exact: bool) -> tuple[float, float]:
    """Rank correlation, mean ranks for ties, and its two-sided p-value by permutation."""
    ranks = [rankdata(values) - (len(x) + 1) / 2 for values in (x, y)]
    a, b = (values / np.linalg.norm(values) for values in ranks)
    found = float(a @ b)
    return found, _share(np.abs(b[orders] @ a), abs(found), exact)


def _size_interval(x: Float64, y: Float64, at: float) -> tuple[float, float] | None:
    below, above = y[x < at], y[x >= at]
    if min(len(below), len(above)) < 2:
        return None
    interval = ttest_ind(above, below).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def _checked(x: npt.ArrayLike, y: npt.ArrayLike, at: float | None, repeats: int, seed: int) -> tuple[Float64, Float64]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise OutliersError(
            f"x has shape {x.shape} and y {y.shape}; expected one list of points each, as long as the other"
        )
    if len(x) < LEAST_POINTS:
        raise OutliersError(f"{len(x)} points; expected {LEAST_POINTS} or more, of different models")
    if not (np.isfinite(x).all() and (x > 0).all()):
        raise OutliersError("x has a number that is not finite and above 0; its logarithm is needed")
    if not np.isfinite(y).all():
        raise OutliersError("y has a number that is not finite; leave that point out")
    if np.ptp(x) <= 1e-9 * x.max():
        raise OutliersError(f"all points have the same x, {x[0]:.4g}; expected models that differ in it")
    if at is not None and not (math.isfinite(at) and at > 0):
        raise OutliersError(f"at is {at!r}; expected a finite number above 0")
    if repeats < 99:
        raise OutliersError(f"repeats is {repeats}; expected 99 or more, for p-values down to 0.01")
    check_repeats(repeats, seed)
    return x, y
