"""How often the transition test is right: verdicts on planted truths, as the table of docs/transition.md.

Run as `python -m tests.transition_rates 400`, some minutes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable

import numpy as np

from analyze.transitions.models import CLOSE
from analyze.transitions.verdict import transition_test

# From 0 to 1 along log x from 0 to 1.
TRUTHS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flat": lambda u: 0 * u,
    "line": lambda u: u,
    "S curve, 10% to 90% in half of the range": lambda u: 1 / (1 + np.exp(-(u - 0.5) * 2 * np.log(9) / 0.5)),
    "S curve, in a third of the range": lambda u: 1 / (1 + np.exp(-(u - 0.55) * 2 * np.log(9) * 3)),
    "S curve, in a fifth of the range": lambda u: 1 / (1 + np.exp(-(u - 0.5) * 2 * np.log(9) * 5)),
    "saturating": lambda u: 1 - np.exp(-4 * u),
    "ever steeper": lambda u: np.expm1(3 * u) / np.expm1(3),
    "flat, then a line": lambda u: np.maximum(2 * u - 1, 0),
    "step": lambda u: (u > 0.5) * 1.0,
    "step on a line": lambda u: 0.3 * u + 0.7 * (u > 0.5),
}
VERDICTS = ("step", "smooth", "none", "undecided")
ALONE = "step by AICc alone"


def verdicts(truth: str, points: int, noise: float, repeats: int, *, seed: int = 0) -> Counter[str]:
    """Count verdicts over `repeats` families of models.

    x: uniform over two decades at random; y: the truth, its height being 1, plus Gaussian noise.
    """
    generator = np.random.default_rng((seed, points))
    found: Counter[str] = Counter()
    for number in range(repeats):
        u = np.sort(generator.uniform(size=points))
        u = (u - u[0]) / (u[-1] - u[0])
        y = TRUTHS[truth](u) + noise * generator.standard_normal(points)
        result = transition_test(10 ** (8 + 2 * u), y, repeats=399, seed=number)
        found[result.verdict] += 1
        scores = {
            kind: min(f.aicc for f in result.fits if f.kind == kind and f.aicc < np.inf) for kind in result.weights
        }
        found[ALONE] += "step" in scores and scores.pop("step") + CLOSE < min(scores.values())
    return found


def main(repeats: int) -> None:
    """Print the table: percentages for each noise."""
    columns = (*VERDICTS, ALONE)
    print("| truth | points | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for truth in TRUTHS:
        for points in (6, 8, 10, 12):
            noises = (0.1,) if truth == "flat" else (0.03, 0.1, 0.25)
            found = [verdicts(truth, points, noise, repeats) for noise in noises]
            cells = (" / ".join(f"{100 * one[column] / repeats:.0f}" for one in found) for column in columns)
            print(f"| {truth} | {points} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
