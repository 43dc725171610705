"""A model without weights: the module tree that a configuration describes, on the meta device."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers

from capture.errors import OutliersError
from capture.models.failures import told


def model_class(config: transformers.PreTrainedConfig, *, trust_remote_code: bool = False) -> Any:
    """Auto class that builds or loads the decoder of `config`.

    Raises
    ------
    OutliersError
        The configuration is that of an encoder-decoder, an encoder or another kind of network.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise OutliersError(
            f"{config.model_type} is an encoder-decoder; expected a decoder-only language model; choose another model"
        )
    makers: tuple[Any, ...] = (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText)
    for maker in makers:
        if type(config) in maker._model_mapping:
            return maker
    if trust_remote_code and "AutoModelForCausalLM" in getattr(config, "auto_map", {}):
        return transformers.AutoModelForCausalLM
    raise OutliersError(
        f"transformers has no causal language model for {config.model_type!r}; expected a decoder, "
        "not an encoder or another kind of network; choose another model"
    )


def meta_model(config: transformers.PreTrainedConfig, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """Build the decoder of `config` on the meta device, so that not one weight is allocated.

    A multimodal configuration gives the whole model, as loading it would, so that module paths agree.
    """
    maker = model_class(config, trust_remote_code=trust_remote_code)
    config = copy.deepcopy(config)
    # Eager attention is plain tensor code: it runs on any device and shows the probe its scores.
    config._attn_implementation = "eager"
    with told(f"network of {config.model_type!r}"), torch.device("meta"):
        model: torch.nn.Module = maker.from_config(config, trust_remote_code=trust_remote_code)
    # Some models make a parameter on a device of their own.
    return model.to("meta").eval()
