"""Models of a real architecture with random weights: for tests and timings where no checkpoint can be had."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from capture.errors import OutliersError
from capture.models.failures import told
from capture.models.limits import text_config

PREFIX: Final = "random:"
"""What stands before the name of a model of which only the configuration is wanted. It stays part of the model's id, so
that nothing takes such a store for one of the real model."""

_SEED: Final = 0
_END: Final = "<|endoftext|>"


def is_random(model: str) -> bool:
    """Whether a model's name asks for random weights."""
    return model.startswith(PREFIX)


def random_model(config: Any, dtype: str, device: Any, *, trust_remote_code: bool = False) -> Any:
    """Build the decoder of a configuration with random weights, drawn as the architecture initialises itself.

    Parameters
    ----------
    config : a transformers configuration
    dtype : `auto` is the configuration's own, else float32
    device : torch device on which the weights are drawn; the same seed gives other values on another kind of device
    """
    import torch

    from capture.models.meta import model_class

    own = getattr(config, "dtype", None)
    chosen = getattr(torch, dtype) if dtype != "auto" else own if isinstance(own, torch.dtype) else torch.float32
    maker = model_class(config, trust_remote_code=trust_remote_code)
    with (
        told(f"network of {config.model_type!r}"),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.device(device),
    ):
        torch.manual_seed(_SEED)
        network = maker.from_config(config, dtype=chosen, trust_remote_code=trust_remote_code)
        return network.to(device)


def byte_tokenizer(config: Any) -> Any:
    """A tokenizer that needs no files: each byte of UTF-8 is a token, and one more ends a document.

    Raises
    ------
    OutliersError
        The model's vocabulary is too small.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = int(text_config(config).vocab_size)
    if size <= len(alphabet):
        raise OutliersError(
            f"the configuration has a vocabulary of {size}, and random weights read bytes as tokens; "
            f"expected vocab_size of {len(alphabet) + 1} or more"
        )
    inner = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=_END)


def random_attributes(config: Any, device: Any) -> dict[str, str]:
    """What a store records in place of a revision: the configuration's digest, and that the weights mean nothing."""
    settings = {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return {
        "model_revision": f"sha256:{digest}",
        "random_weights": f"seed {_SEED}, drawn on {device.type}; bytes as tokens",
    }
