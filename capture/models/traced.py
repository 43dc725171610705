"""A model under nnsight, also where accelerate keeps its weights elsewhere."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from nnsight import NNsight


class Traced(NNsight):  # type: ignore[misc]  # nnsight has no types
    """nnsight's wrapper, which moves what a model is given to where its first weight lies."""

    @property
    def device(self) -> torch.device | None:
        """None where that weight is offloaded and lies nowhere: accelerate's hooks move what comes."""
        found: torch.device | None = super().device
        return None if found is not None and found.type == "meta" else found


def traced(network: Any) -> Traced:
    """Wrap a transformers model for tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names that it renames for itself; `capture.trace` knows them
        return Traced(network)
