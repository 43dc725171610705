"""What runs in the model is what NumPy says, to the last bit; and what others' fake quantisation does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

torch = pytest.importorskip("torch")

from analyze.quantization.elements import Element  # noqa: E402
from analyze.quantization.errors import Variant  # noqa: E402
from analyze.quantization.schemes import DEFAULT_SCHEMES, scheme  # noqa: E402
from analyze.quantization.transforms import Hadamard, Plain, Smooth, random_signs  # noqa: E402
from capture.quantization.schemes import quantised, rounded, scheme_quantised  # noqa: E402

NAMES = (*DEFAULT_SCHEMES, "int5-tensor", "int4-group3")
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 6.0, 1e-40, 1e-30, 448.0, 1e4, 1e30, 3e38, np.inf, -np.inf, np.nan)
TRANSFORMS: dict[str, Any] = {
    "none": lambda width: Plain(),
    "hadamard": lambda width: Hadamard("hadamard", random_signs(width, 0)),
    "smooth": lambda width: Smooth("smooth:0.5", np.linspace(0.3, 4, width, dtype=np.float32)[None, None]),
}


def matrices() -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 4), st.integers(1, 40))
    numbers = st.one_of(
        st.sampled_from([np.float32(number) for number in NUMBERS]).map(float), st.floats(-9, 9, width=32)
    )
    return shapes.flatmap(lambda shape: st_numpy.arrays(np.float32, shape, elements=numbers))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@given(x=matrices(), threshold=st.sampled_from([None, 0.5, 6.0]))
@settings(max_examples=12, deadline=None)
def test_both_homes_agree_value_for_value(name: str, transform: str, x: np.ndarray, threshold: float | None) -> None:
    one = scheme(name)
    variant = Variant(one, TRANSFORMS[transform](x.shape[1]), threshold if one.share == "token" else None)
    found = quantised(variant, torch.from_numpy(x[None].copy()), (0, 0))[0].numpy()
    assert np.array_equal(found, variant.applied(x, (0, 0)), equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_sequence_by_itself_in_the_dtype_of_the_model(dtype: str) -> None:
    kind = getattr(torch, dtype)
    x = torch.from_numpy(np.random.default_rng(0).standard_t(3, (3, 7, 48)).astype(np.float32)).to(kind)
    variant = Variant(scheme("int8-tensor"), Plain())
    found = quantised(variant, x, (0, 0))
    assert found.dtype == kind
    for matrix, result in zip(x, found, strict=True):
        expected = torch.from_numpy(variant.applied(matrix.float().numpy(), (0, 0))).to(kind)
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", ["e2m1", "e4m3"])
def test_small_floats_against_ml_dtypes(name: str) -> None:
    values = np.concatenate([np.linspace(-7, 7, 3_001), np.linspace(-500, 500, 3_001), [0.25, 0.75, 2.5, 5, -1.25]])
    element = Element(name, 8)
    expected = element.rounded(values.astype(np.float32))
    assert np.array_equal(rounded(element, torch.from_numpy(values.astype(np.float32))).numpy(), expected)


def test_a_token_of_eight_bits_is_torchs_fake_quantisation() -> None:
    """`fake_quantize_per_channel_affine`, a channel for each token, multiplies by the reciprocal of the scale."""
    x = torch.from_numpy(np.random.default_rng(1).standard_t(3, (200, 64)).astype(np.float32))
    for bits in (4, 8):
        top = 2 ** (bits - 1) - 1
        scale = x.abs().amax(dim=1) / top
        theirs = torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(200, dtype=torch.int32), 0, -top, top)
        ours = scheme_quantised(scheme(f"int{bits}-token"), x, x.abs().max())
        # A value in the middle of two steps may end at either, by the last bit of the quotient.
        other = theirs != ours
        quotient = (x / scale[:, None])[other].abs()
        assert ((quotient - quotient.floor() - 0.5).abs() < 1e-4).all()
        assert other.float().mean() < 1e-3
