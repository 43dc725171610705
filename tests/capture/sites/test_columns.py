"""Sizes of the weights that read each norm, against the parameters that reading each architecture's code names."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from capture.sites.columns import UnreadableWeightsError, weight_columns  # noqa: E402
from capture.sites.place import find_sites  # noqa: E402
from tests.architectures import ARCHITECTURES, EACH, HIDDEN  # noqa: E402

# Written from the modeling code: the first maps of mixers, then those of feed-forward parts, routers included.
MIXER = (
    r"(q_proj|k_proj|v_proj|v_proj_current|v_proj_delayed|query_key_value|c_attn|qkv_proj|Wqkv|q_a_proj|kv_a_proj_with_mqa"
    r"|in_proj\w*|query|key|value|output_gate)\.weight"
)
FEED_FORWARD = (
    r"((gate_proj|up_proj|gate_up_proj|gate|gate\.down_proj|router|router\.layer|shared_expert_gate|c_fc|fc_in"
    r"|(?<!router_mlp\.)fc1|dense_h_to_4h|intermediate\.dense|feed_forward\.w[13]|shared_mlp\.input_linear)\.weight|experts\.(gate_)?up_proj|experts\.mlp\.(w1|v1))"
)
FIRST_AXIS = {"gpt2": r"c_attn|c_fc"}  # Conv1D multiplies from the right
MIDDLE_AXIS = {"gpt_oss": r"experts", "llama4_text": r"experts"}  # (expert, feature, output)


def named(name: str, model: Any, block: str, part: str) -> list[np.ndarray]:
    """Matrices (output, feature) of a block that read one of its norms."""
    pattern = {"attn": MIXER, "mlp": FEED_FORWARD, "block": f"({MIXER}|{FEED_FORWARD})"}[part]
    found = []
    for path, parameter in model.get_submodule(block).named_parameters():
        if parameter.dim() < 2 or not re.search(rf"(^|\.){pattern}$", path):
            continue
        values = parameter.detach().double().numpy()
        if re.search(FIRST_AXIS.get(name, "(?!)"), path):
            values = values.T
        if re.search(MIDDLE_AXIS.get(name, "(?!)"), path):
            values = values.swapaxes(1, 2)
        found.append(values.reshape(-1, HIDDEN))
    return found


def sizes(matrices: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Largest magnitude and Euclidean norm of each column."""
    stacked = np.concatenate(matrices)
    return np.abs(stacked).max(axis=0), np.sqrt((stacked**2).sum(axis=0))


def assert_sizes(columns: Any, cell: tuple[int, int], matrices: list[np.ndarray]) -> None:
    peak, norm = sizes(matrices)
    np.testing.assert_array_equal(columns.peak[cell], peak)
    np.testing.assert_allclose(columns.norm[cell], norm, rtol=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_the_columns_are_those_of_the_named_parameters(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    with torch.no_grad():  # every column another size, so that no two axes can be taken for each other
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1 + torch.arange(parameter.shape[-1]) / 16)
    placed = find_sites(model)
    columns = weight_columns(model, placed)
    assert columns.peak.dtype == columns.norm.dtype == np.float32
    for site in placed.sites:
        block = architecture.blocks.format(site.layer)
        matrices = [m for part in site.name.split("_")[1:] for m in named(name, model, block, part)]
        assert_sizes(columns, (site.layer, placed.names.index(site.name)), matrices)


def tiny(name: str) -> Any:
    return ARCHITECTURES[name].build()


def test_fused_experts_count_whole_whoever_was_sent_a_token() -> None:
    """One planted weight in every expert, router and shared expert, added up by hand."""
    model = tiny("qwen2_moe")
    mlp = model.model.layers[0].mlp
    first = (mlp.gate.weight, mlp.shared_expert_gate.weight, mlp.shared_expert.gate_proj.weight)
    with torch.no_grad():
        for weight in (*first, mlp.shared_expert.up_proj.weight, mlp.experts.gate_up_proj):
            weight.zero_()
        for weight, value in zip(first, (1.0, 2.0, -4.0), strict=True):
            weight[0, 5] = value
        mlp.experts.gate_up_proj[:, 7, 5] = torch.tensor([8.0, 16.0, -32.0, 64.0])
        mlp.experts.gate_up_proj[2, 40, 6] = -3.0
    columns = weight_columns(model, find_sites(model))
    assert np.flatnonzero(columns.peak[0, 1]).tolist() == [5, 6]
    assert columns.peak[0, 1, 5] == 64
    assert columns.norm[0, 1, 5] == np.float32(np.sqrt(1 + 4 + 16 + 64 + 256 + 1024 + 4096))
    assert columns.norm[0, 1, 6] == 3


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "jamba"])
def test_how_experts_are_multiplied_makes_no_difference(name: str, implementation: str) -> None:
    model = tiny(name)
    model.config._experts_implementation = implementation
    columns = weight_columns(model, find_sites(model))
    block = ARCHITECTURES[name].blocks.format(1)
    assert_sizes(columns, (1, 1), named(name, model, block, "mlp"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
def test_parts_of_a_matrix_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capture.sites.columns._ELEMENTS", {"cuda": 7 * HIDDEN})  # which divides no number of rows
    model = tiny(name)
    columns = weight_columns(model, find_sites(model))
    block = ARCHITECTURES[name].blocks.format(1)
    assert_sizes(columns, (1, 1), named(name, model, block, "mlp"))


def test_bfloat16_weights_are_measured_in_float32() -> None:
    model = ARCHITECTURES["llama"].build(torch.bfloat16)
    columns = weight_columns(model, find_sites(model))
    assert_sizes(columns, (0, 0), named("llama", model.float(), "model.layers.0", "attn"))


class Listed(nn.Module):
    """Experts one by one, of which few tokens meet few."""

    def __init__(self, count: int, make: Any) -> None:
        super().__init__()
        self.experts = nn.ModuleList(make() for _ in range(count))
        self.back = nn.Linear(32, HIDDEN)

    def forward(self, x: Any) -> Any:
        flat = x.reshape(-1, HIDDEN)
        out = torch.zeros_like(flat)
        for number in range(2):
            out[number::2] = self.back(self.experts[number * 3](flat[number::2]))
        return out.reshape(x.shape)


def test_listed_experts_count_whole_too() -> None:
    model = tiny("llama")
    experts = Listed(7, lambda: nn.Linear(HIDDEN, 32))
    model.model.layers[1].mlp = experts
    columns = weight_columns(model, find_sites(model))
    matrices = [expert.weight.detach().double().numpy() for expert in experts.experts]
    assert_sizes(columns, (1, 1), matrices)


class Packed(nn.Module):
    """A map of 8-bit weights with a scale for each row, unpacked at every call, with a large bias."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-127, 128, (outputs, features), dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.rand(outputs, 1) / 127, requires_grad=False)
        self.bias = nn.Parameter(torch.full((outputs,), 1000.0), requires_grad=False)

    def unpacked(self) -> Any:
        return self.weight * self.scale

    def forward(self, x: Any) -> Any:
        return nn.functional.linear(x, self.unpacked()) + (0 if self.bias is None else self.bias)


def test_packed_weights_are_what_the_module_unpacks() -> None:
    model = tiny("llama")
    attention = model.model.layers[0].self_attn
    attention.k_proj, attention.v_proj = Packed(HIDDEN, 32), Packed(HIDDEN, 32)
    columns = weight_columns(model, find_sites(model))
    packed = [module.unpacked().double().numpy() for module in (attention.k_proj, attention.v_proj)]
    assert_sizes(columns, (0, 0), [attention.q_proj.weight.detach().double().numpy(), *packed])
    assert attention.k_proj.bias is not None


def test_gguf_blocks_are_what_the_module_unpacks() -> None:
    gguf = pytest.importorskip("gguf")
    utils = pytest.importorskip("transformers.integrations.gguf.utils")
    model = tiny("llama")
    mlp = model.model.layers[0].mlp
    kind = gguf.GGMLQuantizationType.Q8_0
    blocks = gguf.quantize(mlp.up_proj.weight.detach().numpy(), kind)
    expected = [mlp.gate_proj.weight.detach().double().numpy(), gguf.dequantize(blocks, kind).astype(np.float64)]
    mlp.up_proj = utils.GgufLinear(HIDDEN, 96, int(kind))
    mlp.up_proj.weight.data.copy_(torch.from_numpy(blocks))
    assert_sizes(weight_columns(model, find_sites(model)), (0, 1), expected)


def test_weights_that_are_kept_elsewhere_are_measured_as_they_come() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny("qwen3_moe")
    placed = find_sites(model)
    expected = weight_columns(model, placed)
    offloaded = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    found = weight_columns(offloaded, placed)
    np.testing.assert_array_equal(found.peak, expected.peak)
    np.testing.assert_array_equal(found.norm, expected.norm)


class Kernel(nn.Module):
    """Experts whose weights go into a kernel that shows no product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, HIDDEN, HIDDEN))

    def forward(self, x: Any) -> Any:
        return torch.from_numpy(np.maximum(x.numpy() @ self.weight.detach().numpy()[0], 0))


class Router(nn.Module):
    """A feed-forward part of a router that is seen and experts that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(HIDDEN, 4), Kernel()

    def forward(self, x: Any) -> Any:
        return self.experts(x) * self.router(x)[..., :1]


def test_what_hides_its_weights_is_named_and_nothing_is_made_up() -> None:
    model = tiny("llama")
    model.model.layers[1].mlp = Router()
    with pytest.raises(UnreadableWeightsError) as caught:
        weight_columns(model, find_sites(model))
    assert str(caught.value) == (
        "model.layers.1.mlp.experts (Kernel) reads ln_mlp and is no linear map: its answers do not add up"
    )
