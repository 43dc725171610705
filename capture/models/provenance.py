"""Where weights come from, as a store records it: their revision, and how they are quantised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def commit_or_digest(model: str, gguf: str | None, options: Mapping[str, Any]) -> str | None:
    """Commit of the hub, or digest of the local files.

    Parameters are the fields of `capture.models.source.Source`.
    """
    if gguf is not None:
        with (Path(model) / gguf).open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if Path(model).is_dir():
        return "sha256:" + _folder_digest(Path(model))
    commit = options.get("revision")  # what the hub was asked for: configurations no longer know it
    return None if commit is None else str(commit)


def _folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's configuration and weights."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with file.open("rb") as opened:
            digest.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def quantisation(gguf: str | None, description: Any, config: Any) -> str | None:
    """How the weights are quantised, as the checkpoint's description says, and whether loading undid it."""
    if gguf is not None:
        return "gguf:" + "".join(Path(gguf).suffixes[-2:-1]).removeprefix(".")
    stored = getattr(description, "quantization_config", None)
    if stored is None:
        return None
    method = _settings(stored)["quant_method"]
    loaded = getattr(config, "quantization_config", None)  # transformers drops it from a model that it dequantises
    undone = loaded is None or _settings(loaded).get("dequantize")
    return f"{getattr(method, 'value', method)}{', dequantised' if undone else ''}"


def _settings(quantization: Any) -> dict[str, Any]:
    settings: dict[str, Any] = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return settings
