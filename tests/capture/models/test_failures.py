"""Each reason why a model cannot be loaded is one line, whatever a library raises for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from capture.errors import OutliersError  # noqa: E402
from capture.estimate import estimate  # noqa: E402
from capture.models.load import load_config, load_model  # noqa: E402
from capture.sites.place import sites_from_config  # noqa: E402
from tests.conftest import tiny_llama  # noqa: E402
from tests.hub import connect, serving  # noqa: E402

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("model_type", ["gemma3n", "perception_lm", "fast_vlm"])
def test_a_model_that_needs_a_package_says_which(model_type: str) -> None:
    with pytest.raises(OutliersError, match="timm") as caught:
        sites_from_config(transformers.AutoConfig.for_model(model_type))
    assert "\n" not in str(caught.value)


# Text of a config.json, and what its line says.
CONFIGURATIONS: dict[str, str] = {
    "cut off": "{",
    "empty": "",
    "a list": "[]",
    "a number": "3",
    "no model type": "{}",
    "an unknown type": '{"model_type": "nothing"}',
    "a type that is no text": '{"model_type": ["llama"]}',
    "a width that is text": json.dumps({**LLAMA, "hidden_size": "64"}),
    "a negative width": json.dumps({**LLAMA, "hidden_size": -64}),
    "no heads": json.dumps({**LLAMA, "num_attention_heads": 0}),
    "heads that do not divide": json.dumps({**LLAMA, "hidden_size": 65}),
    "no vocabulary": json.dumps({**LLAMA, "vocab_size": None}),
    "an unknown activation": json.dumps({**LLAMA, "hidden_act": "nope"}),
    "an unknown position code": json.dumps({**LLAMA, "rope_scaling": {"rope_type": "what"}}),
    "a text configuration that is none": '{"model_type": "llava", "text_config": 7}',
    "a text configuration of an unknown type": '{"model_type": "llava", "text_config": {"model_type": "nope"}}',
    "nested too deep": '{"a":' * 100_000,
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_is_none_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(CONFIGURATIONS[name])
    for ask in (lambda model: sites_from_config(load_config(model)), load_model, estimate):
        with pytest.raises(OutliersError) as caught:
            ask(f"random:{path}")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000000\n"


def sharded(folder: Path) -> None:
    """The weights in several files, with an index."""
    (folder / "model.safetensors").unlink()
    tiny_llama().save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def pointing(folder: Path) -> None:
    sharded(folder)
    sorted(folder.glob("model-*.safetensors"))[1].write_text(POINTER)


def without_index(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


def linked(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "0123")


def untokenized(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def quantised(settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))

    return change


# What is done to a sound checkpoint, and words of the line that its capture is refused with.
FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled weights": (pickled, "pickled ones, which can run code, are never loaded"),
    "a pointer of git lfs": (lambda f: (f / "model.safetensors").write_text(POINTER), "git lfs pull"),
    "a shard that points": (pointing, "git lfs pull"),
    "a shard that is missing": (without_a_shard, "of which 1 are missing, such as model-00002"),
    "an index without a map": (without_index, "has no weight_map"),
    "a link to nowhere": (linked, "is a link to weights that are not there"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "a configuration but no weights"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "is cut off or no safetensors file"),
    "text for weights": (lambda f: (f / "model.safetensors").write_text("<html>" * 9), "is cut off or no safetensors"),
    "an adapter": (adapter, "holds an adapter, which is no model by itself"),
    "no tokenizer": (untokenized, "has no tokenizer; expected its files beside the weights"),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot load the tokenizer"),
    "bitsandbytes": (quantised({"quant_method": "bitsandbytes", "load_in_4bit": True}), "pip install 'bitsandbytes'"),
    "awq": (quantised({"quant_method": "awq", "bits": 4, "group_size": 8}), "pip install 'gptqmodel'"),
    "gptq": (quantised({"quant_method": "gptq", "bits": 4, "group_size": 8}), "pip install 'optimum'"),
    "torchao": (quantised({"quant_method": "torchao", "quant_type": "int8wo"}), "pip install 'torchao'"),
    "a quantiser that needs a GPU": (quantised({"quant_method": "spqr"}), "run on one, or choose a checkpoint without"),
    "a quantisation that is none": (quantised(7), "cannot load the model"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_each_cause_has_its_own_line(name: str, checkpoint: Path, tmp_path: Path) -> None:
    damage, words = FOLDERS[name]
    folder = tmp_path / "m"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(OutliersError) as caught:
        load_model(str(folder))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_weights_of_the_hub_say_so(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    shutil.copytree(checkpoint, folder)
    pickled(folder)
    with serving(folder, "org/old") as hub:
        connect(hub, tmp_path / "cache", monkeypatch)
        with pytest.raises(OutliersError, match="pickled ones, which can run code, are never loaded"):
            load_model("org/old")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small GGUF file with metadata and one tensor."""
    import numpy as np
    from gguf import GGUFWriter

    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(24)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((8, 24), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


GGUF: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda b: b"", "is no GGUF file or cut off"),
    "another kind of file": (lambda b: b"PK\3\4" + b[4:], "is no GGUF file"),
    "a pointer": (lambda b: POINTER.encode(), "git lfs pull"),
    "cut within the header": (lambda b: b[:15], "cut off"),
    "a version to come": (lambda b: b[:4] + b"\x63\0\0\0" + b[8:], "GGUF of version 99; expected 2 or 3"),
    "the first version": (lambda b: b[:4] + b"\1\0\0\0" + b[8:], "GGUF of version 1; expected 2 or 3"),
    "the other byte order": (lambda b: b[:4] + b"\0\0\0\3" + b[8:], "GGUF of version"),
    "more tensors than bytes": (lambda b: b[:8] + b"\xff" * 8 + b[16:], "names more than it can hold"),
    "more entries than bytes": (lambda b: b[:16] + b"\xff" * 6 + b"\0\0" + b[24:], "names more than it can hold"),
    "cut within the metadata": (lambda b: b[:70], ""),
    "a kind of value that is none": (lambda b: b[:52] + b"\xff" * 4 + b[56:], ""),
    "a name longer than the file": (lambda b: b[:24] + b"\xff" * 7 + b"\0" + b[32:], ""),
    "a name that is no text": (lambda b: b[:32] + b"\xff\xfe\xff" + b[35:], ""),
    "cut within the tensors": (lambda b: b[:-700], ""),
    "too little for a model": (lambda b: b, ""),
}


@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_file_that_is_none_is_one_line(name: str, gguf: bytes, tmp_path: Path) -> None:
    damage, words = GGUF[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(damage(gguf))
    for ask in (load_model, load_config, estimate):
        if ask is load_config and not words:
            continue  # it needs the metadata alone
        with pytest.raises(OutliersError) as caught:
            ask(str(path))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_words_of_libraries_are_cut_between_words() -> None:
    from capture.errors import in_one_line

    assert in_one_line(ValueError("a\n  b")) == "a b"
    assert in_one_line(ValueError()) == "ValueError"
    told = in_one_line(ValueError("word " * 100))
    assert told.endswith("word ...")
    assert len(told) < 310
