"""One tiny pass through a model, watched: which module received and returned which tensor, and who mixed positions.

The pass runs on real weights where there are any, and under fake tensors where the model is on the meta device. Fake
tensors have shapes but no values, so code that branches on values (the routing of experts) cannot run on them. Where
that happens inside a block, the module that failed is stood in for by an empty tensor of its input's shape: what
happens inside it does not bear on what its siblings receive.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from capture.errors import OutliersError, one_line
from capture.models.placement import input_device

BATCH = 2
_LENGTHS = (13, 17, 19, 23, 29, 31, 37, 41)
_MISSING = object()

Key = tuple[int, int, int]


def tensor_key(tensor: torch.Tensor) -> Key:
    """Identity of a tensor's values: views of all of one tensor share it, slices do not."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.numel()


def chain(key: Key, sources: Mapping[Key, Key]) -> Iterator[Key]:
    """A tensor, that of which it was made, that of which that was made, and so on."""
    yield key
    while key in sources:
        key = sources[key]
        yield key


@dataclass(eq=False)
class Call:
    """One call of one module.

    Parameters
    ----------
    path, module : the module, and its dotted path
    parent : the call within which this one happened
    inputs : floating tensors received, by position or keyword
    outputs : floating tensors returned, also from within tuples
    mixing : how positions were mixed during the call: "attention", "convolution"
    uses : by storage, the operations that took a tensor of it during the call, views aside
    selections : (width, k) of every top-k taken during the call, in order
    gates : (function, width) of every softmax and sigmoid during the call
    """

    path: str
    module: torch.nn.Module
    parent: Call | None
    inputs: dict[int | str, torch.Tensor]
    outputs: tuple[torch.Tensor, ...] = ()
    children: list[Call] = field(default_factory=list)
    mixing: set[str] = field(default_factory=set)
    uses: dict[int, set[str]] = field(default_factory=dict)
    selections: list[tuple[int, int]] = field(default_factory=list)
    gates: set[tuple[str, int]] = field(default_factory=set)

    def descendants(self) -> Iterator[Call]:
        """Every call within this one, in the order of calling."""
        for child in self.children:
            yield child
            yield from child.descendants()


@dataclass(frozen=True)
class Record:
    """What a probe pass showed.

    Parameters
    ----------
    root : the call of the model, whose descendants are all others
    sums : keys of the tensors that an addition made
    addends : keys of the tensors that an addition took, and of those of which they are multiples
    casts : tensors that are another in a different dtype, each with that other
    multiples : these, and tensors that are another times one number
    length : number of positions of the probe
    failures : what went wrong in the modules that an empty tensor stood in for, without values
    """

    root: Call
    sums: frozenset[Key]
    addends: frozenset[Key]
    casts: Mapping[Key, Key]
    multiples: Mapping[Key, Key]
    length: int
    failures: tuple[str, ...]


def _floating(value: object) -> Iterator[torch.Tensor]:
    """Floating tensors of a size that is known: without values, what an expert receives is not."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and isinstance(value.numel(), int):
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floating(item)
    elif isinstance(value, dict):
        yield from _floating(list(value.values()))


def _is_multiple(name: str, args: tuple[Any, ...], result: object) -> bool:
    """Tell whether an operation made its first argument once more, in another dtype or times one number."""
    if name == "_to_copy":
        return isinstance(result, torch.Tensor) and result.is_floating_point()
    return name in ("mul", "div") and not (isinstance(args[1], torch.Tensor) and args[1].dim() > 0)


class _Operations(TorchDispatchMode):
    """Credits each tensor operation to the modules that are running."""

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = length
        self.stack: list[Call] = []
        self.sums: set[Key] = set()
        self.addends: set[Key] = set()
        self.casts: dict[Key, Key] = {}
        self.multiples: dict[Key, Key] = {}
        self._held: list[torch.Tensor] = []  # so that no later tensor takes the same place in memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func.__name__).partition(".")[0]
        taken = list(_floating(args))
        if name in ("add", "add_") and [*_floating(result)]:
            self.sums.add(tensor_key(result))
            for tensor in taken[:2]:
                self.addends.update(chain(tensor_key(tensor), self.multiples))
            self._held += [result, *taken[:2]]
        elif taken and _is_multiple(name, args, result):
            self.multiples[tensor_key(result)] = tensor_key(taken[0])
            if name == "_to_copy":
                self.casts[tensor_key(result)] = tensor_key(taken[0])
            self._held += [result, taken[0]]
        made = result.untyped_storage()._cdata if isinstance(result, torch.Tensor) else None
        used = {tensor.untyped_storage()._cdata for tensor in taken} - (set() if name.endswith("_") else {made})
        mixing = self._mixing(name, args, result)
        for call in self.stack:
            if mixing:
                call.mixing.add(mixing)
            for storage in used:
                call.uses.setdefault(storage, set()).add(name)
            if name == "topk":
                call.selections.append((int(args[0].shape[-1]), int(args[1])))
            elif name in ("sigmoid", "_softmax"):
                call.gates.add((name.strip("_"), int(args[0].shape[-1])))
        return result

    def _mixing(self, name: str, args: tuple[Any, ...], result: object) -> str | None:
        """Tell how an operation carries values from one position to another, if it does.

        Attention makes a score for each pair of positions, so some tensor has two axes as long as the sequence;
        the short convolution of every linear attention and state space in use slides along that axis. `_Watch` sees
        that convolution also where a fused kernel hides it.
        """
        if any(word in name for word in ("scaled_dot_product", "flash_attn", "flash_attention", "flex_attention")):
            return "attention"
        if any(tuple(tensor.shape).count(self.length) >= 2 for tensor in _floating(result)):
            return "attention"
        if "convolution" in name and args[1].shape[-1] > 1:
            return "convolution"
        return None


class _Watch:
    """Hooks of one module."""

    def __init__(self, path: str, operations: _Operations) -> None:
        self.path = path
        self.operations = operations

    def enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        inputs = {name: value for name, value in named if torch.is_tensor(value) and [*_floating(value)]}
        stack = self.operations.stack
        call = Call(self.path, module, stack[-1] if stack else None, inputs)
        if call.parent is not None:
            call.parent.children.append(call)
        stack.append(call)

    def leave(self, module: torch.nn.Module, args: object, kwargs: object, output: object) -> None:
        stack = self.operations.stack
        # A call that raised and was stood in for never left: it is dropped from the stack here.
        while (call := stack.pop()).path != self.path:
            pass
        call.outputs = tuple(_floating(output))
        if any(isinstance(part, torch.nn.Conv1d) and part.kernel_size[0] > 1 for part in module.modules()):
            call.mixing.add("convolution")


def _guarded(forward: Callable[..., Any], failures: list[str], width: int | None) -> Callable[..., Any]:
    """Let an empty tensor stand in for what `forward` cannot compute without values: like the input `width` wide."""

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {one_line(error)}")
            hidden = list(_floating([*args, *kwargs.values()]))
            if not hidden:
                raise
            return torch.empty_like(next((tensor for tensor in hidden if tensor.shape[-1] == width), hidden[0]))

    return stand_in


@contextlib.contextmanager
def _guards(modules: list[torch.nn.Module], failures: list[str], width: int | None) -> Iterator[None]:
    before = [(module, module.__dict__.get("forward", _MISSING)) for module in modules]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled = logger.disabled
    logger.disabled = True
    try:
        for module in modules:
            module.__dict__["forward"] = _guarded(module.forward, failures, width)
        yield
    finally:
        logger.disabled = disabled
        for module, forward in before:
            if forward is _MISSING:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


def within_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Modules below the members of any list of modules: those whose failure leaves their block standing."""
    inner = []
    for path, module in model.named_modules():
        parents = path.split(".")
        if any(part.isdigit() for part in parents[:-1]):
            inner.append(module)
    return inner


def _probe_length(model: torch.nn.Module) -> int:
    """Choose a length that no axis of a parameter has, so that the position axis can be told from others."""
    taken = {int(size) for parameter in model.parameters() for size in parameter.shape}
    return next(length for length in _LENGTHS if not {length, BATCH * length} & taken)


def _without_values(model: torch.nn.Module) -> FakeTensorMode | None:
    tensors = list(model.parameters())
    fake = next((tensor for tensor in tensors if isinstance(tensor, FakeTensor)), None)
    if fake is not None:
        mode: FakeTensorMode = fake.fake_mode
        return mode
    # Accelerate leaves weights that it keeps on disk on the meta device, and brings them by a hook.
    offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    if not offloaded and any(tensor.is_meta for tensor in tensors):
        return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    return None


def probe(model: torch.nn.Module) -> Record:
    """Run a few token ids through `model` and record every call of every module.

    Raises
    ------
    OutliersError
        If the model is an encoder-decoder or cannot run on token ids alone.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise OutliersError(
            f"{type(model).__name__} is an encoder-decoder; expected a decoder-only model; choose another model"
        )
    operations = _Operations(_probe_length(model))
    mode = _without_values(model)
    training = [module for module in model.modules() if module.training]
    failures: list[str] = []
    handles = []
    for path, module in model.named_modules():
        watch = _Watch(path, operations)
        handles.append(module.register_forward_pre_hook(watch.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(watch.leave, with_kwargs=True))
    root = Call("", model, None, {})
    operations.stack.append(root)
    try:
        model.eval()
        with contextlib.ExitStack() as context:
            context.enter_context(torch.no_grad())
            context.enter_context(plain_attention(model, visible=("sdpa",)))
            embedding: Any = model.get_input_embeddings() if isinstance(model, transformers.PreTrainedModel) else None
            if mode is not None:
                width = None if embedding is None else embedding.weight.shape[-1]
                context.enter_context(mode)
                context.enter_context(_guards(within_blocks(model), failures, width))
            plain = embedding is None or mode is not None  # else what accelerate keeps elsewhere is asked for
            device = next(model.parameters()).device if plain else input_device(model)
            rows = embedding.weight.shape[0] if embedding is not None else BATCH * operations.length + 1
            tokens = torch.arange(1, BATCH * operations.length + 1, device=device).reshape(BATCH, -1) % rows
            context.enter_context(operations)
            model(input_ids=tokens, use_cache=False)
    except OutliersError:
        raise
    except Exception as error:
        raise OutliersError(
            f"{type(model).__name__} failed on a probe of {operations.length} token ids "
            f"({type(error).__name__}: {one_line(error)}); "
            "expected a decoder that reads input_ids alone; choose another model"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    sums, addends = frozenset(operations.sums), frozenset(operations.addends)
    return Record(root, sums, addends, operations.casts, operations.multiples, operations.length, tuple(failures))


@contextlib.contextmanager
def plain_attention(model: torch.nn.Module, visible: Sequence[str] = ()) -> Iterator[None]:
    """Compute attention as plain tensor code for a while: fused kernels show no scores and return no probabilities.

    Parameters
    ----------
    model : whose configurations say how attention is computed
    visible : implementations that may stay, since they show what is asked for
    """
    # Set on each configuration, where the modules look it up: set_attn_implementation passes over some models (Falcon).
    configs: dict[int, Any] = {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }
    before = [
        (config, name)
        for config in configs.values()
        if (name := getattr(config, "_attn_implementation", None)) not in (None, "eager", *visible)
    ]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
