"""Random stores and criteria, and the outlier definition as plain loops over hits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from analyze import Criteria

# Few different values, so that ties and values exactly at the threshold are common.
# The three below 6 round to bfloat16 as a tie to 6, just below that tie, and as a tie away from 6.
VALUES = (0.0, -0.0, 0.5, -1.0, 2.0, -2.0, 3.0, 6.0, -6.0, 6.7, 9.0, 1e30, math.inf, -math.inf, math.nan)
VALUES += (5.984375, -5.984, 5.953125, 3.4e38)
MAGNITUDES = (0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 6.7, 9.0, 9.5, 1e30, 1e300)
FRACTIONS = (0.0, 0.06, 0.25, 1 / 3, 0.5, 2 / 3, 0.7, 1.0)


def activations(features: int = 4) -> st.SearchStrategy[np.ndarray]:
    """(sequence, layer, site, position, feature) float32; one layer, site, position or sequence happens often."""
    shapes = st.tuples(
        st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 5), st.integers(1, features)
    )
    numbers = st.one_of(st.sampled_from(VALUES), st.floats(-10, 10, width=16))
    return shapes.flatmap(
        lambda shape: st_numpy.arrays(np.float32, shape, elements=numbers.map(lambda x: float(np.float32(x))))
    )


@st.composite
def criteria(draw: st.DrawFn, plain: bool = True) -> Criteria:
    """Thresholds and conventions; with `plain` false also views that need the activations."""
    settings: dict[str, Any] = {
        "magnitude": draw(st.sampled_from(MAGNITUDES)),
        "layers": draw(st.one_of(st.sampled_from(FRACTIONS), st.floats(0, 1))),
        "positions": draw(st.one_of(st.sampled_from(FRACTIONS), st.floats(0, 1))),
        "counting": draw(st.sampled_from(("per-sequence", "pooled"))),
        "layer_unit": draw(st.sampled_from(("site", "layer"))),
        "signal": draw(st.sampled_from(("input", "output"))),
        "rounding": draw(st.sampled_from(("none", "bfloat16"))),
    }
    if not plain:
        settings["scale"] = draw(st.sampled_from(("absolute", "rms", "median")))
    return Criteria(**settings)


def unit_of(matrix: np.ndarray, scale: str) -> float:
    """The view's unit of one (position, feature) matrix."""
    finite = [abs(float(x)) for x in matrix.ravel() if math.isfinite(x)]
    if scale == "absolute" or not finite:
        return 1.0
    if scale == "rms":
        return float(np.sqrt(np.mean(np.square(np.array([x for x in matrix.ravel() if math.isfinite(x)], np.float64)))))
    ordered = sorted(finite)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def nearest_bfloat16(value: float) -> float:
    """The nearest number with 8 significant bits, ties to even, by arithmetic on exact quotients."""
    if not math.isfinite(value) or value == 0:
        return value
    quantum = 2.0 ** (max(math.frexp(value)[1] - 1, -126) - 7)
    nearest = round(value / quantum) * quantum  # Python rounds halves to even; both steps are exact in float64
    return math.copysign(math.inf, value) if abs(nearest) >= 2.0**128 else nearest


def in_view(x: np.ndarray, criterion: Criteria, counts: np.ndarray | None = None) -> np.ndarray:
    """The values that count, in their unit, by loops: (sequence, layer, site, position, feature); NaN where none does.

    `counts` (sequence, position) says which positions of the whole store do, before `skip_first`.
    """
    if counts is not None:
        x = np.where(counts[:, None, None, :, None], x, np.float32(np.nan))
    if criterion.rounding == "bfloat16":
        x = np.array([nearest_bfloat16(float(value)) for value in x.ravel()], np.float32).reshape(x.shape)
    sequences = range(x.shape[0]) if criterion.sequences is None else criterion.sequences
    layers = range(x.shape[1]) if criterion.layer_range is None else range(*criterion.layer_range)
    names = ("ln_attn_mlp",) if x.shape[2] == 1 else ("ln_attn", "ln_mlp")
    sites = [s for s, name in enumerate(names) if criterion.sites is None or name in criterion.sites]
    result = np.empty(
        (len(sequences), len(layers), len(sites), x.shape[3] - criterion.skip_first, x.shape[4]), np.float32
    )
    for i, n in enumerate(sequences):
        for j, layer in enumerate(layers):
            for k, site in enumerate(sites):
                matrix = x[n, layer, site, criterion.skip_first :]
                unit = unit_of(matrix, criterion.scale)
                with np.errstate(all="ignore"):
                    quotient = (matrix.astype(np.float64) / unit).astype(np.float32)
                result[i, j, k] = np.where(matrix == 0, 0, quotient) if unit == 0 else quotient
    return result


def oracle(
    x: np.ndarray, criterion: Criteria, counts: np.ndarray | None = None
) -> dict[tuple[int | None, int], tuple[float, float, float]]:
    """Outliers as {(sequence, feature): (L, S, largest magnitude)}, hit by hit from the definitions."""
    counts = np.ones((x.shape[0], x.shape[3]), bool) if counts is None else counts
    x = in_view(x, criterion, counts)
    numbers = criterion.sequences if criterion.sequences is not None else range(x.shape[0])
    totals = [int(counts[n, criterion.skip_first :].sum()) for n in numbers]
    with np.errstate(over="ignore"):
        limit = np.float32(criterion.magnitude)
    groups: list[tuple[int | None, list[int]]] = (
        [(None, list(range(x.shape[0])))]
        if criterion.counting == "pooled"
        else [(number, [i]) for i, number in enumerate(numbers)]
    )
    found = {}
    for name, members in groups:
        for f in range(x.shape[4]):
            layer_places: set[Any] = set()
            position_places: set[Any] = set()
            largest = -math.inf
            for n in members:
                for layer in range(x.shape[1]):
                    for site in range(x.shape[2]):
                        for p in range(x.shape[3]):
                            value = abs(x[n, layer, site, p, f])
                            if not math.isnan(value):
                                largest = max(largest, float(value))
                            if value >= limit:
                                layer_places.add(layer if criterion.layer_unit == "layer" else (layer, site))
                                position_places.add((n, p))
            units = x.shape[1] * (1 if criterion.layer_unit == "layer" else x.shape[2])
            share_of_layers = len(layer_places) / units
            total = sum(totals[n] for n in members)
            if total == 0:
                continue
            share_of_positions = len(position_places) / total
            if share_of_layers >= criterion.layers and share_of_positions >= criterion.positions:
                found[name, f] = (share_of_layers, share_of_positions, largest)
    return found
