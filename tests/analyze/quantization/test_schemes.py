"""Schemes and losses against loops in float64, torch's own casts, and rules written down by others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from analyze import OutliersError
from analyze.quantization.elements import Element
from analyze.quantization.errors import LossOf, Variant
from analyze.quantization.schemes import DEFAULT_SCHEMES, scheme, schemes_for
from analyze.quantization.transforms import Hadamard, Plain, Smooth, parse_transform, random_signs, smooth_scales

NAMES = (*DEFAULT_SCHEMES, "int5-tensor", "int7-token", "int4-group3", "int8-group5")
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 0.25, -3.5, 6.0, 1e-30, 1e-6, 448.0, -500.0, 1e4, 1e30)


def matrices(width: int = 40) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 5), st.integers(1, width))
    numbers = st.one_of(st.sampled_from(NUMBERS), st.floats(-8, 8, width=32), st.floats(-1e3, 1e3, width=16))
    return shapes.flatmap(lambda shape: st_numpy.arrays(np.float32, shape, elements=numbers.map(np.float32).map(float)))


def grid(element: Element) -> list[float]:
    """Every number of an element, from the definition of its bits."""
    if element.name == "int":
        most = 2 ** (element.bits - 1) - 1
        return [float(n) for n in range(-most, most + 1)]
    exponents, mantissas, bias = {"e4m3": (16, 8, 7), "e2m1": (4, 2, 1)}[element.name]
    found = {
        (1 + m / mantissas) * 2.0 ** (e - bias) if e else m / mantissas * 2.0 ** (1 - bias)
        for e in range(exponents)
        for m in range(mantissas)
    }
    if element.name == "e4m3":
        found.discard(480.0)  # the code that is NaN
    return sorted(found | {-number for number in found})


def nearest(value: float, numbers: list[float]) -> float:
    """The nearest of ascending numbers; of two as near the one with the even code, counted from zero."""
    zero = numbers.index(0.0)
    return min(numbers, key=lambda n: (abs(n - value), abs(numbers.index(n) - zero) % 2))


def quantised(x: np.ndarray, name: str) -> np.ndarray:
    """A matrix by loops in float64, written from the definitions."""
    found = scheme(name)
    numbers = grid(found.element)
    top = numbers[-1]
    size = {"tensor": x.shape[1], "token": x.shape[1], "block": found.block}[found.share]
    everything = float(np.abs(x).max())
    result = np.zeros(x.shape)
    for p in range(x.shape[0]):
        for start in range(0, x.shape[1], size):
            part = [float(value) for value in x[p, start : start + size]]
            peak = everything if found.share == "tensor" else max(map(abs, part))
            if found.scaling == "power":
                exponent = math.floor(math.log2(peak)) if peak else -200
                scale = 2.0 ** min(max(exponent - math.floor(math.log2(top)), -127), 127)
            elif found.scaling == "double":
                whole = everything / (top * 448) or 1.0
                scale = nearest(min(peak / top / whole, 448), grid(Element("e4m3", 8))) * whole
            else:
                scale = peak / top
            for f, value in enumerate(part):
                result[p, start + f] = nearest(value / (scale or 1.0), numbers) * (scale or 1.0)
    return result


@pytest.mark.parametrize("name", NAMES)
@given(x=matrices())
@settings(max_examples=10, deadline=None)
def test_a_scheme_is_its_definition(name: str, x: np.ndarray) -> None:
    found = scheme(name).quantised(x.copy(), np.abs(x).max())
    assert found.dtype == np.float32
    assert found.shape == x.shape
    expected = quantised(x, name)
    step = np.abs(x).max() if scheme(name).share == "tensor" else np.abs(x).max(axis=1, keepdims=True)
    # A quotient that float32 rounds across the middle of two numbers ends a step away, and is no worse.
    lost, least = np.abs(x - found.astype(np.float64)), np.abs(x - expected)
    assert (lost <= least * (1 + 1e-5) + step * 1e-6 + 1e-44).all()


@pytest.mark.parametrize("name", ["e4m3", "e2m1"])
@given(values=st_numpy.arrays(np.float32, 50, elements=st.floats(-600, 600, width=32)))
@settings(max_examples=50, deadline=None)
def test_small_floats_are_rounded_to_the_nearest_and_to_even(name: str, values: np.ndarray) -> None:
    element = Element(name, 8)
    expected = [nearest(max(min(float(v), element.largest), -element.largest), grid(element)) for v in values]
    assert element.rounded(values.copy()).tolist() == expected


def test_every_eight_bit_float_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    values = np.concatenate([np.linspace(-448, 448, 20_001), np.geomspace(1e-4, 448, 5_000)]).astype(np.float32)
    cast = torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(Element("e4m3", 8).rounded(values.copy()), cast)


def test_examples_by_hand() -> None:
    x = np.array([[127.0, 1.4, -2.5, 0.5, 1.5]], np.float32)
    assert scheme("int8-token").quantised(x, np.float32(127)).tolist() == [[127, 1, -2, 0, 2]]  # halves to even
    assert scheme("int8-tensor").quantised(x, np.float32(254)).tolist() == [[128, 2, -2, 0, 2]]
    # A block of magnitude 7 has the scale 2^(2 - 2), and 7 is clipped to the largest number, 6.
    assert scheme("mxfp4").quantised(np.array([[7, 2.5, 0.25, 5]], np.float32), np.float32(7)).tolist() == [
        [6, 2, 0, 4]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_spoils_all_that_share_its_scale_and_no_other(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 70)).astype(np.float32)
    clean = scheme(name).quantised(x.copy(), np.abs(x).max())
    for value in (np.nan, np.inf, -np.inf):
        x[1, 40] = value
        found = scheme(name).quantised(x.copy(), np.abs(x).max())
        block = scheme(name).block
        if scheme(name).scaling == "double" or scheme(name).share == "tensor":
            assert np.isnan(found).any()
            continue
        start, stop = (0, 70) if block == 0 else (40 // block * block, 40 // block * block + block)
        assert np.isnan(found[1, start:stop]).all()
        found[1, start:stop] = clean[1, start:stop]
        assert np.array_equal(found, clean)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("largest", [1e-44, 1e-38, 3e38])
def test_the_ends_of_float32(name: str, largest: float) -> None:
    x = (np.random.default_rng(1).uniform(-1, 1, (4, 33)) * largest).astype(np.float32)
    found = scheme(name).quantised(x.copy(), np.abs(x).max())
    assert np.isfinite(found).all()
    assert np.abs(x.astype(np.float64) - found).max() <= largest


def loss(x: np.ndarray, variant: Variant, weights: np.ndarray) -> tuple[float, float, float]:
    """Errors and kept share by the definition: kept columns are found by a loop, the rest is quantised alone."""
    y = variant.transform.forward(x, (0, 0)).astype(np.float32)
    kept = [
        f
        for f in range(x.shape[1])
        if variant.threshold is not None and any(abs(value) >= np.float32(variant.threshold) for value in y[:, f])
    ]
    others = [f for f in range(x.shape[1]) if f not in kept]
    result = y.astype(np.float64)
    if others:
        part = np.ascontiguousarray(y[:, others])
        result[:, others] = variant.scheme.quantised(part, np.abs(y).max())
    assert np.array_equal(variant.applied(x, (0, 0)), variant.transform.back(result.astype(np.float32), (0, 0)))
    lost = variant.transform.back((y - result).astype(np.float32), (0, 0)).astype(np.float64) ** 2
    return float(lost.sum()), float((lost * weights.astype(np.float64) ** 2).sum()), len(kept) / x.shape[1]


TRANSFORMS: dict[str, Any] = {
    "none": lambda width: Plain(),
    "hadamard": lambda width: Hadamard("hadamard", random_signs(width, 0)),
    "smooth": lambda width: Smooth("smooth:0.5", np.linspace(0.5, 4, width, dtype=np.float32)[None, None]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(x=matrices(24), thresholds=st.lists(st.sampled_from([0.25, 0.5, 1.0, 3.0, 6.0, 400.0]), unique=True))
@settings(max_examples=15, deadline=None)
def test_losses_are_those_of_the_definition(transform: str, x: np.ndarray, thresholds: list[float]) -> None:
    x = np.clip(x, -1e6, 1e6)
    weights = np.linspace(0.1, 2, x.shape[1], dtype=np.float32)
    chosen = TRANSFORMS[transform](x.shape[1])
    variants = tuple(Variant(scheme(n), chosen) for n in ("int8-tensor", "mxfp4")) + tuple(
        Variant(scheme(n), chosen, t) for n in ("int8-token", "int4-token", "fp8-token") for t in (None, *thresholds)
    )
    found = LossOf(variants, weights[None, None])(x, (0, 0))
    assert found.squares[0] == pytest.approx(np.square(x, dtype=np.float64).sum(), rel=1e-12)
    assert (found.rows, found.left_out) == (len(x), 0)
    floor = found.squares * 1e-13 * np.array([1, 4])
    for variant, errors, kept in zip(variants, found.errors, found.kept, strict=True):
        error, output_error, share = loss(x, variant, weights)
        assert errors[0] == pytest.approx(error, rel=1e-6, abs=floor[0])
        assert errors[1] == pytest.approx(output_error, rel=1e-6, abs=floor[1])
        assert kept == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("width", [64, 576, 1000])
def test_bands_change_nothing(width: int) -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_t(2, (700, width)) * np.geomspace(0.1, 3, width)).astype(np.float32)
    for variant in (Variant(scheme("int8-token"), Plain(), 6.0), Variant(scheme("nvfp4"), Plain())):
        found = LossOf((variant,), None)(x, (0, 0))
        error, _, share = loss(x, variant, np.ones(width))
        assert found.errors[0, 0] == pytest.approx(error, rel=1e-9)
        assert np.isnan(found.errors[0, 1])
        assert found.kept[0] == pytest.approx(share)


def test_rows_that_are_not_finite_are_left_out_and_counted() -> None:
    x = builders_matrix()
    spoilt = np.insert(x, [2, 5], [[np.nan] * x.shape[1], [np.inf, *x[0, 1:]]], axis=0).astype(np.float32)
    variants = (Variant(scheme("int8-tensor"), Plain()), Variant(scheme("int8-token"), Plain(), 2.0))
    found, clean = (LossOf(variants, None)(matrix, (0, 0)) for matrix in (spoilt, x))
    assert (found.rows, found.left_out) == (len(x), 2)
    assert np.array_equal(found.errors, clean.errors, equal_nan=True)
    nothing = LossOf(variants, None)(np.full((3, 4), np.nan, np.float32), (0, 0))
    assert (nothing.rows, nothing.left_out, nothing.squares[0]) == (0, 3, 0)


def builders_matrix() -> np.ndarray:
    return (np.random.default_rng(5).normal(size=(9, 12)) * 2).astype(np.float32)


@pytest.mark.parametrize("width", [1, 2, 3, 24, 64, 576])
def test_a_rotation_is_the_matrix_of_hadamard_in_blocks(width: int) -> None:
    from scipy.linalg import block_diag, hadamard

    sizes, left = [], width
    while left:
        sizes.append(2 ** int(math.log2(left)))
        left -= sizes[-1]
    matrix = block_diag(*(hadamard(size) / math.sqrt(size) for size in sizes))
    signs = random_signs(width, 7)
    x = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    rotation = Hadamard("hadamard:7", signs)
    y = rotation.forward(x, (0, 0))
    assert np.allclose(y, (x * signs) @ matrix.T, atol=1e-5)
    assert np.allclose(rotation.back(y, (0, 0)), x, atol=1e-5)
    assert set(np.unique(signs)) <= {-1, 1}


def test_smooth_scales_are_those_of_the_published_code() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    act, weight = np.abs(rng.normal(size=(2, 3, 50))).astype(np.float32), np.abs(rng.normal(size=(2, 3, 50)))
    act[0, 0, :3], weight[0, 0, 1:5] = 0, 0
    for alpha in (0.0, 0.5, 0.85, 1.0):
        # mit-han-lab/smoothquant, smooth.py, smooth_ln_fcs
        act_scales = torch.from_numpy(act)
        weight_scales = torch.from_numpy(weight.astype(np.float32)).clamp(min=1e-5)
        expected = (act_scales.clamp(min=1e-5).pow(alpha) / weight_scales.pow(1 - alpha)).clamp(min=1e-5)
        assert np.allclose(smooth_scales(act, weight.astype(np.float32), alpha), expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("int3-token", "3 bits; expected 4 to 8"),
        ("int9-tensor", "9 bits"),
        ("int4-group0", "groups of 0"),
        ("int8", "expected intB-tensor"),
        ("fp6-token", "expected intB-tensor"),
        ("INT8-token", "expected intB-tensor"),
        ("int08-token", "expected intB-tensor"),
        ("int\u0668-token", "expected intB-tensor"),  # an Arabic 8
        ("int4-group64", "groups of 64 features, and the model is 48 wide"),
    ],
)
def test_schemes_that_are_none(name: str, told: str) -> None:
    with pytest.raises(OutliersError, match=told):
        schemes_for([name], 48)


@pytest.mark.parametrize("name", ["smooth", "smooth:2", "smooth:x", "smooth:-0.1", "smooth:nan", "rotate", "none:1"])
def test_transforms_that_are_none(name: str) -> None:
    with pytest.raises(OutliersError, match=r"transform is .*; expected"):
        parse_transform(name)


def test_bits_count_the_scales_and_what_is_kept() -> None:
    assert scheme("int8-tensor").bits(64) == 8
    assert scheme("int8-token").bits(64) == 8.25
    assert scheme("int4-group32").bits(64) == 4.5
    assert scheme("mxfp4").bits(64) == 4.25
    assert scheme("nvfp4").bits(64) == 4.5
    assert scheme("int4-group32").bits(64, 0.5) == 10.25


def test_default_schemes_leave_out_groups_wider_than_the_model() -> None:
    assert [one.name for one in schemes_for(None, 128)] == list(DEFAULT_SCHEMES)
    assert [one.name for one in schemes_for(None, 24)] == [n for n in DEFAULT_SCHEMES if "group" not in n]
