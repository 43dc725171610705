"""What a model cannot take is refused before a store exists, and before its weights are loaded where that can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from analyze.cli import main  # noqa: E402
from capture import run  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.models import load  # noqa: E402
from capture.models.limits import positions  # noqa: E402
from capture.run import capture  # noqa: E402
from capture.sites.trial import refuse_lookahead  # noqa: E402
from tests.conftest import WORDS, tiny_tokenizer  # noqa: E402

SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 2, "eos_token_id": 2}

# Models whose number of positions stands under names of their own.
NAMED: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {**SMALL, "intermediate_size": 32, "max_position_embeddings": 20}, "max_position_embeddings"),
    "gpt2": ("gpt2", {**GPT2, "n_positions": 20}, "max_position_embeddings"),
    "mpt": ("mpt", {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 20}, "max_seq_len"),
    "bloom": (
        "bloom",
        {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2, "seq_length": 20},
        "seq_length",
    ),
    "opt": ("opt", {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 32, "max_position_embeddings": 20}, "max_position"),
}


def saved(folder: Path, model_type: str, settings: dict[str, Any], tokenizer: Any = None) -> Path:
    config = transformers.AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (tiny_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def refused(text_file: Path, tmp_path: Path) -> Callable[..., str]:
    """The one line with which a capture is refused, after which nothing is there."""

    def call(model: Path | str, **options: Any) -> str:
        out = tmp_path / "s.zarr"
        with pytest.raises(OutliersError) as caught:
            capture(str(model), out, **{"text": str(text_file), "sequences": 2, "length": 8, **options})
        assert "\n" not in str(caught.value)
        assert not list(out.parent.glob("*s.zarr*"))
        return str(caught.value)

    return call


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights is a failure of the test."""

    def never(*_: Any) -> Any:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(load, "_load_weights", never)


@pytest.mark.parametrize("name", NAMED)
def test_too_many_positions_are_refused_before_the_weights(
    name: str, refused: Callable[..., str], no_weights: None, tmp_path: Path
) -> None:
    model_type, settings, setting = NAMED[name]
    words = refused(saved(tmp_path / "m", model_type, settings), length=21)
    assert "--length 21 is longer than the 20 positions" in words
    assert setting in words
    with pytest.raises(AssertionError, match="weights were loaded"):
        refused(tmp_path / "m", length=20)


@pytest.mark.parametrize("name", NAMED)
def test_all_positions_of_a_model_can_be_used(name: str, text_file: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "m", *NAMED[name][:2])
    capture(str(model), tmp_path / "s.zarr", text=str(text_file), sequences=1, length=20, raw="none")


@pytest.mark.parametrize("name", ["n_ctx", "seq_length", "max_sequence_length", "model_max_length", "context_length"])
def test_names_of_code_beside_transformers_are_known(name: str) -> None:
    config = transformers.PretrainedConfig(**{name: 512})
    assert positions(config) == (name, 512)
    assert positions(transformers.PretrainedConfig(**{name: -1})) is None


# Learned positions of which a configuration gives no number, or one that is not that of the table.
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {**SMALL, "intermediate_size": 32, "is_decoder": True}),
    "roberta": ("roberta", {**SMALL, "intermediate_size": 32, "is_decoder": True}),  # two rows are never used
    "gpt2": ("gpt2", GPT2),
    "biogpt": ("biogpt", {**SMALL, "intermediate_size": 32}),
}


@pytest.mark.parametrize("name", TABLES)
def test_positions_under_no_known_name_are_tried(
    name: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_type, settings = TABLES[name]
    monkeypatch.setattr("capture.models.limits.POSITIONS", ())
    model = saved(tmp_path / "m", model_type, {**settings, "max_position_embeddings": 40})
    assert "cannot run on 45 tokens" in refused(model, length=45)
    capture(str(model), tmp_path / "s.zarr", text=_text(tmp_path), sequences=1, length=36, raw="none")


def _text(folder: Path) -> str:
    path = folder / "text.txt"
    path.write_text(" ".join(WORDS * 20))
    return str(path)


@pytest.mark.parametrize("rows", [8, 10, 12])
def test_tokens_without_a_row_in_the_embedding_are_refused(
    rows: int, refused: Callable[..., str], tmp_path: Path
) -> None:
    model = saved(tmp_path / "m", "llama", {**SMALL, "intermediate_size": 32, "vocab_size": rows})
    words = refused(model)
    assert f"the text has the token 12, and the embedding of LlamaForCausalLM has {rows} rows" in words


def test_a_text_within_a_small_vocabulary_is_captured(tmp_path: Path) -> None:
    model = saved(tmp_path / "m", "llama", {**SMALL, "intermediate_size": 32, "vocab_size": 8})
    (tmp_path / "t.txt").write_text("alpha beta gamma delta " * 10)
    capture(str(model), tmp_path / "s.zarr", text=str(tmp_path / "t.txt"), sequences=1, length=8, raw="none")


@pytest.mark.parametrize("rows", [2, 5, 9, 64])
def test_looking_ahead_is_told_whatever_the_vocabulary(rows: int) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, "vocab_size": rows})).eval()
    assert refuse_lookahead(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequences": 1000}, "which fill 75 blocks of 8, and 1000 were asked for"),
        ({"length": 63, "sequences": 10}, "use --sequences 9"),
        ({"bos": True}, "has no BOS token"),
    ],
)
def test_too_little_text_is_refused_before_the_weights(
    options: dict[str, Any], words: str, refused: Callable[..., str], no_weights: None, checkpoint: Path
) -> None:
    assert words in refused(checkpoint, **options)


@pytest.mark.parametrize("name", ["foo bar", "a--b/c", "-x/y", "model.git", "é/b", "org/name?x=1", "a" * 97])
@pytest.mark.parametrize("command", ["capture", "sites", "estimate"])
def test_what_is_no_hub_id_is_one_line(
    name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "s.zarr"), "--text", "python-docs"] if command == "capture" else []
    assert main([command, *out, "--", name]) == 2
    told = capsys.readouterr().err.strip()
    assert f"{name!r} is no name of a model; expected a Hugging Face id" in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())


def test_estimate_refuses_the_length_that_capture_refuses(tmp_path: Path) -> None:
    settings = {**SMALL, "model_type": "llama", "intermediate_size": 32, "max_position_embeddings": 20}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    with pytest.raises(OutliersError, match="--length 21 is longer than the 20 positions"):
        run.check_length(transformers.LlamaConfig(**settings), 21)
    assert main(["estimate", f"random:{tmp_path}/c.json", "--length", "21"]) == 2
    assert main(["estimate", f"random:{tmp_path}/c.json", "--length", "20"]) == 0


@pytest.mark.parametrize("error", [RuntimeError("kernel"), torch.OutOfMemoryError("full"), OSError(28, "no space")])
def test_a_capture_that_fails_at_once_leaves_no_empty_store(
    error: Exception, checkpoint: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("capture.batches.trace_batch", fails)
    out = tmp_path / "s.zarr"
    with pytest.raises((OutliersError, RuntimeError)):
        capture(str(checkpoint), out, text=str(text_file), sequences=2, length=8)
    assert not out.exists()


def test_a_store_that_was_there_stays_when_nothing_comes_of_it(
    checkpoint: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.zarr"

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("capture.batches.trace_batch", stopped)
        with pytest.raises(KeyboardInterrupt):
            capture(str(checkpoint), out, text=str(text_file), sequences=2, length=8)
    assert out.is_dir()

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("kernel")

    with monkeypatch.context() as patch:
        patch.setattr("capture.batches.trace_batch", fails)
        with pytest.raises(RuntimeError):
            capture(str(checkpoint), out, text=str(text_file), sequences=2, length=8)
    assert out.is_dir()
