"""Passes through a model under nnsight in which what the sublayers read is edited: chosen features are zero."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from analyze.types import Float64
from capture.errors import OutliersError
from capture.losses import token_nll
from capture.models.placement import input_device
from capture.sites.blocks import received, tensor_keys
from capture.sites.probe import Call, Key, probe
from capture.trace import envoy

if TYPE_CHECKING:
    from nnsight import NNsight

    from capture.sites.place import Site, SiteMap

Features = Sequence[int]
Edit = Callable[["Target", torch.Tensor], torch.Tensor]
"""From a module that reads and its (sequence, position, feature) values to the values that it is given instead."""

_PREDICTIONS = 32  # positions whose logits are widened to float32 at once


@dataclass(frozen=True)
class Target:
    """A module that reads what a site hands it.

    Parameters
    ----------
    path : dotted path of the module
    argument : position or keyword under which it receives the features
    layer : index of its block
    site : name of the site
    attention : whether it mixes positions; else it is of the feed-forward part
    """

    path: str
    argument: int | str
    layer: int
    site: str
    attention: bool


def find_targets(model: torch.nn.Module, sites: SiteMap) -> list[Target]:
    """Find the modules that read at the sites of a model, in the order in which they run.

    What they receive is edited, not what the norm returns: a norm's output can go elsewhere too, to the other sublayer
    (GPT-J) or back into the residual stream (BLOOM).

    Raises
    ------
    OutliersError
        A site is not in the model.
    """
    record = probe(model)
    calls: dict[str, Call] = {}
    for call in record.root.descendants():
        calls.setdefault(call.path, call)
    found = []
    for site in sites.sites:
        keys = _handed(site, calls)
        for path in site.feeds:
            fed = received(calls[path], keys, record.multiples) if path in calls else None
            if fed is None:
                raise OutliersError(
                    f"{path} does not read what {site.module} hands on; expected the model of which the sites are"
                )
            found.append(Target(path, fed[0], site.layer, site.name, bool(calls[path].mixing)))
    order = {path: number for number, path in enumerate(calls)}
    return sorted(found, key=lambda target: order[target.path])


def _handed(site: Site, calls: dict[str, Call]) -> set[Key]:
    """What a site hands to its sublayer: the norm's output or, without a norm, what the sublayer receives."""
    call = calls.get(site.module)
    if call is not None and site.kind != "none":
        return tensor_keys(call.outputs)
    if call is not None and site.argument in call.inputs:
        return tensor_keys((call.inputs[site.argument],))
    raise OutliersError(f"{site.module} is no module that this model runs; expected the model of which the sites are")


def zeroed(values: torch.Tensor, features: Features) -> torch.Tensor:
    """A copy of (..., feature) values in which the features are zero."""
    return values.index_fill(-1, torch.tensor(features, dtype=torch.int64, device=values.device), 0)


def _edited(inputs: Any, target: Target, edit: Edit) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module receives, (arguments, keywords), with one argument edited."""
    positional, named = list(inputs[0]), dict(inputs[1])
    place: Any = positional if isinstance(target.argument, int) else named
    place[target.argument] = edit(target, place[target.argument])
    return tuple(positional), named


@contextlib.contextmanager
def _pass(traced: NNsight, ids: npt.NDArray[np.int32]) -> Iterator[dict[str, torch.Tensor]]:
    """Keyword arguments of a pass over token ids, in inference mode."""
    device = input_device(traced)
    with torch.inference_mode():
        yield {"input_ids": torch.from_numpy(ids.astype(np.int64)).to(device)}


def predictions(
    traced: NNsight, targets: Sequence[Target], ids: npt.NDArray[np.int32], features: Features
) -> tuple[npt.NDArray[np.float32], Float64]:
    """One pass in which features are zero in what every target receives.

    Parameters
    ----------
    traced : the model under nnsight
    targets : in the order in which they run
    ids : (sequence, position) token ids
    features : which features; none runs the model as it is

    Returns
    -------
    (sequence, position) float32 negative log-likelihoods in nats, NaN at position 0, and (sequence,) mean over
    positions of the largest probability of a next token
    """
    return edited_predictions(traced, targets if len(features) else (), ids, _zeros(features))


def _zeros(features: Features) -> Edit:
    return lambda _, values: zeroed(values, features)


def edited_predictions(
    traced: NNsight, targets: Sequence[Target], ids: npt.NDArray[np.int32], edit: Edit
) -> tuple[npt.NDArray[np.float32], Float64]:
    """As `predictions`, of a pass in which what every target receives is edited."""
    results: list[Any] = []
    failures: list[BaseException] = []
    with _pass(traced, ids) as arguments, traced.trace(**arguments, use_cache=False) as tracer:
        tokens = arguments["input_ids"]  # nnsight cannot trace a block that begins with `try`
        try:
            for target in targets:
                module = envoy(traced, target.path)
                module.inputs = _edited(module.inputs, target, edit)
            logits = traced.output.logits
            results += [token_nll(logits, tokens).cpu().numpy(), _largest_probability(logits)]
        except (Exception, KeyboardInterrupt) as error:  # nnsight would wrap it in an exception of its own
            failures.append(error)
            tracer.stop()
    if failures:
        raise failures[0]
    return results[0], results[1]


def _largest_probability(logits: torch.Tensor) -> Float64:
    """(sequence,): mean over positions of the largest softmax probability."""
    largest = []
    for part in logits.split(_PREDICTIONS, dim=1):
        wide = part.float()
        largest.append((wide.amax(-1) - wide.logsumexp(-1)).exp())
    return torch.cat(largest, dim=1).double().mean(dim=1).cpu().numpy()


def attention_peaks(
    traced: NNsight,
    targets: Sequence[Target],
    layers: int,
    ids: npt.NDArray[np.int32],
    variants: Sequence[Features],
) -> Float64:
    """How sharply each layer attends when features are zero in what its attention alone receives.

    One pass of the model as it is: at each attention the module runs again for each variant, and what it then returns
    goes nowhere. So no layer feels what was done to another.

    Parameters
    ----------
    traced : the model under nnsight, its attention computed as plain tensor code
    targets : the modules that read, of which the attentions count
    layers : number of layers
    ids : (sequence, position) token ids
    variants : sets of features

    Returns
    -------
    (variant, sequence, layer): the largest attention probability of each query, averaged over queries and heads; NaN
    where a layer has no softmax attention

    Notes
    -----
    Where a model has learnt sinks beside the keys (gpt-oss), what they attract is no probability of a token.
    """
    result = np.full((len(variants), len(ids), layers), np.nan)
    failures: list[BaseException] = []
    attentions = [target for target in targets if target.attention]
    with _pass(traced, ids) as arguments, traced.trace(**arguments, use_cache=False) as tracer:
        shape = ids.shape
        try:
            for target in attentions:
                module = envoy(traced, target.path)
                inputs = module.inputs
                for number, features in enumerate(variants):
                    again = _edited(inputs, target, _zeros(features))
                    weights = _weights(module(*again[0], **again[1]), *shape)
                    if weights is None:
                        break
                    result[number, :, target.layer] = _mean_peak(weights)
        except (Exception, KeyboardInterrupt) as error:
            failures.append(error)
            tracer.stop()
    if failures:
        raise failures[0]
    return result


def _weights(returned: Any, sequences: int, positions: int) -> torch.Tensor | None:
    """The (sequence, head, query, key) probabilities among what an attention returned, None without."""
    for value in returned if isinstance(returned, tuple) else ():
        square = isinstance(value, torch.Tensor) and value.ndim == 4 and value.shape[2:] == (positions, positions)
        if square and len(value) == sequences:
            found: torch.Tensor = value
            return found
    return None


def _mean_peak(weights: torch.Tensor) -> npt.NDArray[np.float64]:
    return weights.amax(dim=-1).double().mean(dim=(1, 2)).cpu().numpy()
