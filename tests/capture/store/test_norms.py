from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from capture.errors import OutliersError
from capture.store.norms import derive_norm_output, rounded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402
from transformers.models.cohere.modeling_cohere import CohereLayerNorm  # noqa: E402
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm  # noqa: E402
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402
from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm  # noqa: E402
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P  # noqa: E402
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm  # noqa: E402
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm  # noqa: E402
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNorm  # noqa: E402

from capture.sites.norms import NormForm, norm_form  # noqa: E402
from capture.sites.place import find_sites, norm_parameters  # noqa: E402
from tests.architectures import ARCHITECTURES, EACH, HIDDEN, VOCABULARY  # noqa: E402

pytestmark = pytest.mark.capture

WIDTH = 512

VARIANTS: dict[str, tuple[Callable[[], Any], NormForm]] = {
    "llama": (lambda: LlamaRMSNorm(WIDTH, 1e-5), NormForm("rms", 1e-5, 0.0, "normalized", "weight", None)),
    "gemma": (lambda: Gemma2RMSNorm(WIDTH), NormForm("rms", 1e-6, 1.0, "last", "weight", None)),
    "qwen3_next": (lambda: Qwen3NextRMSNorm(WIDTH), NormForm("rms", 1e-6, 1.0, "last", "weight", None)),
    "gpt_oss": (lambda: GptOssRMSNorm(WIDTH, 1e-5), NormForm("rms", 1e-5, 0.0, "last", "weight", None)),
    "olmo2": (lambda: Olmo2RMSNorm(WIDTH), NormForm("rms", 1e-6, 0.0, "last", "weight", None)),
    "rms without weight": (lambda: Llama4TextL2Norm(1e-6), NormForm("rms", 1e-6, 0.0, "last", None, None)),
    "layer": (lambda: nn.LayerNorm(WIDTH, 1e-5), NormForm("layer", 1e-5, 0.0, "last", "weight", "bias")),
    "layer without bias": (
        lambda: nn.LayerNorm(WIDTH, 1e-6, bias=False),
        NormForm("layer", 1e-6, 0.0, "last", "weight", None),
    ),
    "cohere": (lambda: CohereLayerNorm(WIDTH), NormForm("layer", 1e-5, 0.0, "last", "weight", None)),
    "olmo": (lambda: OlmoLayerNorm(WIDTH), NormForm("layer", 1e-5, 0.0, "last", None, None)),
    "nemotron": (lambda: NemotronLayerNorm1P(WIDTH), NormForm("layer", 1e-5, 1.0, "weight", "weight", "bias")),
    "large epsilon": (lambda: nn.RMSNorm(WIDTH, 0.5), NormForm("rms", 0.5, 0.0, "last", "weight", None)),
}


def stream(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """A residual stream with a few outlier features, one of them of one sign, and a faint row."""
    generator = torch.Generator().manual_seed(7)
    values = 2.0 * torch.randn(rows, width, generator=generator)
    values[:, 3] *= 40.0
    values[:, 11] += 300.0
    values[0] *= 1e-3
    return values.to(dtype)


def randomised(module: Any, dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(11)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.to(dtype)


def derived(module: Any, form: NormForm, values: torch.Tensor) -> np.ndarray:
    parameters = {name: parameter.detach().float().numpy() for name, parameter in module.named_parameters()}
    return derive_norm_output(
        values.float().numpy(),
        parameters.get(form.weight or ""),
        parameters.get(form.bias or ""),
        form.kind,
        form.epsilon,
        form.weight_offset,
        str(values.dtype).removeprefix("torch."),
        rounding=form.rounding,
    )


def steps(values: np.ndarray) -> np.ndarray:
    """Index of each bfloat16 value among all of them, so that neighbours differ by one."""
    bits = (values.astype(np.float32).view(np.int32) >> 16).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def assert_same_but_for_rounding(own: np.ndarray, other: np.ndarray, rounding: str) -> None:
    """All but 1 in 10,000 bfloat16 values equal (but one at least may differ), those off by one rounding step.

    Where the normalised value is rounded before the weight multiplies it, one step of the former can be two of the
    product: a step is 1/128 of a value just above a power of two and 1/256 of one just below.

    A value that is the remainder of a cancellation, x - mean for x close to the mean or a sum with the bias, carries
    float32's own error, which no order of rounding can repeat: there, a float32 step of the terms is granted.
    """
    different = own != other
    assert different.sum() <= max(1, 1e-4 * own.size)
    apart = np.abs(steps(own) - steps(other)) > (2 if rounding == "normalized" else 1)
    assert np.abs(own - other)[apart].max(initial=0.0) <= 1e-6


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_norm_is_known_by_what_it_does(name: str, device: str) -> None:
    make, form = VARIANTS[name]
    assert norm_form(make().to(device), WIDTH) == form


@pytest.mark.parametrize("name", VARIANTS)
def test_derived_output_in_float32(name: str) -> None:
    make, form = VARIANTS[name]
    module = randomised(make(), torch.float32)
    values = stream(200, WIDTH, torch.float32)
    with torch.no_grad():
        own = module(values).numpy()
    np.testing.assert_allclose(derived(module, form, values), own, rtol=1e-5, atol=1e-5 * np.abs(own).mean())


@pytest.mark.parametrize("name", VARIANTS)
def test_derived_output_in_bfloat16(name: str) -> None:
    make, form = VARIANTS[name]
    module = randomised(make(), torch.bfloat16)
    values = stream(400, WIDTH, torch.bfloat16)
    with torch.no_grad():
        own = module(values)
    assert own.dtype == torch.bfloat16
    assert_same_but_for_rounding(own.float().numpy(), derived(module, form, values), form.rounding)


@pytest.mark.parametrize("name", VARIANTS)
def test_derived_output_in_float16(name: str) -> None:
    make, form = VARIANTS[name]
    module = randomised(make(), torch.float16)
    values = stream(100, WIDTH, torch.float16)
    with torch.no_grad():
        own = module(values).float().numpy()
    result = derived(module, form, values)
    assert (own != result).mean() < 1e-3
    np.testing.assert_allclose(result, own, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma", "nemotron"])
def test_the_order_of_rounding_matters(name: str) -> None:
    """The wrong order would be seen: the tests above could fail."""
    make, form = VARIANTS[name]
    module = randomised(make(), torch.bfloat16)
    values = stream(400, WIDTH, torch.bfloat16)
    with torch.no_grad():
        own = module(values).float().numpy()
    wrong = "last" if form.rounding != "last" else "normalized"
    parts = (form.kind, form.epsilon, form.weight_offset, wrong, form.weight, form.bias)
    assert (derived(module, NormForm(*parts), values) != own).mean() > 1e-3


@pytest.mark.parametrize(
    "module",
    [
        nn.Identity(),
        nn.Dropout(),
        nn.ReLU(),
        nn.GELU(),
        nn.SiLU(),
        nn.Softmax(-1),
        nn.Tanh(),
        nn.Linear(HIDDEN, 1),
        nn.Linear(HIDDEN, HIDDEN),
        nn.GroupNorm(4, HIDDEN),
        nn.Sequential(nn.LayerNorm(HIDDEN), nn.Tanh()),
        nn.Embedding(1, HIDDEN),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_no_norm_is_not_taken_for_one(module: Any) -> None:
    assert norm_form(module, HIDDEN) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rounding_is_that_of_torch_for_every_kind_of_bit_pattern(dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (bits[:1000] & 0xFFFF0000) | 0x8000
    values = np.concatenate([bits, ties, np.array([0, 1 << 31, 0x7F800000, 0xFF800000], np.uint32)]).view(np.float32)
    wanted = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(rounded(values, dtype), wanted)


def test_what_cannot_be_derived_is_refused() -> None:
    values = np.ones((2, 4), np.float32)
    with pytest.raises(OutliersError, match="expected"):
        derive_norm_output(values, None, None, "batch", 1e-5, 0.0, "float32")
    with pytest.raises(OutliersError, match="unknown"):
        derive_norm_output(values, None, None, "rms", 1e-5, 0.0, "float32", rounding="unknown")
    with pytest.raises(OutliersError, match="float64"):
        derive_norm_output(values, None, None, "rms", 1e-5, 0.0, "float64")


def test_kind_none_changes_nothing() -> None:
    values = stream(3, 16, torch.float32).numpy()
    np.testing.assert_array_equal(derive_norm_output(values, np.ones(16), None, "none", None, 0.0, "bfloat16"), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", EACH)
def test_derived_output_is_what_the_sublayers_of_every_architecture_receive(name: str, dtype: torch.dtype) -> None:
    model = ARCHITECTURES[name].build(dtype)
    found = find_sites(model)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for site in (*found.sites, found.final):
        if site.kind != "none":
            model.get_submodule(site.module).register_forward_hook(
                lambda _, args, output, path=site.module: seen.__setitem__(path, (args[0], output))
            )
    with torch.no_grad():
        model(input_ids=(torch.arange(1, 721) % VOCABULARY).reshape(8, 90), use_cache=False)
    own, other = [], []
    for site in (*found.sites, found.final):
        if site.kind == "none":
            continue
        entering, leaving = (tensor.float().numpy() for tensor in seen[site.module])
        weight, bias = norm_parameters(model, site)
        own.append(leaving.ravel())
        other.append(
            derive_norm_output(
                entering, weight, bias, site.kind, site.epsilon, site.weight_offset, str(dtype)[6:], site.rounding
            ).ravel()
        )
    if not own:
        return
    if dtype == torch.float32:
        np.testing.assert_allclose(np.concatenate(other), np.concatenate(own), rtol=1e-5, atol=1e-5)
    else:
        assert_same_but_for_rounding(np.concatenate(own), np.concatenate(other), found.final.rounding)


def test_parameters_are_those_of_the_model() -> None:
    model = ARCHITECTURES["gpt2"].build()
    site = find_sites(model).sites[0]
    weight, bias = norm_parameters(model, site)
    norm = model.transformer.h[0].ln_1
    np.testing.assert_array_equal(weight, norm.weight.detach().numpy())
    assert bias is not None
    np.testing.assert_array_equal(bias, norm.bias.detach().numpy())
    assert weight.dtype == bias.dtype == np.float32


@pytest.mark.parametrize("name", ["olmo", "olmo2"])
def test_weights_are_ones_where_there_are_none(name: str) -> None:
    model = ARCHITECTURES[name].build()
    weight, bias = norm_parameters(model, find_sites(model).sites[0])
    np.testing.assert_array_equal(weight, np.ones(HIDDEN, np.float32))
    assert bias is None


def test_parameters_of_a_model_without_weights_are_refused() -> None:
    with torch.device("meta"):
        model = ARCHITECTURES["gpt2"].build()
    with pytest.raises(OutliersError, match="weights"):
        norm_parameters(model, find_sites(model).sites[0])
