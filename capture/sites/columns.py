"""How large the weights are, feature by feature, that read each norm's output: taken from the maps seen at work.

A tiny pass runs under a dispatch mode. What a norm returns is followed through copies of its rows, such as experts
receive. Where a product takes it, the other factor is a weight, told by the memory that it lies in; then the whole
parameter counts, whichever experts the few tokens were sent to. A module that reads the norm's output in a way of its
own, as packed weights do, is asked what it answers to the unit vectors: the columns of whatever it multiplies by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from capture.progress import Reporter
from capture.sites.place import Site, SiteMap
from capture.sites.products import Products, Reader

_ROWS: Final = 512
_ELEMENTS: Final = {"cpu": 2**18, "cuda": 2**24}
"""Weights that are worked on at once: so few that they stay in a processor's cache, where one pass over memory does; so
many that a GPU computes longer than it takes to be told to."""

_LINEAR: Final = 0.05  # of the largest value; dynamic rounding to 8 bits stays below 0.02


@dataclass(frozen=True)
class WeightColumns:
    """Sizes of the columns of all linear maps that read each norm's output.

    Parameters
    ----------
    peak, norm : (layer, site, feature) float32, largest magnitude and Euclidean norm of a feature's columns
    """

    peak: npt.NDArray[np.float32]
    norm: npt.NDArray[np.float32]


class UnreadableWeightsError(Exception):
    """Some map that reads a norm's output cannot be measured; the text says which, and why."""


class _Total:
    """Running peak and sum of squares of the columns of one site."""

    def __init__(self, width: int) -> None:
        self.peak = np.zeros(width, np.float32)
        self.squares = np.zeros(width, np.float64)

    def add(self, rows: torch.Tensor) -> None:
        """Take in a matrix (anything, feature), a part at a time."""
        count, width = rows.shape
        most = max(1, _ELEMENTS.get(rows.device.type, _ELEMENTS["cuda"]) // width)
        magnitudes = torch.empty(min(most, count), width, device=rows.device)
        peak = torch.zeros(width, device=rows.device)
        squares = torch.zeros(width, dtype=torch.float64, device=rows.device)
        for part in rows.detach().split(most):
            values = magnitudes[: len(part)].copy_(part).abs_()
            torch.maximum(peak, values.amax(0), out=peak)
            squares += values.square_().sum(0)
        self.peak = np.maximum(self.peak, peak.cpu().numpy())
        self.squares += squares.cpu().numpy()

    def add_weight(self, weight: torch.Tensor, axis: int) -> None:
        """Take in a parameter whose `axis` counts features."""
        whole = weight.detach().movedim(axis, -1)
        for matrix in whole.unbind() if whole.dim() > 2 else [whole]:  # one expert after another
            self.add(matrix.reshape(-1, matrix.shape[-1]))


def variables_of_weights(model: Any, placed: SiteMap, reporter: Reporter) -> tuple[dict[str, Any], dict[str, str]]:
    """`weight_peak` and `weight_norm` for a store, or the attribute that says why it has neither."""
    try:
        columns = weight_columns(model, placed)
    except UnreadableWeightsError as error:
        reporter.warn(f"the sizes of the weights are left out: {error}")
        return {}, {"weights_left_out": str(error)}
    return {"weight_peak": columns.peak, "weight_norm": columns.norm}, {}


def weight_columns(model: Any, placed: SiteMap) -> WeightColumns:
    """Measure the weights that read each norm's output, routers, experts and shared experts among them.

    Parameters
    ----------
    model : with its weights loaded
    placed : its sites

    Raises
    ------
    UnreadableWeightsError
        What reads a norm's output is no linear map, or hides its weights.
    """
    shape = (placed.layers, len(placed.names), placed.hidden_size)
    peak, norm = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    totals = [_Total(placed.hidden_size) for _ in placed.sites]
    products = Products(model, placed, lambda site, weight, axis: totals[site].add_weight(weight, axis))
    with torch.no_grad():
        products.run()
        for number, site in enumerate(placed.sites):
            for reader in _idle_experts(model, site, products.readers[number]):
                parameter = model.get_submodule(reader.module).get_parameter(reader.parameter)
                if parameter.is_meta:  # kept on disk
                    _add_answers(totals[number], model, reader.module, site, products.given[number])
                else:
                    totals[number].add_weight(parameter, reader.axis)
            asked = list(products.opaque[number])
            asked += [path for path in _alike(model, site, asked) if path not in asked]
            for path in asked:
                _add_answers(totals[number], model, path, site, products.given[number])
            _check_feeds(site, [*asked, *(reader.module for reader in products.readers[number])])
            cell = site.layer, placed.names.index(site.name)
            peak[cell], norm[cell] = totals[number].peak, np.sqrt(totals[number].squares)
    return WeightColumns(peak, norm)


def _check_feeds(site: Site, found: list[str]) -> None:
    """Refuse a site of which some sublayer reads through no map that was found."""
    for feed in site.feeds:
        if not any(path == feed or path.startswith(f"{feed}.") for path in found):
            raise UnreadableWeightsError(f"{feed} reads {site.name} through no linear map")
    if not found:
        raise UnreadableWeightsError(f"no linear map reads {site.module}")


def _idle_experts(model: Any, site: Site, readers: list[Reader]) -> Iterator[Reader]:
    """Readers like those found in other members of a list of modules, to which the pass sent no token."""
    known = {(reader.module, reader.parameter) for reader in readers}
    for reader in list(readers):
        for path in _alike(model, site, [reader.module]):
            if (path, reader.parameter) not in known:
                known.add((path, reader.parameter))
                yield Reader(path, reader.parameter, reader.axis)


def _alike(model: Any, site: Site, paths: list[str]) -> Iterator[str]:
    """Paths of the same module in the other members of each list of modules within the block."""
    for path in paths:
        parts = path.split(".")
        for depth in range(1, len(parts)):
            listed, rest = ".".join(parts[:depth]), parts[depth + 1 :]
            members = model.get_submodule(listed)
            if not isinstance(members, torch.nn.ModuleList) or site.module.startswith(f"{listed}."):
                continue
            for member in range(len(members)):
                yield ".".join([listed, str(member), *rest])


def _add_answers(total: _Total, model: Any, path: str, site: Site, given: torch.Tensor | None) -> None:
    """Take in what a module answers to the unit vectors, if it is a linear map but for a bias."""
    module = model.get_submodule(path)
    kind = f"{path} ({type(module).__name__})"
    like = next(module.parameters()) if given is None else given

    def answer(rows: torch.Tensor) -> torch.Tensor:
        values = module(rows.to(device=like.device, dtype=like.dtype))
        if not isinstance(values, torch.Tensor) or values.dim() != 2 or len(values) != len(rows):
            raise TypeError("it returns no matrix")
        return values.float()

    bias = module._parameters.get("bias")
    if bias is not None:  # beside a large one, the columns would drown in rounding
        module._parameters["bias"] = None
    try:
        drawn = torch.randn(3, 16, site.width, generator=torch.Generator().manual_seed(0))
        first, second = answer(drawn[0]), answer(drawn[1])
        added, nothing = answer(drawn[0] + drawn[1]), answer(0 * drawn[2])
        error = max(float((added - first - second).abs().max()), float(nothing.abs().max()))
        if not error <= _LINEAR * float(added.abs().max()):
            raise TypeError("its answers do not add up")
        unit = torch.eye(site.width)
        parts = [answer(unit[begin : begin + _ROWS]) for begin in range(0, site.width, _ROWS)]
    except Exception as error:  # whatever a module that nobody here knows may raise
        reason = " ".join(str(error).split())[:120]
        raise UnreadableWeightsError(f"{kind} reads {site.name} and is no linear map: {reason}") from error
    finally:
        if bias is not None:
            module._parameters["bias"] = bias
    total.add(torch.cat(parts).T)
