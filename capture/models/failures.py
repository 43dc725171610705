"""Why a model could not be loaded, in one line that names the remedy of its cause."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

from capture.errors import OutliersError, in_one_line

# What transformers and its quantisers say where a package is missing: in words, or as Python does.
_PACKAGE: Final = re.compile(r"pip install (?:-U |--upgrade )*['\"`]?(?P<name>[A-Za-z][\w.\-]*(?:\[[\w,\-]+\])?)")
_MODULE: Final = re.compile(r"No module named '(?P<name>[\w]+)")
_NO_SAFETENSORS: Final = re.compile(r"does not appear to have (?:a file|files) named \S*model\S*\.safetensors")
_GPU: Final = re.compile(r"\b(?:requires? a|on|needs? a|no) (?:CUDA )?GPU|GPU is (?:required|needed)", re.I)
_MEMORY: Final = re.compile(r"out of memory|can't allocate memory", re.I)
_GATED: Final = re.compile(r"\b(?:401|403)\b|gated", re.I)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Tell in one line what a library raises while it makes `what` of a user's files.

    Configurations and code of models are not ours, and each of their faults has an exception of its own.
    """
    try:
        yield
    except OutliersError:
        raise
    except Exception as error:
        raise load_error(what, error) from error


def load_error(what: str, error: Exception) -> OutliersError:
    """Line that tells why `what` could not be loaded, and what to do."""
    return OutliersError(f"cannot load the {what} ({in_one_line(error)}); {_remedy(what, str(error))}")


def _remedy(what: str, words: str) -> str:
    if package := _PACKAGE.search(words) or _MODULE.search(words):
        return f"it needs a package that is not installed; install it with: pip install '{package['name']}'"
    if _NO_SAFETENSORS.search(words):
        return pickled("it has")
    if _GPU.search(words):
        return "expected a GPU, which such weights need; run on one, or choose a checkpoint without quantisation"
    if _MEMORY.search(words):
        return "expected room for the weights; choose --device auto or cpu, or a smaller model"
    if _GATED.search(words):
        return "expected a model that is public or open to you; log in with: hf auth login, and accept its terms there"
    if what.startswith("tokenizer"):
        return "expected the tokenizer's files beside the model's; copy them there, from the model that it was made of"
    return (
        "expected a Hugging Face id that can be reached, a local folder, a .gguf file, or smollm2-135m, whole and "
        "unchanged; check the name, or download it again"
    )


def pickled(what_has: str) -> str:
    """Words for a checkpoint without safetensors; `what_has` names it."""
    return (
        f"{what_has} no weights as .safetensors, and pickled ones, which can run code, are never loaded; choose a "
        "revision that has them, or load it with transformers where you trust it and save it with save_pretrained"
    )
