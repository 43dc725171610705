"""Small models and texts that the capture tests share, and a cache folder that is nobody's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

with contextlib.suppress(ModuleNotFoundError):
    import torch

    torch.set_num_threads(1)  # threads that wait for each other cost tiny models most of their time

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")


def tiny_tokenizer(*, bos: bool = False, eos: bool = True) -> Any:
    """A word-level tokenizer over `WORDS`; token 0 is unknown, 1 is BOS, 2 is end of text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("<unk>", "<s>", "<end>", *WORDS))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"unk_token": "<unk>"} | ({"bos_token": "<s>"} if bos else {}) | ({"eos_token": "<end>"} if eos else {})
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def tiny_llama(dtype: str = "float32", layers: int = 3, seed: int = 0) -> Any:
    """A Llama of 24 features with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
            else:
                parameter.mul_(8)  # the tests want values on both sides of a threshold
    return model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what is exhaustive out of what is quick, too."""
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker("slow")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Views are kept away from those of whoever runs the tests, and from those of other tests' stores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer, as `save_pretrained` writes them."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 600 words."""
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text(" ".join(WORDS[(i * i + i // 7) % len(WORDS)] for i in range(600)))
    return path
