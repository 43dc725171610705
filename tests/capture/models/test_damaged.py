"""Configurations and GGUF files that are damaged in some way: one line each, whatever transformers makes of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from analyze.cli import main
from tests.capture.models.test_random_weights import SHAPE

CONFIGS: dict[str, Any] = {
    "empty": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"3",
    "deep": b"[" * 100_000,
    "no type": {},
    "a type that is a list": {**SHAPE, "model_type": ["llama"]},
    "a type that is none": {**SHAPE, "model_type": "nonesuch"},
    "words for a width": {**SHAPE, "hidden_size": "wide"},
    "no width": {**SHAPE, "hidden_size": None},
    "width of zero": {**SHAPE, "hidden_size": 0},
    "negative layers": {**SHAPE, "num_hidden_layers": -1},
    "a fraction of heads": {**SHAPE, "num_attention_heads": 1.5},
    "no heads": {**SHAPE, "num_attention_heads": 0},
    "an unknown activation": {**SHAPE, "hidden_act": "none"},
    "an unknown rotation": {**SHAPE, "rope_scaling": {"rope_type": "none"}},
    "a rotation that is a number": {**SHAPE, "rope_scaling": 3},
    "an unknown dtype": {**SHAPE, "dtype": "float3"},
    "quantised by a number": {**SHAPE, "quantization_config": 3},
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("command", ["sites", "estimate"])
def test_a_damaged_configuration_is_one_line(
    command: str, content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "config.json").write_bytes(data)
    code = main([command, str(folder)])
    told = capsys.readouterr().err
    assert code in (0, 2)  # some of these hurt nobody
    assert code == 0 or told.splitlines()[-1].startswith("outliers: ")


ENDLESS: dict[str, dict[str, Any]] = {
    "num_hidden_layers": {**SHAPE, "num_hidden_layers": 1_000_000},
    "num_local_experts": {**SHAPE, "model_type": "mixtral", "num_local_experts": 10**9},
    "n_layer": {"model_type": "gpt2", "n_layer": 10**12},
    "depth of a part: num_hidden_layers": {
        "model_type": "gemma3",
        "text_config": {**SHAPE, "model_type": "gemma3_text", "num_hidden_layers": 10**7},
    },
    "rms_norm_eps": {**SHAPE, "rms_norm_eps": float("nan")},
    "negative: rms_norm_eps": {**SHAPE, "rms_norm_eps": -1.0},
    "layer_norm_epsilon": {"model_type": "gpt2", "layer_norm_epsilon": float("inf")},
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("command", ["sites", "estimate", "capture"])
def test_what_no_model_has_is_refused_before_it_is_built(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(ENDLESS[name]))
    out = tmp_path / "s.zarr"
    (tmp_path / "text.txt").write_text("some words " * 400)
    words = ["--text", str(tmp_path / "text.txt"), "--out", str(out)] if command == "capture" else []
    code = main([command, f"random:{file}" if command == "capture" else str(file), *words])
    told = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert told.startswith(f"outliers: {name.rpartition(' ')[2]} is ")
    assert not out.exists()


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


HEAD = b"GGUF" + struct.pack("<I", 3)
GGUFS = {
    "empty": b"",
    "other magic": b"GGML" + bytes(60),
    "cut": HEAD,
    "version": b"GGUF" + struct.pack("<IQQ", 77, 0, 0),
    "nothing in it": HEAD + struct.pack("<QQ", 0, 0),
    "endless keys": HEAD + struct.pack("<QQ", 0, 2**62),
    "endless tensors": HEAD + struct.pack("<QQ", 2**62, 0),
    "an endless key": HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**62),
    "a key that is no text": HEAD + struct.pack("<QQ", 0, 1) + text(b"\xff\xfe") + struct.pack("<II", 4, 1),
    "an unknown kind": HEAD + struct.pack("<QQ", 0, 1) + text(b"general.architecture") + struct.pack("<I", 99),
    "an unknown architecture": HEAD
    + struct.pack("<QQ", 0, 1)
    + text(b"general.architecture")
    + struct.pack("<I", 8)
    + text(b"nonesuch"),
    "no more than its architecture": HEAD
    + struct.pack("<QQ", 0, 1)
    + text(b"general.architecture")
    + struct.pack("<I", 8)
    + text(b"llama"),
}


@pytest.mark.parametrize("content", GGUFS.values(), ids=GGUFS)
@pytest.mark.parametrize("command", ["sites", "capture"])
def test_a_damaged_gguf_file_is_one_line(
    command: str, content: bytes, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    more = ["--out", str(tmp_path / "s.zarr"), "--text", str(text_file)] if command == "capture" else []
    code = main([command, str(file), *more])
    told = capsys.readouterr().err
    if content is GGUFS["no more than its architecture"] and command == "sites":
        assert code == 0  # the sizes that this architecture has by default
    else:
        assert code == 2
        assert told.splitlines()[-1].startswith("outliers: ")
    assert not (tmp_path / "s.zarr").exists()
