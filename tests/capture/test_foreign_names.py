"""Names inside other libraries that the code asks for without insisting: where one goes, a test fails and not a rule.

`getattr(x, "_name", None)` and `hasattr(x, "_name")` go on silently when a library drops the name. Each is listed here
with what it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from tests.conftest import tiny_llama  # noqa: E402

ROOT = Path(__file__).parents[2]
GUARDED = re.compile(r"(?:getattr|hasattr)\(\s*[\w.\[\]()]+,\s*\"(_\w+)\"")


def attention_is_chosen_by_it() -> None:
    model = tiny_llama()
    for name, given in (("eager", True), ("sdpa", False)):
        model.config._attn_implementation = name
        result, weights = model.model.layers[0].self_attn(
            hidden_states=torch.zeros(1, 3, 24),
            position_embeddings=(torch.ones(1, 3, 6), torch.zeros(1, 3, 6)),
            attention_mask=None,
        )
        assert result.shape == (1, 3, 24)
        assert (weights is not None) == given


def offloading_leaves_it() -> None:
    model = tiny_llama()
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    hook = model.get_input_embeddings()._hf_hook
    assert torch.device(hook.execution_device) == torch.device("cpu")


PROOFS: dict[str, Callable[[], None]] = {
    "_attn_implementation": attention_is_chosen_by_it,
    "_hf_hook": offloading_leaves_it,
}


@pytest.mark.parametrize("name", PROOFS)
def test_the_name_still_means_what_it_stands_for(name: str) -> None:
    PROOFS[name]()


def test_every_name_that_is_asked_for_is_proved() -> None:
    files = [path for folder in ("capture", "analyze") for path in (ROOT / folder).rglob("*.py")]
    asked = {name for path in files for name in GUARDED.findall(path.read_text())}
    own = {name for name in asked if name.startswith("__")}
    assert asked - own == set(PROOFS)


PUBLIC: dict[str, Callable[[], Any]] = {
    "is_causal of attention": lambda: tiny_llama().model.layers[0].self_attn.is_causal,
    "is_decoder of modules of an encoder": lambda: (
        transformers.RoFormerModel(
            transformers.RoFormerConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        )
        .encoder.layer[0]
        .attention.self.is_decoder
    ),
    "is_encoder_decoder of configurations": lambda: transformers.T5Config().is_encoder_decoder,
    "quant_method of a quantisation": lambda: transformers.GPTQConfig(bits=4).to_dict()["quant_method"],
    "the table of decoders": lambda: len(transformers.AutoModelForCausalLM._model_mapping) > 50,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_a_rule_leans_on_is_still_there(name: str) -> None:
    assert PUBLIC[name]() is not None
