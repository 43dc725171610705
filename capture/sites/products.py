"""One tiny pass in which every product of a norm's output with a weight is seen, and whose weight it is.

Tensors are known by their memory, so that views need no rules. Copies that keep the features in place (chosen or
repeated rows, another dtype, a factor for each row) are followed; so are copies of weights, with which of the
parameter's axes each of their strides belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capture.sites.place import SiteMap

_TOKENS: Final = (2, 13)

# Where the two factors stand among the arguments.
_PRODUCTS: Final = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "_grouped_mm": (0, 1),
    "grouped_mm_fallback": (0, 1),
}
_COPIES: Final = ("clone", "_to_copy", "index", "index_select", "gather", "repeat", "mul", "div")
_CHOICES: Final = ("index_select", "gather")

Take = Callable[[int, torch.Tensor, int], None]


class Reader(NamedTuple):
    """A parameter that multiplies a norm's output: its module, its name there, and the axis that counts features."""

    module: str
    parameter: str
    axis: int


@dataclass(frozen=True)
class _Weight:
    """What a piece of memory holds: a parameter, or a copy of part of one.

    Parameters
    ----------
    module, name : of the parameter
    parameter : itself
    axes : axis of the parameter by the stride that it has in this memory
    """

    module: str
    name: str
    parameter: torch.Tensor
    axes: dict[int, int]


@dataclass
class _Frame:
    """A module that is running: the sites whose values it received, products seen before, weights that it copied."""

    module: torch.nn.Module
    path: str
    received: set[int]
    seen_before: int
    copies: dict[int, tuple[_Weight, torch.Tensor]]


def _memory(value: Any) -> int | None:
    """Identity of a tensor's memory; None for what has none of its own, such as packed subclasses."""
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def _own_weights(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Matrices of a module itself, packed ones included."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() > 1 or not parameter.is_floating_point():
            yield name, parameter


def _strides(tensor: torch.Tensor) -> dict[int, int]:
    return {stride: axis for axis, stride in enumerate(tensor.stride()) if tensor.shape[axis] > 1}


class Products(TorchDispatchMode):
    """The pass.

    Parameters
    ----------
    model : with its weights loaded
    placed : its sites
    take : is given (number of the site, parameter, axis of features) the first time that a site's values meet one;
        at that moment the parameter is loaded, also where weights are kept elsewhere
    """

    def __init__(self, model: Any, placed: SiteMap, take: Take) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model, self._placed, self._take = model, placed, take
        self.readers: list[list[Reader]] = [[] for _ in placed.sites]
        self.opaque: list[list[str]] = [[] for _ in placed.sites]
        self.given: list[torch.Tensor | None] = [None for _ in placed.sites]
        # Tensors are held, so that no other takes their memory.
        self._followed: dict[int | None, tuple[int, torch.Tensor]] = {}
        self._frames: list[_Frame] = []
        self._touched: set[tuple[str, str]] = set()
        self._seen = 0
        self._streams: dict[int, torch.Tensor] = {}
        self._weights = {
            memory: _Weight(path, name, parameter, _strides(parameter))
            for path, module in model.named_modules()
            for name, parameter in _own_weights(module)
            if not parameter.is_meta and (memory := _memory(parameter)) is not None
        }

    def run(self) -> None:
        """Run a few tokens through the model."""
        by_module = {site.module: n for n, site in enumerate(self._placed.sites) if site.kind != "none"}
        bare = {feed: n for n, site in enumerate(self._placed.sites) if site.kind == "none" for feed in site.feeds}
        handles = []
        for path, module in self._model.named_modules():
            if path in bare:
                enter = self._receiving(bare[path], path)
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_pre_hook(self._entering(path), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leaving(bare.get(path)), with_kwargs=True))
            if path in by_module:
                handles.append(module.register_forward_hook(self._norm_ran(by_module[path])))
        embedding = self._model.get_input_embeddings().weight
        count = _TOKENS[0] * _TOKENS[1]
        tokens = (torch.arange(1, count + 1) % embedding.shape[0]).reshape(_TOKENS)
        if not embedding.is_meta:  # else its module brings weights and tokens together
            tokens = tokens.to(embedding.device)
        try:
            with self:
                self._model(input_ids=tokens, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
            self._followed.clear()

    def _follow(self, site: int, tensor: torch.Tensor) -> None:
        layer = self._placed.sites[site].layer
        gone = [key for key, (other, _) in self._followed.items() if self._placed.sites[other].layer != layer]
        for key in gone:
            del self._followed[key]
        memory = _memory(tensor)
        assert memory is not None
        self._followed[memory] = site, tensor
        self.given[site] = torch.empty(0, dtype=tensor.dtype, device=tensor.device)

    def _norm_ran(self, site: int) -> Callable[..., None]:
        def ran(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
            self._follow(site, output)

        return ran

    def _receiving(self, number: int, path: str) -> Callable[..., None]:
        """What a sublayer without a norm receives is followed while it runs."""
        site = self._placed.sites[number]

        def receive(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path == site.module:
                self._streams[number] = args[site.argument] if isinstance(site.argument, int) else kwargs[site.argument]
            self._follow(number, self._streams[number])

        return receive

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            places = map(_memory, (*args, *kwargs.values()))
            received = {self._followed[place][0] for place in places if place in self._followed}
            self._frames.append(_Frame(module, path, received, self._seen, {}))

        return enter

    def _leaving(self, bare: int | None) -> Callable[..., None]:
        def leave(module: torch.nn.Module, args: object, kwargs: object, output: object) -> None:
            frame = self._frames.pop()
            own = list(_own_weights(module))
            width = self._placed.hidden_size
            unused = any(
                (frame.path, name) not in self._touched and (not weight.is_floating_point() or width in weight.shape)
                for name, weight in own
            )
            if own and (unused or self._seen == frame.seen_before):
                for site in frame.received:
                    if frame.path not in self.opaque[site]:
                        self.opaque[site].append(frame.path)
            if bare is not None:
                self._followed = {key: value for key, value in self._followed.items() if value[0] != bare}

        return leave

    def _weight(self, memory: int | None) -> _Weight | None:
        """The weight that lies in some memory, as the running modules have it now."""
        if memory is None or memory in self._followed:
            return None
        for frame in reversed(self._frames):
            if memory in frame.copies:
                return frame.copies[memory][0]
            if hasattr(frame.module, "_hf_hook"):  # accelerate brings weights when their module runs
                for name, parameter in _own_weights(frame.module):
                    if _memory(parameter) == memory:
                        return _Weight(frame.path, name, parameter, _strides(parameter))
        return self._weights.get(memory)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func.__name__).partition(".")[0]
        for value in args:
            weight = self._weight(_memory(value))
            if weight is not None:
                self._touched.add((weight.module, weight.name))
        if name in _PRODUCTS:
            left, right = (args[place] for place in _PRODUCTS[name])
            self._product(left, right, -2)
            self._product(right, left, -1)
        elif name in _COPIES:
            self._copy(name, args, result)
        return result

    def _product(self, values: torch.Tensor, factor: torch.Tensor, dim: int) -> None:
        """Take in a weight whose axis `dim` is summed over together with the features of followed values."""
        followed = self._followed.get(_memory(values))
        weight = self._weight(_memory(factor))
        if followed is None or weight is None or factor.shape[dim] != self._placed.hidden_size:
            return
        axis = weight.axes.get(factor.stride(dim))
        if axis is None or weight.parameter.shape[axis] != self._placed.hidden_size:
            return
        self._seen += 1
        reader = Reader(weight.module, weight.name, axis)
        if reader not in self.readers[followed[0]]:
            self.readers[followed[0]].append(reader)
            self._take(followed[0], weight.parameter, axis)

    def _copy(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        """Follow a copy of followed values or of a weight."""
        memory = _memory(result)
        if memory is None or memory in self._followed:
            return
        sources = [value for value in args[: 2 if name in ("mul", "div") else 1] if isinstance(value, torch.Tensor)]
        for source in sources:
            kept = _kept(name, source, args, result)
            followed, weight = self._followed.get(_memory(source)), self._weight(_memory(source))
            if followed is not None and kept >= 1:
                self._followed[memory] = followed[0], result
            elif weight is not None and kept and name not in ("mul", "div") and self._frames:
                axes = {
                    result.stride(-k): weight.axes[source.stride(-k)]
                    for k in range(1, kept + 1)
                    if result.shape[-k] > 1 and source.stride(-k) in weight.axes
                }
                copied = _Weight(weight.module, weight.name, weight.parameter, axes)
                self._frames[-1].copies[memory] = copied, result


def _kept(name: str, source: torch.Tensor, args: tuple[Any, ...], result: torch.Tensor) -> int:
    """How many of the last axes of a tensor a copy has as they were."""
    kept = min(source.dim(), result.dim())
    if name == "index":
        kept = source.dim() - len(args[1])
        if kept == 0 and args[1][-1] is None:
            kept = 1
    elif name in _CHOICES:
        kept = source.dim() - 1 - args[1] % source.dim()
    elif name in ("mul", "div"):
        other = args[1] if args[0] is source else args[0]
        kept = int(not isinstance(other, torch.Tensor) or other.dim() == 0 or other.shape[-1] == 1)
    equal = 0
    while equal < kept and source.shape[-1 - equal] == result.shape[-1 - equal]:
        equal += 1
    return equal
