"""Documents as sequences of their own, against plain PyTorch hooks on each document alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM  # noqa: E402

from analyze import Criteria, find_outliers  # noqa: E402
from capture.batches import equal_batches  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.run import capture  # noqa: E402
from capture.store.verify import verify  # noqa: E402
from capture.store.write import StoreWriter  # noqa: E402
from tests.architectures import ARCHITECTURES, EACH, VOCABULARY  # noqa: E402
from tests.capture.test_run import assert_same_capture, fail_at, snapshot  # noqa: E402
from tests.conftest import WORDS, tiny_llama, tiny_tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

Capture = Callable[..., Path]
LENGTHS = (7, 1, 3, 12, 2, 3, 7, 0, 5, 3)  # words
KEPT = (7, 3, 8, 2, 3, 7, 5, 3)  # tokens, cut at 8


@pytest.fixture
def prompts(tmp_path: Path, checkpoint: Path) -> Capture:
    """`capture` of documents of `LENGTHS` words."""
    lines = [{"text": " ".join(WORDS[(n + i) % len(WORDS)] for i in range(words))} for n, words in enumerate(LENGTHS)]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def call(**options: Any) -> Path:
        out = options.pop("out", tmp_path / "s.zarr")
        defaults = {"text": str(tmp_path / "prompts.jsonl"), "sequences": 99, "length": 8, "documents": True}
        return capture(str(options.pop("model", checkpoint)), out, **(defaults | options))

    return call


def alone(model: Any, path: str, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a module receives, the last time that it runs, and the losses, of one document in one plain forward pass."""
    seen: list[Any] = []
    hook = model.get_submodule(path).register_forward_hook(
        lambda module, args, kwargs, result: seen.append([*args, *kwargs.values()][0]), with_kwargs=True
    )
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False).logits[0].float()
    hook.remove()
    nll = -torch.log_softmax(logits[:-1], -1)[range(len(tokens) - 1), tokens[1:].astype(np.int64)]
    return seen[-1].reshape(len(tokens), -1).float().numpy(), nll.numpy()


def test_each_document_is_what_the_model_computes_for_it_alone(prompts: Capture, checkpoint: Path) -> None:
    store = xr.open_zarr(prompts(raw="both"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    assert store["length"].values.tolist() == list(KEPT)
    assert dict(store.sizes)["position"] == 8
    for n, length in enumerate(KEPT):
        tokens = store["token_id"].values[n]
        assert (tokens[length:] == -1).all()
        for layer in range(3):
            received, nll = alone(model, f"model.layers.{layer}.input_layernorm", tokens[:length])
            np.testing.assert_array_equal(store["norm_input"][n, layer, 0, :length], received)
        np.testing.assert_array_equal(store["nll"][n, 1:length], nll)
        assert np.isnan(store["nll"][n, length:]).all()
        for name in ("norm_input", "norm_output", "final_input", "position_peak"):
            assert np.isnan(store[name].isel(sequence=n, position=slice(length, None))).all()
    said = {"documents": 9, "documents_empty": 1, "documents_short": 1, "documents_cut": 1, "as_documents": True}
    assert {name: store.attrs[f"text_{name}"] for name in said} == said
    assert (store.attrs["text_documents_most"], store.attrs["text_documents_cut_at"]) == (99, 8)
    assert store.attrs["document_separator"] is None
    assert store.attrs["special_tokens"] == {"bos": [], "eos": [2], "special": [0, 2]}
    assert verify(store.encoding["source"]).damage == ()


@pytest.mark.parametrize("name", EACH)
def test_no_architecture_sees_other_documents_or_padding(name: str, tmp_path: Path) -> None:
    """Convolutions and linear attention too: whatever is in the batch, each document is as if it were alone."""
    from nnsight import NNsight

    from capture.batches import capture_sequences
    from capture.models.load import Loaded
    from capture.progress import Silence
    from capture.sites.place import find_sites
    from capture.store.create import create
    from capture.store.schema import Sizes

    model = ARCHITECTURES[name].build()
    placed = find_sites(model)
    rng = np.random.default_rng(0)
    length = np.array([5, 9, 5, 2], np.int32)
    tokens = rng.integers(1, VOCABULARY, (4, 9), dtype=np.int32)
    tokens[np.arange(9) >= length[:, None]] = -1
    shape = (placed.layers, len(placed.names), placed.hidden_size)
    create(
        tmp_path / "s.zarr",
        Sizes(4, placed.layers, placed.names, 9, placed.hidden_size),
        raw="input",
        attributes={},
        token_id=tokens,
        norm_weight=np.ones(shape, np.float32),
        length=length,
    )
    loaded = Loaded.__new__(Loaded)
    object.__setattr__(loaded, "model", model)
    object.__setattr__(loaded, "traced", NNsight(model))
    capture_sequences(loaded, placed, StoreWriter(tmp_path / "s.zarr"), range(4), 2, Silence())
    store = xr.open_zarr(tmp_path / "s.zarr")
    assert verify(tmp_path / "s.zarr").damage == ()
    for n, end in enumerate(length):
        received, nll = alone(model, placed.final.module, tokens[n, :end])
        np.testing.assert_allclose(store["final_input"][n, :end], received, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(store["nll"][n, 1:end], nll, rtol=1e-4, atol=1e-4)


def test_a_batch_holds_equally_long_sequences_alone() -> None:
    length = np.array([5, 3, 5, 5, 3, 9], np.int32)
    assert equal_batches(range(6), length, 2) == [[0, 2], [1, 4], [3], [5]]
    assert equal_batches(range(1, 5), length, 4) == [[1, 4], [2, 3]]
    assert equal_batches(range(6), np.full(6, 4, np.int32), 4) == [[0, 1, 2, 3], [4, 5]]


def test_batches_parts_and_interruptions_give_the_same_store(
    prompts: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prompts()
    together = prompts(out=tmp_path / "batches.zarr", batch_size=3)
    one, two = xr.open_zarr(whole), xr.open_zarr(together)
    for name in ("norm_input", "nll", "position_peak"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-4)
    for number in (2, 1, 3):
        parts = prompts(out=tmp_path / "parts.zarr", part=(number, 3))
    assert_same_capture(whole, parts)
    with monkeypatch.context() as patch:
        fail_at(patch, 9, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            prompts(out=tmp_path / "resumed.zarr")
    assert 0 < StoreWriter(tmp_path / "resumed.zarr").done().sum() < len(KEPT)
    assert_same_capture(whole, prompts(out=tmp_path / "resumed.zarr"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"documents": False, "sequences": 1}, r"documents \(True in the store, False asked for\)"),
        ({"sequences": 3}, r"sequences \(99 in the store, 3 asked for\)"),
        ({"length": 7}, r"length \(8 in the store, 7 asked for\)"),
    ],
)
def test_resuming_with_other_documents_is_refused(
    prompts: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 9, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            prompts()
    before = snapshot(tmp_path / "s.zarr")
    with pytest.raises(OutliersError, match=f"begun with another request; it differs in .*{named}"):
        prompts(**change)
    assert snapshot(tmp_path / "s.zarr") == before


def test_no_more_documents_are_read_than_asked_for(prompts: Capture, tmp_path: Path) -> None:
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write("no JSON")
    store = xr.open_zarr(prompts(sequences=2))
    assert store["length"].values.tolist() == [7, 3]
    assert (store.attrs["text_documents"], store.attrs["text_documents_short"]) == (3, 1)
    assert dict(store.sizes)["position"] == 7


def test_equally_long_documents_need_no_length(prompts: Capture) -> None:
    store = xr.open_zarr(prompts(length=2))
    assert "length" not in store
    assert dict(store.sizes)["position"] == 2
    assert store.attrs["text_documents_cut"] == 7


def test_a_bos_stands_first_in_each_and_counts(prompts: Capture, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer(bos=True).save_pretrained(tmp_path / "model")
    store = xr.open_zarr(prompts(model=tmp_path / "model"))
    assert store["length"].values.tolist() == [8, 2, 4, 8, 3, 4, 8, 6, 4]
    assert (store["token_id"][:, 0] == 1).all()
    assert (store.attrs["text_documents_cut"], store.attrs["text_documents_short"]) == (1, 0)
    assert store.attrs["special_tokens"] == {"bos": [1], "eos": [2], "special": [0, 1, 2]}
    criteria = Criteria(magnitude=1, positions=0.3, skip_tokens=("bos",))
    by_position = Criteria(magnitude=1, positions=0.3, skip_first=1)
    path = store.encoding["source"]
    assert find_outliers(path, criteria).features == find_outliers(path, by_position).features != ()


def test_too_short_documents_are_refused_in_one_line(prompts: Capture, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"text": "alpha"}\n{"text": ""}\n{"text": "beta"}\n')
    with pytest.raises(OutliersError, match=r"has no document of 2 tokens or more \(2 are shorter\)"):
        prompts()
    assert not (tmp_path / "s.zarr").exists()
