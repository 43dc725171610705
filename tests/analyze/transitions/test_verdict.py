"""Step, trend or neither: fits against least squares and exhaustive search, p-values against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analyze import OutliersError
from analyze.transitions.models import PARAMETERS, Candidates, aicc
from analyze.transitions.verdict import transition_test
from tests.transition_rates import TRUTHS, verdicts

X = [1e8, 3e8, 1e9, 3e9, 7e9, 1e10, 3e10, 6e10]

points = st.integers(6, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(1e6, 1e12), min_size=n, max_size=n, unique=True),
        st.lists(st.integers(0, 100).map(float), min_size=n, max_size=n).filter(lambda y: len(set(y)) > 1),
    )
).filter(lambda both: min(np.diff(np.log10(sorted(both[0])))) > 1e-3)  # fmt: skip


def rss(y: np.ndarray, *columns: np.ndarray) -> float:
    """By NumPy's least squares."""
    design = np.stack([np.ones(len(y)), *columns], axis=1)
    return float(((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum())


def brute_force(x: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, float | None]]:
    """Least residuals of each model over every change point, and where it lies."""
    log = np.log10(x)
    found: dict[str, tuple[float, float | None]] = {"constant": (rss(y), None), "line": (rss(y, log), None)}
    for name, others in (("step", ()), ("line and step", (log,))):
        for low, high in itertools.pairwise(sorted(set(x.tolist()))):
            if min(np.count_nonzero(x <= low), np.count_nonzero(x >= high)) >= 2:
                value = rss(y, *others, (x > low).astype(float))
                if name not in found or value < found[name][0]:
                    found[name] = value, math.sqrt(low * high)
    return found


def test_aicc_by_hand() -> None:
    # Six points, y = 1 1 1 5 5 7: mean 20/6, RSS = 102 - 400/6; plateaus 1 and 17/3, RSS = 99 - 289/3.
    y = np.array([1, 1, 1, 5, 5, 7.0])
    constant = 6 * math.log((102 - 400 / 6) / 6) + 4 + 2 * 2 * 3 / 3
    step = 6 * math.log((99 - 289 / 3) / 6) + 8 + 2 * 4 * 5 / 1
    fits = {fit.name: fit for fit in transition_test(X[:6], y).fits}
    assert fits["constant"].aicc == pytest.approx(constant)
    assert fits["constant"].aicc == pytest.approx(18.638, abs=1e-3)
    assert fits["step"].aicc == pytest.approx(step)
    assert fits["step"].aicc == pytest.approx(43.134, abs=1e-3)
    assert fits["step"].size == pytest.approx(14 / 3)
    assert fits["step"].between == (1e9, 3e9)
    assert fits["step"].change == pytest.approx(math.sqrt(3) * 1e9)
    assert math.isnan(fits["line and step"].aicc)  # 5 parameters of 6 points
    assert float(aicc(np.array(20.0), 10, 3)) == pytest.approx(10 * math.log(2) + 6 + 24 / 6)


@given(points)
@settings(max_examples=40, deadline=None)
def test_fits_are_least_squares(both: tuple[list[float], list[float]]) -> None:
    x, y = (np.array(values) for values in both)
    fits = {fit.name: fit for fit in transition_test(x, y, repeats=99).fits}
    expected = brute_force(x, y)
    total = expected["constant"][0]
    for name, (value, place) in expected.items():
        assert fits[name].rss == pytest.approx(value, rel=1e-6, abs=1e-9 * total)
        assert ((np.sort(y) - y.mean()) ** 2).sum() >= fits[name].rss - 1e-9 * total
        if place is not None and fits[name].change != pytest.approx(place):
            # Another place, as good.
            low = fits[name].between[0]
            others = (np.log10(x),) if name == "line and step" else ()
            assert rss(y, *others, (x > low).astype(float)) == pytest.approx(value, rel=1e-6, abs=1e-9 * total)


def test_the_height_of_a_step_is_its_coefficient() -> None:
    x = np.array(X)
    y = 3 * np.log10(x) + 7.0 * (x > 5e9) + np.array([0.1, -0.2, 0.1, 0, -0.1, 0.2, 0, -0.1])
    design = np.stack([np.ones(8), np.log10(x), x > 5e9], axis=1).astype(float)
    expected = np.linalg.lstsq(design, y, rcond=None)[0][2]
    fit = next(fit for fit in transition_test(x, y, repeats=99).fits if fit.name == "line and step")
    assert fit.between == (3e9, 7e9)
    assert fit.size == pytest.approx(expected)
    np.testing.assert_allclose(fit.values, design @ np.linalg.lstsq(design, y, rcond=None)[0])


def test_the_curve_is_a_least_squares_logistic_of_its_grid() -> None:
    x = np.array(X)
    y = np.array([1, 2, 2, 4, 8, 9, 10, 10.0])
    log = np.log10(x)
    span = log[-1] - log[0]
    values = [
        rss(y, 1 / (1 + np.exp(-(log - centre) * math.log(81) / (width * span))))
        for centre in np.linspace(log[0], log[-1], 25)
        for width in np.geomspace(1 / 3, 2, 6)
    ]
    fits = {fit.name: fit for fit in transition_test(x, y, repeats=99).fits}
    assert fits["curve"].rss == pytest.approx(min(values))
    # From 10% to 90%: log(81) in units of the logistic's scale.
    assert math.log(0.9 / 0.1) - math.log(0.1 / 0.9) == pytest.approx(math.log(81))


def test_weights() -> None:
    result = transition_test(X, [1, 2, 2, 4, 8, 9, 10, 10], repeats=99)
    scores = np.array([fit.aicc for fit in result.fits])
    expected = np.exp(-(scores - scores.min()) / 2)
    np.testing.assert_allclose([fit.weight for fit in result.fits], expected / expected.sum())
    assert sum(result.weights.values()) == pytest.approx(1)
    assert min(fit.delta for fit in result.fits) == 0


@given(st.lists(st.integers(0, 4), min_size=6, max_size=6).filter(lambda y: len(set(y)) > 1))
@settings(max_examples=15, deadline=None)
def test_spearman_against_every_order(y: list[int]) -> None:
    result = transition_test(X[:6], y, repeats=720)
    assert result.exact
    assert result.spearman == pytest.approx(stats.spearmanr(X[:6], y).statistic)
    ranks = stats.rankdata(y)
    found = abs(np.corrcoef(np.arange(6), ranks)[0, 1])
    every = [abs(np.corrcoef(np.arange(6), order)[0, 1]) >= found - 1e-9 for order in itertools.permutations(ranks)]
    assert result.spearman_p == pytest.approx(np.mean(every))


def test_p_values_against_every_order() -> None:
    y = np.array([3, 1, 2, 9, 8, 7.5])
    result = transition_test(X[:6], y, repeats=720)
    x = np.array(X[:6])

    def gain(values: np.ndarray, names: tuple[str, ...]) -> float:
        found = brute_force(x, values)
        return -6 * math.log(min(found[name][0] for name in names))

    for name, names in (("smooth", ("line",)), ("step", ("step",))):
        seen = gain(y, names)
        every = [gain(np.array(order), names) >= seen - 1e-6 for order in itertools.permutations(y)]
        assert result.p_values[f"{name} over none"] == pytest.approx(np.mean(every))


def test_a_sampled_p_value_is_near_that_of_every_order() -> None:
    y = [3, 1, 2, 6, 4, 8, 5]
    exact, sampled = (transition_test(X[:7], y, repeats=repeats) for repeats in (5040, 4000))
    assert (exact.exact, sampled.exact) == (True, False)
    assert sampled.spearman_p == pytest.approx(exact.spearman_p, abs=0.02)
    assert sampled.p_values["step over none"] == pytest.approx(exact.p_values["step over none"], abs=0.03)


@pytest.mark.parametrize(("count", "below", "expected"), [(8, 4, 2 / 70), (7, 3, 2 / 35), (10, 5, 2 / 252)])
def test_the_clearest_step_by_chance(count: int, below: int, expected: float) -> None:
    x = np.geomspace(1, 100, count)
    y = np.where(np.arange(count) < below, 0.0, 1.0)
    assert Candidates(x).least_p() == pytest.approx(expected)
    result = transition_test(x, y, repeats=math.factorial(count) if count < 8 else 9_999)
    assert result.p_values["step over none"] == pytest.approx(expected, abs=1e-12 if count < 8 else 0.008)


def test_a_named_change_point_is_no_parameter() -> None:
    y = [1, 2, 1, 2, 8, 9, 8, 9]
    searched, named = transition_test(X, y, repeats=99), transition_test(X, y, at=6.7e9, repeats=99)
    steps = [result.best("step") for result in (searched, named)]
    assert [step.name for step in steps] == ["step", "step"]
    assert [step.parameters for step in steps] == [4, 3]
    assert steps[0].rss == steps[1].rss
    assert (searched.size_interval, steps[1].change) == (None, 6.7e9)
    expected = stats.ttest_ind(y[4:], y[:4]).confidence_interval(0.95)
    assert named.size_interval == pytest.approx((expected.low, expected.high))
    assert transition_test(X, y, at=7e9, repeats=99).best("step").between == (3e9, 7e9)  # a point at it is above


def test_a_planted_step_is_found_and_placed() -> None:
    y = np.array([30, 31, 29, 30.5, 90, 91, 89, 90.5])
    result = transition_test(X, y)
    assert (result.verdict, result.reason) == ("step", "")
    step = result.best("step")
    assert (step.name, step.between) == ("step", (3e9, 7e9))
    assert step.size == pytest.approx(60, abs=0.5)
    assert step.plausible == (3e9, 7e9)
    assert max(p for name, p in result.p_values.items() if name.startswith("step")) <= 0.05
    assert transition_test(X, -y).best("step").size == pytest.approx(-step.size)


@pytest.mark.parametrize("shape", ["line", "S curve, 10% to 90% in half of the range", "saturating"])
def test_a_planted_trend_is_no_step(shape: str) -> None:
    x = np.geomspace(1e8, 1e11, 10)
    noise = np.array([1, -1, 0.5, 0, -0.5, 1, -1, 0.5, 0, -0.5]) / 100
    result = transition_test(x, 30 + 60 * (TRUTHS[shape](np.linspace(0, 1, 10)) + noise))
    assert result.verdict == "smooth"
    assert result.p_values["smooth over step"] <= 0.05


def test_what_is_flat_has_no_trend() -> None:
    assert transition_test(X, [50, 52, 49, 51, 50, 48, 52, 50]).verdict == "none"


def test_all_alike() -> None:
    result = transition_test(X, [50.0] * 8)
    assert (result.verdict, result.fits, result.p_values) == ("none", (), {})
    assert result.to_dict()["spearman"] is None
    # Rounding is no trend.
    assert transition_test(X, [0.3 + 1e-16 * n for n in range(8)]).fits == ()


@pytest.mark.parametrize(("count", "words"), [(3, "3 points; 6 or more"), (5, "5 points; 6 or more")])
def test_few_points_are_undecided(count: int, words: str) -> None:
    result = transition_test(X[:count], range(count), repeats=99)
    assert result.verdict == "undecided"
    assert words in result.reason
    assert all(math.isnan(fit.aicc) for fit in result.fits if fit.kind == "step")
    assert result.spearman == pytest.approx(1)


def test_no_step_of_seven_points() -> None:
    # The clearest there can be; chance makes one of 2 in 35.
    result = transition_test(X[:7], [1, 1.01, 1, 9, 9.01, 9, 9], repeats=5040)
    assert result.verdict == "undecided"
    assert "step has the least AICc, but p = 0.057 under no trend" in result.reason


def test_seven_flat_points_are_undecided_too() -> None:
    result = transition_test(X[:7], [50, 52, 49, 51, 50, 48, 52])
    assert (result.verdict, "cannot show a step" in result.reason) == ("undecided", True)


def test_two_that_are_close_are_undecided() -> None:
    # Published: positions of Table 4 of Dettmers et al.
    x = [0.117, 0.345, 0.125, 0.762, 1.5, 1.3, 2.7, 6.0, 6.7, 13]
    result = transition_test(x, [6, 18, 22, 16, 35, 47, 18, 28, 75, 73])
    assert (result.verdict, result.reason) == ("undecided", "step and smooth trend are 1.2 apart in AICc")


def test_a_place_without_two_points_on_each_side() -> None:
    result = transition_test(X, range(8), at=2e8)
    assert (result.verdict, result.reason) == (
        "undecided",
        "no place for a step with two points on each side of the one named",
    )


def test_equal_x_are_never_parted() -> None:
    x = [1, 1, 2, 2, 2, 3, 3, 3]
    result = transition_test(x, [0, 5, 0, 5, 5, 9, 9, 8], repeats=99)
    places = {fit.between for fit in result.fits if fit.kind == "step"}
    assert places <= {(1, 2), (2, 3)}


@given(points, st.floats(1e-6, 1e6), st.randoms())
@settings(max_examples=25, deadline=None)
def test_neither_units_nor_order_matter(both: tuple[list[float], list[float]], factor: float, random: object) -> None:
    x, y = both
    order = list(range(len(x)))
    random.shuffle(order)
    first = transition_test(x, y, repeats=99)
    again = transition_test([x[i] * factor for i in order], [y[i] for i in order], repeats=99)
    assert (again.verdict, again.reason) == (first.verdict, first.reason)
    assert again.p_values == pytest.approx(first.p_values)
    assert again.spearman_p == first.spearman_p
    np.testing.assert_allclose([fit.rss for fit in again.fits], [fit.rss for fit in first.fits], atol=1e-6)


@given(points, st.floats(0.1, 10), st.floats(-50, 50))
@settings(max_examples=25, deadline=None)
def test_units_of_y_do_not_matter(both: tuple[list[float], list[float]], scale: float, shift: float) -> None:
    x, y = both
    first = transition_test(x, y, repeats=99)
    again = transition_test(x, [value * scale + shift for value in y], repeats=99)
    assert again.verdict == first.verdict
    assert again.p_values == pytest.approx(first.p_values)


@given(points)
@settings(max_examples=25, deadline=None)
def test_monotone_maps_leave_spearman(both: tuple[list[float], list[float]]) -> None:
    x, y = both
    first = transition_test(x, y, repeats=99)
    again = transition_test(np.sqrt(x), np.array(y) ** 3 + 1, repeats=99)
    down = transition_test(x, [-value for value in y], repeats=99)
    assert again.spearman == pytest.approx(first.spearman)
    assert again.spearman_p == first.spearman_p
    assert down.spearman == pytest.approx(-first.spearman)


def test_seeds() -> None:
    y = [3, 1, 2, 6, 4, 8, 5, 7]
    first, again, other = (transition_test(X, y, repeats=499, seed=seed) for seed in (1, 1, 2))
    assert first.p_values == again.p_values
    assert first.p_values != other.p_values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [1, 2], "y": [1, 2]}, "2 points; expected 3 or more, of different models"),
        ({"x": [1, 2, 3, 4], "y": [1, 2, 3]}, r"x has shape \(4,\) and y \(3,\)"),
        ({"x": [0, 1, 2], "y": [1, 2, 3]}, "x has a number that is not finite and above 0"),
        ({"x": [1, 2, math.inf], "y": [1, 2, 3]}, "x has a number that is not finite"),
        ({"x": [1, 2, 3], "y": [1, math.nan, 3]}, "y has a number that is not finite; leave that point out"),
        ({"x": [5, 5, 5], "y": [1, 2, 3]}, "all points have the same x, 5; expected models that differ"),
        ({"at": 0}, "at is 0; expected a finite number above 0"),
        ({"at": math.nan}, "at is nan"),
        ({"repeats": 98}, "repeats is 98; expected 99 or more"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
    ],
)
def test_bad_input_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(OutliersError, match=message):
        transition_test(**{"x": [1, 2, 3], "y": [1, 2, 3], **changes})


def test_every_model_is_counted() -> None:
    assert set(PARAMETERS) == {"constant", "line", "curve", "step", "line and step"}
    candidates = Candidates(np.array(X))
    assert [name for name in PARAMETERS if candidates.usable(name)] == list(PARAMETERS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("truth", ["flat", "line", "S curve, in a third of the range", "saturating"])
@pytest.mark.parametrize("points", [8, 10])
def test_false_steps_are_rare(truth: str, points: int) -> None:
    # 5% of 200 is 10; 18 and more have a probability under 1%. With one seed the outcome is fixed.
    assert verdicts(truth, points, 0.1, 200, seed=1)["step"] < 18


@pytest.mark.exhaustive
def test_steps_are_found() -> None:
    clear, noisy = (verdicts("step", 10, noise, 100, seed=1) for noise in (0.03, 0.1))
    assert clear["step"] >= 80
    assert noisy["step"] >= 50
    assert clear["smooth"] + clear["none"] + noisy["smooth"] + noisy["none"] <= 8
