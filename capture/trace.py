"""One batch of token blocks through the model under nnsight: activations leave as they appear, peaks are kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from nnsight import Envoy

from capture.errors import OutliersError
from capture.models.placement import input_device
from capture.store.schema import SIGNALS

if TYPE_CHECKING:
    from nnsight import NNsight

    from capture.sites.place import Site, SiteMap

Sink = Callable[[str, int, int, torch.Tensor], None]
"""Called with (variable, layer, site index, tensor of shape (sequence, position, feature) on the model's device)."""

_NLL_POSITIONS = 32  # positions whose logits are widened to float32 at once: few enough to stay in a cache


def extremes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smallest and largest value over positions, NaN passed over, and how many values are not finite.

    Parameters
    ----------
    values : (sequence, position, feature)

    Returns
    -------
    low, high : (sequence, feature), NaN where every value is; count : (sequence,) int64
    """
    low, high = values.amin(dim=1), values.amax(dim=1)  # aminmax is one pass, and six times slower on a CPU
    if not values.is_cuda and bool(low.isfinite().all()) and bool(high.isfinite().all()):
        # Both hand NaN and infinity on, so finite extremes say that all values are finite. On a GPU the question
        # would wait for the computation, and the passes below cost nearly nothing there.
        return low, high, torch.zeros(len(values), dtype=torch.int64)
    nan = values.isnan()
    nowhere = nan.all(dim=1)
    low = values.masked_fill(nan, torch.inf).amin(dim=1).masked_fill(nowhere, torch.nan)
    high = values.masked_fill(nan, -torch.inf).amax(dim=1).masked_fill(nowhere, torch.nan)
    return low, high, values.isfinite().logical_not().sum(dim=(1, 2))


class Peaks:
    """Running peaks of one signal of one batch, reduced on the device.

    Parameters
    ----------
    layers, sites : number of layers, and of sites in each
    """

    def __init__(self, layers: int, sites: int) -> None:
        self._grid = (layers, sites)
        self._extremes: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._peak: torch.Tensor | None = None
        self._finite = True

    def add(self, layer: int, site: int, values: torch.Tensor) -> None:
        """Take in the (sequence, position, feature) values of one site."""
        self._extremes[layer, site] = extremes(values)
        count = self._extremes[layer, site][2]
        magnitude = values.abs()
        # fmax passes over NaN; maximum does not, and is ten times faster on a CPU, where `count` is known at no cost.
        self._finite = self._finite and not values.is_cuda and not bool(count.any())
        if self._peak is None:
            self._peak = magnitude
        elif self._finite and self._peak.dtype == magnitude.dtype:
            torch.maximum(self._peak, magnitude, out=self._peak)
        else:  # layers can lie on different devices and, in mixed models, have different dtypes
            self._peak = torch.fmax(self._peak.to(magnitude.device), magnitude)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """`layer_high`, `layer_low`, `position_peak`, `nonfinite_count` with a leading sequence dimension."""
        cells = [self._extremes[cell] for cell in np.ndindex(*self._grid)]
        stacked = {
            name: torch.stack([cell[i].to("cpu", dtype) for cell in cells], dim=1).numpy()
            for i, name, dtype in (
                (0, "layer_low", torch.float32),
                (1, "layer_high", torch.float32),
                (2, "nonfinite_count", torch.int32),
            )
        }
        assert self._peak is not None
        shaped = {name: a.reshape(len(a), *self._grid, *a.shape[2:]) for name, a in stacked.items()}
        return {**shaped, "position_peak": self._peak.to("cpu", torch.float32).numpy()}


def token_nll(logits: torch.Tensor, ids: torch.Tensor) -> npt.NDArray[np.float32]:
    """Negative log-likelihood of each token given those before it.

    Parameters
    ----------
    logits : (sequence, position, vocabulary)
    ids : (sequence, position) int64

    Returns
    -------
    (sequence, position) float32, nats; NaN at position 0
    """
    ids = ids.to(logits.device)
    result = torch.full(ids.shape, torch.nan, device=logits.device)
    # The memory of one window serves the next: new pages would cost as much as what is computed in them.
    normal = torch.empty(len(ids), _NLL_POSITIONS, logits.shape[-1], device=logits.device)
    wide = None if logits.dtype == torch.float32 else torch.empty_like(normal)
    for begin in range(0, ids.shape[1] - 1, _NLL_POSITIONS):
        end = min(begin + _NLL_POSITIONS, ids.shape[1] - 1)
        scores, likelihood = logits[:, begin:end], normal[:, : end - begin]
        if wide is not None:
            scores = wide[:, : end - begin].copy_(scores)
        torch.log_softmax(scores, dim=-1, out=likelihood)
        chosen = ids[:, begin + 1 : end + 1, None]
        result[:, begin + 1 : end + 1] = likelihood.gather(-1, chosen)[..., 0].neg()
    return result.cpu().numpy()


@dataclass(frozen=True)
class Batch:
    """What one traced batch gave beside the activations that went to the sink.

    Parameters
    ----------
    arrays : `schema.PER_SEQUENCE` by name, each with a leading sequence dimension
    """

    arrays: dict[str, npt.NDArray[Any]]

    def sequence(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """The arrays of one sequence of the batch."""
        return {name: values[number] for name, values in self.arrays.items()}


def trace_batch(
    traced: NNsight, sites: SiteMap, ids: npt.NDArray[np.int32], sink: Sink, wanted: frozenset[str]
) -> Batch:
    """Run one batch through the model, in inference mode and without a key-value cache.

    Parameters
    ----------
    traced : the model under nnsight
    sites : where to read
    ids : (sequence, position) token ids; all blocks have the same length, so that nothing is padded
    sink : takes the tensors of the wanted variables as they appear; it must copy what it keeps
    wanted : which of `norm_input`, `norm_output` and `final_input` go to the sink

    Raises
    ------
    Exception
        What the sink raised.
    """
    tokens = torch.from_numpy(ids.astype(np.int64))
    names = {name: index for index, name in enumerate(sites.names)}
    peaks = {signal: Peaks(sites.layers, len(names)) for signal in SIGNALS}
    results: dict[str, npt.NDArray[Any]] = {}
    failures: list[Exception | KeyboardInterrupt] = []

    def take(layer: int, site: int, before: torch.Tensor, after: torch.Tensor) -> None:
        for signal, values in zip(SIGNALS, (before, after), strict=True):
            peaks[signal].add(layer, site, values)
            if (variable := f"norm_{signal}") in wanted:
                sink(variable, layer, site, values)

    def shaped(values: Any, site: Site) -> torch.Tensor:
        return by_position(values, ids.shape, site.module)

    # nnsight wraps what is raised inside a trace in its own exception types: keep the original and end the pass.
    device = input_device(traced)
    with torch.inference_mode(), traced.trace(input_ids=tokens.to(device), use_cache=False) as tracer:
        in_order = sites.sites  # nnsight cannot trace a block that begins with `try`
        try:
            for site in in_order:
                module = envoy(traced, site.module)
                before = read_input(module, site)
                after = before if site.kind == "none" else module.output
                take(site.layer, names[site.name], shaped(before, site), shaped(after, site))
            for _ in tracer.iter[sites.final.call : sites.final.call + 1]:
                final = shaped(read_input(envoy(traced, sites.final.module), sites.final), sites.final)
            final_low, final_high, _ = extremes(final)
            for variable, peak in (("final_high", final_high), ("final_low", final_low)):
                results[variable] = peak.to("cpu", torch.float32).numpy()
            if "final_input" in wanted:
                sink("final_input", 0, 0, final)
            results["nll"] = token_nll(traced.output.logits, tokens)
        except (Exception, KeyboardInterrupt) as error:  # GreenletExit is nnsight's own way out and must pass
            failures.append(error)
            tracer.stop()
    if failures:
        raise failures[0]
    for place, values in ((signal, peaks[signal].arrays()) for signal in SIGNALS):
        for name, array in values.items():
            results[name] = (
                array[:, None] if place == SIGNALS[0] else np.concatenate([results[name], array[:, None]], 1)
            )
    return Batch(results)


def envoy(traced: NNsight, path: str) -> Any:
    """Nnsight's stand-in of a module, also of one whose name nnsight serves on every module (BERT's `output`)."""
    found: Any = traced
    for name in path.split("."):
        taken = inspect.isdatadescriptor(getattr(Envoy, name, None))
        found = found.get(f"{Envoy.OVERLOAD_PREFIX}{name}" if taken else name)
    return found


def read_input(module: Any, site: Site) -> Any:
    """What a site's module receives under the argument that the probe found."""
    positional, named = module.inputs
    return positional[site.argument] if isinstance(site.argument, int) else named[site.argument]


def by_position(values: Any, shape: tuple[int, ...], module: str) -> torch.Tensor:
    """A tensor of a site as (sequence, position, feature); some blocks (OPT) flatten the first two.

    Raises
    ------
    OutliersError
        It has no such shape.
    """
    if isinstance(values, torch.Tensor):
        if values.ndim == 3 and values.shape[:2] == shape:
            return values
        if values.ndim == 2 and values.shape[0] == shape[0] * shape[1]:
            return values.reshape(*shape, -1)
    raise OutliersError(
        f"{module} handles no tensor of shape (sequence, position, feature); name another module with --sites"
    )
