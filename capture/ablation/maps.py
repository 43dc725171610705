"""The last linear map of a sublayer: what it computes goes into the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from transformers.pytorch_utils import Conv1D

from capture.errors import OutliersError
from capture.sites.place import Site
from capture.sites.probe import Call, probe


@dataclass(frozen=True)
class LinearMap:
    """A linear map of a model.

    Parameters
    ----------
    path : dotted path of the module
    module : the module, torch's Linear or transformers' Conv1D (GPT-2), which keeps its weight transposed
    """

    path: str
    module: torch.nn.Module

    @property
    def weight(self) -> torch.Tensor:
        """(output, input) weight, a view: what is written to it is written to the model."""
        weight: Any = self.module.weight
        view: torch.Tensor = weight.data.T if isinstance(self.module, Conv1D) else weight.data
        return view


def last_maps(model: torch.nn.Module, sites: list[Site], width: int) -> list[LinearMap]:
    """The last linear map of every module that reads at these sites.

    Parameters
    ----------
    model : with weights
    sites : of one layer, whose sublayers add to the stream together
    width : of the stream

    Raises
    ------
    OutliersError
        None of them ends in a plain linear map.
    """
    calls = list(probe(model).root.descendants())
    found = {}
    for site in sites:
        for path in site.feeds:
            for call in calls:
                if call.path == path:
                    maps = [one for one in _following(call) if _writes(one, width)]
                    found.update({one.path: LinearMap(one.path, one.module) for one in maps[-1:]})
    if not found:
        fed = ", ".join(path for site in sites for path in site.feeds)
        raise OutliersError(
            f"{fed} of {type(model).__name__} ends in no plain linear map {width:,} wide, such as experts or packed "
            "weights have none; expected torch's Linear or transformers' Conv1D with floating weights"
        )
    return list(found.values())


def _following(call: Call) -> list[Call]:
    """What runs within a module; where it is itself a linear map, what its parent runs from there on."""
    if call.children or call.parent is None:
        return list(call.descendants())
    siblings = call.parent.children
    return siblings[siblings.index(call) :]


def _writes(call: Call, width: int) -> bool:
    """Whether a call is of a linear map onto the stream."""
    if not isinstance(call.module, torch.nn.Linear | Conv1D):
        return False
    weight: Any = call.module.weight
    outputs = [tensor.shape[-1] for tensor in call.outputs]
    return outputs == [width] and weight.ndim == 2 and weight.is_floating_point() and weight.device.type != "meta"


def watched(
    model: Any, maps: list[LinearMap], ids: npt.NDArray[Any], position: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What linear maps receive and return at one position.

    Parameters
    ----------
    model : with weights
    maps : some of its linear maps
    ids : (position,) token ids
    position : which

    Returns
    -------
    for each map (input,) and (output,) float64, on the CPU
    """
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(path: str) -> Any:
        def keep(_: torch.nn.Module, received: tuple[Any, ...], returned: torch.Tensor) -> None:
            rows = [tensor.reshape(-1, tensor.shape[-1])[position] for tensor in (received[0], returned)]
            seen[path] = (rows[0].double().cpu(), rows[1].double().cpu())

        return keep

    handles = [one.module.register_forward_hook(hook(one.path)) for one in maps]
    try:
        with torch.inference_mode():
            device = model.get_input_embeddings().weight.device
            model(input_ids=torch.tensor(ids, dtype=torch.int64, device=device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[one.path] for one in maps]
