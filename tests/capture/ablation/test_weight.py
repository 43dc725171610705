"""The weight behind a feature: planted in tiny models, found from store and model, its loss against plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402

from analyze import store_info  # noqa: E402
from analyze.cli import main  # noqa: E402
from capture.ablation.maps import last_maps  # noqa: E402
from capture.ablation.weight import written_weight  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.sites.place import find_sites  # noqa: E402
from tests.architectures import ARCHITECTURES  # noqa: E402
from tests.conftest import WORDS, tiny_llama, tiny_tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

FEATURE, COLUMN = 5, 3
LENGTH = 12


def gpt2() -> Any:
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def opt() -> Any:
    torch.manual_seed(2)
    config = transformers.OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=3, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=32,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


MODELS = {
    "llama": (tiny_llama, "model.layers.1.mlp.down_proj", False, "feed-forward"),
    "llama attention": (tiny_llama, "model.layers.1.self_attn.o_proj", False, "attention"),
    "gpt2": (gpt2, "transformer.h.1.mlp.c_proj", True, "feed-forward"),
    "opt": (opt, "model.decoder.layers.1.fc2", False, "feed-forward"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_planted_weight_is_found(name: str, tmp_path: Path, text_file: Path) -> None:
    build, path, transposed, sublayer = MODELS[name]
    network = build()
    matrix = network.get_submodule(path).weight.data
    (matrix.T if transposed else matrix)[FEATURE, COLUMN] = 5000
    store = captured(network, tmp_path, text_file)
    result = written_weight(store, FEATURE, sequences=2, repeats=3)
    assert result.origin.strongest["writer"] == f"layer 1, {sublayer}"
    assert (result.module, result.columns[0]["column"], result.columns[0]["weight"]) == (path, COLUMN, 5000)
    assert result.rank == 1
    assert result.share == pytest.approx(1, abs=0.05)
    assert result.returned == pytest.approx(result.origin.strongest["contribution"], rel=1e-4)

    ids = np.asarray(open_tokens(store))[:2]
    cells = [None, (FEATURE, COLUMN), *((row["row"], row["column"]) for row in result.random)]
    for cell, losses in zip(cells, result.nll, strict=True):
        np.testing.assert_allclose(losses, plain_losses(network, path, transposed, cell, ids), rtol=1e-5)
    assert all(cell != (FEATURE, COLUMN) for cell in cells[2:])


def test_sequences_count_by_their_tokens(tmp_path: Path) -> None:
    network = tiny_llama()
    network.model.layers[1].mlp.down_proj.weight.data[FEATURE, COLUMN] = 5000
    texts = [" ".join(WORDS[:count]) for count in (3, 9)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    store = captured(network, tmp_path, tmp_path / "prompts.jsonl", "--documents")
    result = written_weight(store, FEATURE, repeats=1)
    assert result.perplexities[0] == pytest.approx(store_info(store).perplexity, rel=1e-5)
    assert result.perplexities[1] == pytest.approx(np.exp(result.nll[1] @ [2 / 10, 8 / 10]))


def captured(network: Any, folder: Path, text: Path, *more: str) -> Path:
    network.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    words = ["--text", str(text), "--sequences", "3", "--length", str(LENGTH), "--dtype", "float32", *more]
    assert main(["capture", str(folder / "model"), "--out", str(folder / "s.zarr"), *words]) == 0
    return folder / "s.zarr"


def open_tokens(store: Path) -> Any:
    import xarray as xr

    return xr.open_zarr(store)["token_id"].values


def plain_losses(
    network: Any, path: str, transposed: bool, cell: tuple[int, int] | None, ids: np.ndarray
) -> list[float]:
    """Mean loss of each sequence by the model's own loss."""
    matrix = network.get_submodule(path).weight.data
    view = matrix.T if transposed else matrix
    kept = None if cell is None else view[cell].clone()
    if cell is not None:
        view[cell] = 0
    with torch.inference_mode():
        rows = [torch.from_numpy(row.astype(np.int64))[None] for row in ids]
        losses = [network.eval()(input_ids=row, labels=row, use_cache=False).loss.item() for row in rows]
    if cell is not None:
        view[cell] = kept
    return losses


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    network = tiny_llama()
    network.model.layers[1].mlp.down_proj.weight.data[FEATURE, COLUMN] = 5000
    network.model.embed_tokens.weight.data[:, 2] = 300
    return captured(network, tmp_path_factory.mktemp("weight"), text_file)


def test_the_command_leaves_store_and_model_as_they_are(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["weight", str(store), "--feature", str(FEATURE), "--repeats", "2"]
    before = sorted((file, file.stat().st_mtime_ns) for file in store.parent.rglob("*"))
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"[{FEATURE}, {COLUMN}] = 5000" in told
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["module"] == "model.layers.1.mlp.down_proj"
    assert len(result["perplexity_random"]) == 2
    assert result["sequences"] == 3
    assert sorted((file, file.stat().st_mtime_ns) for file in store.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"feature": 2}, "comes from the embedding"),
        ({"sequences": 4}, "sequences is 4"),
        ({"sequences": 0}, "expected 1 to 3"),
        ({"repeats": 0}, "repeats is 0"),
        ({"feature": 99}, "feature is 99"),
    ],
)
def test_what_cannot_be_is_refused(store: Path, settings: dict[str, int], told: str) -> None:
    with pytest.raises(OutliersError, match=told):
        written_weight(store, **{"feature": FEATURE, **settings})


def test_experts_whose_weights_are_one_tensor_are_refused_in_words() -> None:
    network = ARCHITECTURES["mixtral"].build().eval()
    placed = find_sites(network)
    experts = [site for site in placed.sites if site.layer == 0 and site.name == "ln_mlp"]
    with pytest.raises(OutliersError, match=r"mlp of MixtralForCausalLM ends in no plain linear map"):
        last_maps(network, experts, placed.hidden_size)
    attention = [site for site in placed.sites if site.layer == 1 and site.name == "ln_attn"]
    (found,) = last_maps(network, attention, placed.hidden_size)
    assert found.path == "model.layers.1.self_attn.o_proj"
