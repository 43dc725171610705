"""One batch of token blocks through the model under nnsight: activations leave as they appear, peaks are kept."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from nnsight import Envoy

from capture.errors import OutliersError
from capture.losses import token_nll
from capture.models.placement import input_device
from capture.store.schema import SIGNALS

if TYPE_CHECKING:
    from nnsight import NNsight

    from capture.sites.place import Site, SiteMap

Sink = Callable[[str, int, int, torch.Tensor], None]
"""Called with (variable, layer, site index, tensor of shape (sequence, position, feature) on the model's device)."""


def extremes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smallest and largest value over positions, NaN passed over, and how many values are not finite.

    Parameters
    ----------
    values : (sequence, position, feature)

    Returns
    -------
    low, high : (sequence, feature), NaN where every value is; count : (sequence,) int64
    """
    low, high = _bounds(values)
    if bool(low.isfinite().all()) and bool(high.isfinite().all()):  # both hand NaN and infinity on
        return low, high, torch.zeros(len(values), dtype=torch.int64, device=values.device)
    nan = values.isnan()
    nowhere = nan.all(dim=1)
    low = values.masked_fill(nan, torch.inf).amin(dim=1).masked_fill(nowhere, torch.nan)
    high = values.masked_fill(nan, -torch.inf).amax(dim=1).masked_fill(nowhere, torch.nan)
    return low, high, values.isfinite().logical_not().sum(dim=(1, 2))


def _bounds(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value over positions; NaN where there is one."""
    if values.is_cuda:
        low, high = torch.aminmax(values, dim=1)  # one pass, and six times slower on a CPU
        return low, high
    return values.amin(dim=1), values.amax(dim=1)


class Peaks:
    """Running peaks of one signal of one batch, reduced on the device.

    Parameters
    ----------
    layers, sites : number of layers, and of sites in each
    careful : ask of each site whether its values are finite, and pass over NaN where they are not. On a CPU that costs
        nothing. A GPU has to be waited for; without, the peaks are right where all extremes turn out to be finite.
    """

    def __init__(self, layers: int, sites: int, *, careful: bool) -> None:
        self._grid = (layers, sites)
        self._careful = careful
        self._low: dict[tuple[int, int], torch.Tensor] = {}
        self._high: dict[tuple[int, int], torch.Tensor] = {}
        self._count: dict[tuple[int, int], torch.Tensor] = {}
        self._peak: torch.Tensor | None = None
        self._finite = True

    def add(self, layer: int, site: int, values: torch.Tensor) -> None:
        """Take in the (sequence, position, feature) values of one site."""
        cell = layer, site
        if self._careful:
            self._low[cell], self._high[cell], self._count[cell] = extremes(values)
            # fmax passes over NaN; maximum does not, and is ten times faster on a CPU.
            self._finite = self._finite and not bool(self._count[cell].any())
        else:
            self._low[cell], self._high[cell] = _bounds(values)
        magnitude = values.abs()
        if self._peak is None:
            self._peak = magnitude
        elif self._finite and (self._peak.dtype, self._peak.device) == (magnitude.dtype, magnitude.device):
            torch.maximum(self._peak, magnitude, out=self._peak)
        else:  # layers can lie on different devices and, in mixed models, have different dtypes
            self._peak = torch.fmax(self._peak.to(magnitude.device), magnitude)

    @property
    def position_peak(self) -> torch.Tensor:
        """Largest magnitude over layers and sites, (sequence, position, feature)."""
        assert self._peak is not None
        return self._peak

    @property
    def extremes(self) -> torch.Tensor:
        """`layer_low` and `layer_high`, (sequence, 2, layer, site, feature), in one tensor."""
        cells = list(np.ndindex(*self._grid))
        low, high = (_stacked([kind[cell] for cell in cells]) for kind in (self._low, self._high))
        both: torch.Tensor = torch.stack([low, high], dim=1).unflatten(2, self._grid)
        return both

    @property
    def nonfinite_count(self) -> torch.Tensor:
        """(sequence, layer, site) int64; zero where nothing was asked."""
        if not self._careful:
            peak = self.position_peak
            return torch.zeros(len(peak), *self._grid, dtype=torch.int64, device=peak.device)
        counts: torch.Tensor = _stacked([self._count[cell] for cell in np.ndindex(*self._grid)]).unflatten(
            1, self._grid
        )
        return counts


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors of layers side by side, behind the sequence, where the last of them is and in a dtype that holds all."""
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    return torch.stack([part.to(parts[-1].device, dtype) for part in parts], dim=1)


@dataclass(frozen=True)
class Batch:
    """What one traced batch gave beside the activations that went to the sink, still on the model's devices.

    Parameters
    ----------
    extremes : (sequence, signal, 2, layer, site, feature), `layer_low` and `layer_high`, in the model's dtype. Unless
        the trace was careful, values that are not finite say that these peaks are wrong.
    final_extremes : (sequence, 2, feature), `final_low` and `final_high`, likewise
    position_peaks : of each signal, (sequence, position, feature), in the model's dtype
    nonfinite_count : (sequence, signal, layer, site) int32
    nll : (sequence, position) float32
    """

    extremes: torch.Tensor
    final_extremes: torch.Tensor
    position_peaks: tuple[torch.Tensor, ...]
    nonfinite_count: torch.Tensor
    nll: torch.Tensor


def trace_batch(
    traced: NNsight,
    sites: SiteMap,
    ids: npt.NDArray[np.int32],
    sink: Sink,
    wanted: frozenset[str],
    *,
    careful: bool = True,
) -> Batch:
    """Run one batch through the model, in inference mode and without a key-value cache.

    Nothing here waits for a GPU, unless `careful` does.

    Parameters
    ----------
    traced : the model under nnsight
    sites : where to read
    ids : (sequence, position) token ids; all blocks have the same length, so that nothing is padded
    sink : takes the tensors of the wanted variables as they appear; it must copy what it keeps
    wanted : which of `norm_input`, `norm_output` and `final_input` go to the sink
    careful : as for `Peaks`

    Raises
    ------
    Exception
        What the sink raised.
    """
    tokens = torch.from_numpy(ids.astype(np.int64)).to(input_device(traced), non_blocking=True)
    names = {name: index for index, name in enumerate(sites.names)}
    peaks = [Peaks(sites.layers, len(names), careful=careful) for _ in SIGNALS]
    losses: list[torch.Tensor] = []
    last: list[torch.Tensor] = []
    failures: list[Exception | KeyboardInterrupt] = []

    def take(layer: int, site: int, before: torch.Tensor, after: torch.Tensor) -> None:
        for signal, own, values in zip(SIGNALS, peaks, (before, after), strict=True):
            own.add(layer, site, values)
            if (variable := f"norm_{signal}") in wanted:
                sink(variable, layer, site, values)

    def shaped(values: Any, site: Site) -> torch.Tensor:
        return by_position(values, ids.shape, site.module)

    # nnsight wraps what is raised inside a trace in its own exception types: keep the original and end the pass.
    with torch.inference_mode(), traced.trace(input_ids=tokens, use_cache=False) as tracer:
        in_order = sites.sites  # nnsight cannot trace a block that begins with `try`
        try:
            for site in in_order:
                module = envoy(traced, site.module)
                before = read_input(module, site)
                after = before if site.kind == "none" else module.output
                take(site.layer, names[site.name], shaped(before, site), shaped(after, site))
            for _ in tracer.iter[sites.final.call : sites.final.call + 1]:
                final = shaped(read_input(envoy(traced, sites.final.module), sites.final), sites.final)
            last.extend(extremes(final)[:2] if careful else _bounds(final))
            if "final_input" in wanted:
                sink("final_input", 0, 0, final)
            losses.append(token_nll(traced.output.logits, tokens))
        except (Exception, KeyboardInterrupt) as error:  # GreenletExit is nnsight's own way out and must pass
            failures.append(error)
            tracer.stop()
    if failures:
        raise failures[0]
    with torch.inference_mode():
        return Batch(
            _stacked([own.extremes for own in peaks]),
            torch.stack(last, dim=1),
            tuple(own.position_peak for own in peaks),
            _stacked([own.nonfinite_count for own in peaks]).int(),
            losses[0],
        )


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
