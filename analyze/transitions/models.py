"""The models of a transition, constant, smooth and step, fitted by least squares to one y or thousands at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from analyze.types import Float64

Kind = Literal["none", "smooth", "step"]

KINDS: Final[dict[Kind, tuple[str, ...]]] = {
    "none": ("constant",),
    "smooth": ("line", "curve"),
    "step": ("step", "line and step"),
}
PARAMETERS: Final = {"constant": 2, "line": 3, "curve": 5, "step": 4, "line and step": 5}
"""Coefficients, midpoint and width or change point, and the variance of the residuals."""
CLOSE: Final = 2.0
"""Difference in AICc up to which models are not told apart (Burnham and Anderson 2002, section 2.6)."""

_EACH_SIDE: Final = 2  # a single point on one side would be an odd model, not a plateau
_WIDTHS: Final = np.geomspace(1 / 3, 2, 6)
_CENTRES: Final = 25
_FLOOR: Final = 1e-10  # of the total sum of squares: less is rounding


@dataclass(frozen=True)
class Fit:
    """One model, fitted by least squares.

    Parameters
    ----------
    name : one of `PARAMETERS`, see `Candidates`
    kind : none, smooth or step
    parameters : all that were fitted, the variance and a change point that was searched for among them
    rss : residual sum of squares
    aicc : NaN where there are too few points for the parameters, or no place for a step
    delta, weight : AICc above the least of all models, and Akaike weight; NaN where AICc is
    values : (point,) float64, in ascending order of x
    change : where a step lies, the geometric middle of two adjacent x; None for other models
    between : these two x
    plausible : least and largest x around all change points whose AICc is within 2 of the best one's
    size : height of a step, up positive, in units of y; None for other models
    """

    name: str
    kind: Kind
    parameters: int
    rss: float
    aicc: float
    delta: float
    weight: float
    values: Float64 = field(repr=False)
    change: float | None = None
    between: tuple[float, float] | None = None
    plausible: tuple[float, float] | None = None
    size: float | None = None


class Candidates:
    """Every shape that the models can take at given x, so that fitting is a product of matrices.

    - constant
    - line: linear in log x
    - curve: logistic in log x between two free plateaus; from 10% to 90% of the way takes at least a third of the range
      of log x, on a grid of 25 midpoints and 6 widths. Faster than that is a step
    - step: two plateaus
    - line and step: two parallel lines in log x

    A step lies between two adjacent different x, with two points or more on each side.

    Parameters
    ----------
    x : (point,) float64, positive and finite, ascending, at least two of them different
    at : change point named beforehand, so that none is searched for; a point at `at` lies above it
    """

    def __init__(self, x: Float64, at: float | None = None) -> None:
        self.x, self.at, self.points = x, at, len(x)
        log = np.log10(x)
        distinct = np.unique(x)
        gaps = np.stack([distinct[:-1], distinct[1:]], axis=1)
        if at is not None:
            gaps = gaps[(gaps[:, 0] < at) & (at <= gaps[:, 1])]
        below = np.searchsorted(x, gaps[:, 0], side="right")
        self.gaps = gaps[(below >= _EACH_SIDE) & (self.points - below >= _EACH_SIDE)]
        self.parameters = {
            name: count - (at is not None and name in KINDS["step"]) for name, count in PARAMETERS.items()
        }
        line, _ = _units(log[None])
        steps, heights = _units(x > self.gaps[:, :1])
        # What a step adds to the line: least squares on both is least squares on one after the other.
        beside, left = _units(steps - (steps @ line.T) @ line)
        self._shapes = {"line": line, "step": steps, "line and step": beside}
        self._lengths = {"step": heights, "line and step": heights * left}
        if self.usable("curve"):
            span = log[-1] - log[0]
            steepness = 2 * math.log(9) / (span * _WIDTHS)  # of a logistic with these 10% to 90% widths
            centres = np.linspace(log[0], log[-1], _CENTRES)
            slopes, middles = (grid.reshape(-1, 1) for grid in np.meshgrid(steepness, centres))
            self._shapes["curve"], _ = _units(1 / (1 + np.exp(-slopes * (log - middles))))

    def usable(self, name: str) -> bool:
        """Whether AICc is defined for a model, and a step has a place."""
        return self.points > self.parameters[name] + 1 and (name not in KINDS["step"] or len(self.gaps) > 0)

    def least_p(self) -> float:
        """Share of the orders of y in which the clearest possible step, of two y only, is as clear; 1 without place."""
        below = np.searchsorted(self.x, self.gaps[:, 0], side="right").tolist()
        shares = [1.0]
        for count in below:
            # The other way down it needs the mirrored place.
            ways = 2 if 2 * count == self.points else 1 + ((self.points - count) in below)
            shares.append(ways / math.comb(self.points, count))
        return min(shares)

    def aicc(self, y: Float64) -> dict[str, Float64]:
        """AICc of each usable model for (repeat, point) y: (repeat,) float64."""
        y = y - y.mean(axis=1, keepdims=True)
        total = np.einsum("rp,rp->r", y, y)
        result = {}
        for name in filter(self.usable, PARAMETERS):
            rss = total - self._explained(name, y).max(axis=1)
            result[name] = aicc(np.maximum(rss, _FLOOR * total), self.points, self.parameters[name])
        return result

    def by_kind(self, y: Float64) -> dict[Kind, Float64]:
        """AICc of the best usable model of each kind, as `aicc`."""
        each = self.aicc(y)
        usable = {kind: [each[name] for name in names if name in each] for kind, names in KINDS.items()}
        return {kind: np.minimum.reduce(found) for kind, found in usable.items() if found}

    def score(self, name: str, y: Float64) -> float:
        """AICc of one model for one (point,) y; infinite where it is not usable."""
        return float(self.aicc(y[None]).get(name, np.array([math.inf]))[0])

    def fits(self, y: Float64) -> list[Fit]:
        """Fit every model that has a shape here to one (point,) y that is not constant; usable ones get an AICc."""
        scores = {name: float(values[0]) for name, values in self.aicc(y[None]).items()}
        least = min(scores.values(), default=math.nan)
        weights = {name: math.exp(-(score - least) / 2) for name, score in scores.items()}
        result = []
        for kind, names in KINDS.items():
            for name in names:
                if name != "constant" and not len(self._shapes.get(name, ())):
                    continue
                values, place = self.fitted(name, y)
                score = scores.get(name, math.nan)
                result.append(
                    Fit(
                        name,
                        kind,
                        self.parameters[name],
                        rss=float(((y - values) ** 2).sum()),
                        aicc=score,
                        delta=score - least,
                        weight=weights[name] / sum(weights.values()) if name in weights else math.nan,
                        values=values,
                        **(self._step(name, y, place) if kind == "step" else {}),
                    )
                )
        return result

    def fitted(self, name: str, y: Float64) -> tuple[Float64, int]:
        """Values of the best fit to one (point,) y, and which of its shapes it has."""
        mean, y = y.mean(), y - y.mean()
        if name == "constant":
            return np.full(self.points, mean), 0
        shapes = self._shapes[name]
        place = int(np.argmax((shapes @ y) ** 2))
        values = mean + (shapes[place] @ y) * shapes[place]
        if name == "line and step":
            line = self._shapes["line"][0]
            values = values + (line @ y) * line
        return values, place

    def coefficients(self, name: str) -> int:
        """Number of parameters that the variance of the residuals is corrected for."""
        return {"line": 2, "curve": 4, "step": 2, "line and step": 3}[name]

    def _explained(self, name: str, y: Float64) -> Float64:
        """Sums of squares that each shape of a model takes from centred (repeat, point) y: (repeat, shape)."""
        if name == "constant":
            return np.zeros((len(y), 1))
        explained: Float64 = (y @ self._shapes[name].T) ** 2
        if name == "line and step":
            explained = explained + (y @ self._shapes["line"].T) ** 2
        return explained

    def _step(self, name: str, y: Float64, place: int) -> dict[str, Any]:
        low, high = (float(edge) for edge in self.gaps[place])
        y = y - y.mean()
        rss = np.maximum(y @ y - self._explained(name, y[None])[0], _FLOOR * (y @ y))
        near = self.gaps[self.points * np.log(rss / rss[place]) <= CLOSE]
        return {
            "change": math.sqrt(low * high) if self.at is None else self.at,
            "between": (low, high),
            "plausible": (float(near.min()), float(near.max())),
            "size": float(self._shapes[name][place] @ y / self._lengths[name][place]),
        }


def aicc(rss: Float64, points: int, parameters: int) -> Float64:
    """Akaike's information criterion for small samples, of least squares with Gaussian errors.

    n log(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1), defined for n > k + 1.

    Parameters
    ----------
    rss : residual sums of squares, above 0
    points, parameters : n and k; k counts the variance

    References
    ----------
    Hurvich and Tsai 1989, Biometrika 76, 297-307.
    """
    correction = 2 * parameters * (parameters + 1) / (points - parameters - 1)
    return np.asarray(points * np.log(rss / points) + 2 * parameters + correction, dtype=np.float64)


def _units(rows: npt.NDArray[Any]) -> tuple[Float64, Float64]:
    """Centre (shape, point) rows and give them unit length; and their lengths. Nothing but rounding becomes 0."""
    rows = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    lengths = np.where(lengths > 1e-6, lengths, np.inf)
    return rows / lengths[:, None], lengths
