"""The files of a local model, looked at before a library trips over them: each fault has a line of its own."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final

from capture.errors import OutliersError, in_one_line
from capture.models.failures import pickled

_POINTER: Final = b"version https://git-lfs"
_PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_INDEX: Final = "model.safetensors.index.json"
_TOKENIZERS: Final = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json", "*.tiktoken"),
)
_GGUF_HEADER: Final = struct.Struct("<4sIQQ")  # magic, version, tensors, entries of metadata
_GGUF_VERSIONS: Final = (2, 3)


def check_configuration(path: Path) -> None:
    """Refuse a configuration that is no JSON object.

    Raises
    ------
    OutliersError
        Of one line.
    """
    _json_object(path)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutliersError(
            f"{path} cannot be read ({in_one_line(error)}); expected a JSON object, as transformers saves it; "
            "download it again"
        ) from error
    if not isinstance(found, dict):
        raise OutliersError(
            f"{path} holds no JSON object but a {type(found).__name__}; expected one, as transformers saves it; "
            "download it again"
        )
    return found


def check_folder(folder: Path) -> None:
    """Refuse a folder whose weights or tokenizer are missing, not downloaded, or of a kind that is not loaded.

    Raises
    ------
    OutliersError
        Of one line, with the remedy of that cause.
    """
    _check_weights(folder)
    if not any(list(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise OutliersError(
            f"the folder {folder} has no tokenizer; expected its files beside the weights, such as tokenizer.json; "
            "copy them from the model that this one was made of"
        )


def _check_weights(folder: Path) -> None:
    names = _shards(folder / _INDEX) if (folder / _INDEX).is_file() else []
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise OutliersError(
            f"{folder / _INDEX} names {len(names)} files of weights, of which {len(missing)} are missing, such as "
            f"{missing[0]}; expected all of them; download the rest"
        )
    for path in sorted(folder.glob("*.safetensors")):
        _check_shard(path)
    if not list(folder.glob("*.safetensors")):
        if any(list(folder.glob(pattern)) for pattern in _PICKLED):
            raise OutliersError(pickled(f"the folder {folder} has"))
        if others := sorted(folder.glob("*.gguf")):
            raise OutliersError(f"the folder {folder} holds GGUF files; expected the name of one, such as {others[0]}")
        raise OutliersError(f"the folder {folder} has a configuration but no weights; download model.safetensors")
    if (folder / "adapter_config.json").is_file() and not list(folder.glob("model*.safetensors")):
        raise OutliersError(
            f"the folder {folder} holds an adapter, which is no model by itself; expected it merged into its model; "
            "merge it with peft's merge_and_unload and save that"
        )


def _shards(index: Path) -> list[str]:
    shards = _json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise OutliersError(f"{index} has no weight_map from weights to files; expected one; download it again")
    return sorted(set(shards.values()))


def _check_shard(path: Path) -> None:
    if not path.is_file():
        raise OutliersError(f"{path} is a link to weights that are not there; expected the file; download it again")
    with path.open("rb") as file:
        begin = file.read(len(_POINTER))
    if begin == _POINTER:
        raise OutliersError(
            f"{path} is a pointer to weights that were not downloaded; expected the weights; fetch them with: "
            "git lfs pull"
        )
    if len(begin) < struct.calcsize("<Q") or not 2 <= struct.unpack("<Q", begin[:8])[0] <= path.stat().st_size - 8:
        raise OutliersError(f"{path} is cut off or no safetensors file; expected whole weights; download it again")


def check_gguf(path: Path) -> None:
    """Refuse what is no GGUF file of a version that is read.

    Raises
    ------
    OutliersError
        Of one line.
    """
    with path.open("rb") as file:
        header = file.read(_GGUF_HEADER.size)
    if header.startswith(_POINTER[: _GGUF_HEADER.size]):
        raise OutliersError(f"{path} is a pointer to a file that was not downloaded; fetch it with: git lfs pull")
    if len(header) < _GGUF_HEADER.size or header[:4] != b"GGUF":
        raise OutliersError(f"{path} is no GGUF file or cut off; expected one that begins with GGUF; download it again")
    _, version, tensors, entries = _GGUF_HEADER.unpack(header)
    if version not in _GGUF_VERSIONS:
        raise OutliersError(f"{path} is GGUF of version {version}; expected 2 or 3; convert it with llama.cpp")
    # Each tensor takes at least 24 bytes of the file, each entry 13: a count beyond that is damage, and costs hours.
    if tensors * 24 + entries * 13 > path.stat().st_size:
        raise OutliersError(f"{path} names more than it can hold; expected a whole GGUF file; download it again")
