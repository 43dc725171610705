"""The schemes against torchao's own quantisers on the CPU; run where torchao is installed beside torch.

Bit for bit, but where torchao computes otherwise: it multiplies by the reciprocal of an integer's scale, which sends a
value in the middle of two steps to the other one now and then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from analyze.quantization.schemes import scheme  # noqa: E402


@pytest.fixture(params=["normal", "heavy", "outlier"])
def x(request: pytest.FixtureRequest) -> Any:
    rng = np.random.default_rng(7)
    values = {
        "normal": lambda: rng.normal(size=(64, 128)),
        "heavy": lambda: rng.standard_t(2, size=(64, 128)),
        "outlier": lambda: rng.normal(size=(64, 128)) * np.where(np.arange(128) == 5, 80, 1),
    }[request.param]()
    return torch.from_numpy(values.astype(np.float32))


def ours(name: str, x: Any) -> np.ndarray:
    values = x.numpy()
    return scheme(name).quantised(values.copy(), np.abs(values).max())


@pytest.mark.parametrize(("name", "block"), [("int8-token", 128), ("int4-token", 128), ("int4-group32", 32)])
def test_integers(name: str, block: int, x: Any) -> None:
    from torchao.quantization.quant_primitives import dequantize_affine, quantize_affine

    top = int(scheme(name).element.largest)
    scale = x.reshape(64, -1, block).abs().amax(dim=2) / top
    zero = torch.zeros_like(scale, dtype=torch.int32)
    codes = quantize_affine(x, (1, block), scale, zero, torch.int8, -top, top)
    theirs = dequantize_affine(codes, (1, block), scale, zero, torch.int8, -top, top).numpy()
    found = ours(name, x)
    steps = scale.repeat_interleave(block, dim=1).numpy()
    other = np.abs(theirs - found) > steps * 1e-3
    quotient = np.abs(x.numpy() / steps)[other]
    assert (np.abs(quotient - np.floor(quotient) - 0.5) < 1e-4).all()
    assert other.mean() < 1e-3
    assert np.allclose(theirs[~other], found[~other], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "dtype"), [("mxfp8", "float8_e4m3fn"), ("mxfp4", "float4_e2m1fn_x2")])
def test_microscaling(name: str, dtype: str, x: Any) -> None:
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    kind = getattr(torch, dtype)
    scale, codes = to_mx(x, kind, 32)
    theirs = to_dtype(codes, scale.reshape(64, -1), kind, 32, torch.float32)
    assert np.array_equal(theirs.numpy(), ours(name, x))


def test_nvfp4(x: Any) -> None:
    from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32, unpack_uint4
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

    whole = per_tensor_amax_to_scale(x.abs().max())
    scales, packed = nvfp4_quantize(x, 16, whole)
    values = f4_unpacked_to_f32(unpack_uint4(packed.view(torch.uint8))).reshape(64, -1, 16)
    theirs = (values * (scales.float().reshape(64, -1, 1) * whole)).reshape(64, -1).numpy()
    # torchao keeps the scale of a block from becoming less than the least normal e4m3; none of these is so small.
    assert np.array_equal(theirs, ours("nvfp4", x))
