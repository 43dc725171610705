"""Configurations with random weights: repeatable, readable as bytes, and never to be taken for the real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from capture.errors import OutliersError  # noqa: E402
from capture.models.load import load_config, load_model  # noqa: E402
from capture.run import capture  # noqa: E402
from capture.store.write import StoreWriter  # noqa: E402

SHAPE = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(SHAPE))
    return path


def test_the_same_weights_every_time_and_the_caller_keeps_their_own_dice(shape: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = (load_model(f"random:{shape}") for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert len(one.model.state_dict()) > 10
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, two.model.state_dict()[name])
    assert one.model.model.layers[1].mlp.up_proj.weight.std() > 0.01
    assert not one.model.training
    assert not any(parameter.requires_grad for parameter in one.model.parameters())


def test_a_store_says_that_the_weights_are_random(shape: Path, tmp_path: Path) -> None:
    store = capture(
        f"random:{shape}", tmp_path / "s.zarr", text="python-docs", sequences=2, length=20, dtype="bfloat16"
    )
    attributes = StoreWriter(store).attributes
    assert attributes["model_id"] == f"random:{shape}"
    assert attributes["random_weights"] == "seed 0, drawn on cpu; bytes as tokens"
    assert attributes["compute_dtype"] == "bfloat16"
    assert attributes["bos"] is False


def test_a_checkpoint_can_give_its_shape_and_says_nothing_of_random_weights_itself(checkpoint: Path) -> None:
    with pytest.raises(OutliersError, match="a vocabulary of 64, and random weights read bytes as tokens"):
        load_model(f"random:{checkpoint}")
    assert "random_weights" not in load_model(str(checkpoint)).attributes


def test_bytes_are_tokens(shape: Path) -> None:
    tokenizer = load_model(f"random:{shape}").tokenizer
    text = "naïve ☃\n\x00 end"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == 256


def test_the_digest_is_that_of_the_configuration(shape: Path, tmp_path: Path) -> None:
    revision = load_model(f"random:{shape}").attributes["model_revision"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**SHAPE, "intermediate_size": 32}))
    assert load_model(f"random:{other}").attributes["model_revision"] != revision
    other.write_text(json.dumps(SHAPE, indent=3))
    assert load_model(f"random:{other}").attributes["model_revision"] == revision


def test_a_configuration_alone_is_no_checkpoint(shape: Path, tmp_path: Path) -> None:
    assert load_config(str(shape)).hidden_size == 16
    with pytest.raises(OutliersError, match=f"{shape} is a configuration without weights; .* random:{shape}"):
        load_model(str(shape))
    with pytest.raises(OutliersError, match="no configuration at"):
        load_model(f"random:{tmp_path}/no.json")
    with pytest.raises(OutliersError, match="no model at"):
        load_model("random:./nowhere")
