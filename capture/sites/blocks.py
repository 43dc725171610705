"""The blocks of a decoder as a probe pass showed them: which calls they are, and what the modules in them read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from capture.errors import OutliersError
from capture.sites.norms import NormForm, norm_form
from capture.sites.probe import Call, Key, Record, tensor_key

REMEDY = "name the norms with --sites, as in ln_attn=model.layers.{}.norm_a,ln_mlp=model.layers.{}.norm_b"


def block_calls(record: Record) -> list[Call]:
    """Find the calls of the decoder's blocks, in order: the outermost list of modules that mix positions."""
    groups: dict[str, list[Call]] = {}

    def collect(call: Call) -> None:
        parent, _, last = call.path.rpartition(".")
        if last.isdigit() and call.inputs:
            groups.setdefault(parent, []).append(call)
            if call.mixing:
                return
        for child in call.children:
            collect(child)

    collect(record.root)
    stacks = {path: calls for path, calls in groups.items() if any(call.mixing for call in calls)}
    if not stacks:
        reason = f" ({record.failures[0]})" if record.failures else ""
        raise OutliersError(
            f"no list of blocks that mix positions in {type(record.root.module).__name__}{reason}; "
            "expected a decoder-only transformer; choose another model"
        )
    if len(stacks) > 1:
        raise OutliersError(
            f"{type(record.root.module).__name__} has several stacks of blocks ({', '.join(stacks)}); "
            f"expected one; {REMEDY}"
        )
    calls = next(iter(stacks.values()))
    paths = [call.path for call in calls]
    if len(set(paths)) < len(paths):
        raise OutliersError(f"block {paths[0]} runs more than once in a pass; expected each block once; {REMEDY}")
    return calls


def refuse_encoder(model: torch.nn.Module, blocks: list[Call]) -> None:
    """Refuse a model whose attention also looks ahead."""
    name = type(model).__name__
    # Whether a mask looks ahead is a matter of values, which a model without weights does not have: the attention
    # modules of an encoder say so themselves.
    causal = {getattr(module, "is_causal", None) for block in blocks for module in block.module.modules()} & {
        True,
        False,
    }
    declared = getattr(getattr(model, "config", None), "is_decoder", None)
    if causal == {False} or (declared is False and True not in causal):
        raise OutliersError(f"{name} is an encoder: its attention also looks ahead; expected a decoder; choose another")


def _likeness(module: torch.nn.Module) -> object:
    """Return what the formula of a module can depend on, so that a model's many equal norms are measured once."""
    own = [(name, value) for name, value in vars(module).items() if name != "forward" and not name.startswith("_")]
    plain = (bool, int, float, str, tuple, type(None))
    settings = tuple((name, repr(value) if isinstance(value, plain) else id(value)) for name, value in own)
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
    return type(module), settings, shapes, tuple(_likeness(child) for child in module.children())


class Norms:
    """Answers whether a call was that of a norm of a stream `width` wide, measuring equal modules once."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.forms: dict[object, NormForm | None] = {}

    def form(self, call: Call) -> NormForm | None:
        """Return the formula of the norm that was called, None if it was none."""
        hidden = [tensor for tensor in call.inputs.values() if tensor.shape[-1] == self.width]
        if len(call.outputs) != 1 or not any(tensor.shape == call.outputs[0].shape for tensor in hidden):
            return None
        alike = _likeness(call.module)
        if alike not in self.forms:
            self.forms[alike] = norm_form(call.module, self.width)
        return self.forms[alike]


@dataclass(frozen=True)
class Reading:
    """A module of a block that receives `tensor`, the output of `norm` or, without one, the residual stream."""

    consumer: Call
    argument: int | str
    norm: Call | None
    tensor: Key


def tensor_keys(tensors: Iterable[torch.Tensor]) -> set[Key]:
    """Return the identities of tensors."""
    return {tensor_key(tensor) for tensor in tensors}


def refuse_incomplete(model: torch.nn.Module, blocks: list[Call], parts: set[str]) -> None:
    """Refuse blocks in whose sites one of the parts "attn" and "mlp" is missing."""
    missing = sorted({"attn", "mlp"} - parts)
    if "mlp" in missing and not any("attention" in block.mixing for block in blocks):
        raise OutliersError(
            f"{type(model).__name__} is a state-space model without attention and feed-forward; "
            "expected a transformer decoder; choose another model"
        )
    if missing:
        raise OutliersError(
            f"nothing in {blocks[0].path} that could be its {' or '.join(missing)} reads the residual stream, "
            f"normed or bare, as it is; expected attention and feed-forward; {REMEDY}"
        )


def passes_through(call: Call) -> bool:
    """Tell whether a module returned what it received, as dropout does."""
    return bool(tensor_keys(tuple(call.inputs.values())) & tensor_keys(call.outputs))


def received(call: Call, keys: set[Key]) -> tuple[int | str, Key] | None:
    """Return the first argument under which a call received one of the tensors, and which."""
    for argument, tensor in call.inputs.items():
        if (key := tensor_key(tensor)) in keys:
            return argument, key
    return None


def sublayer_readings(scope: Call, residual: set[Key], normed: dict[Key, Call], norms: Norms) -> Iterator[Reading]:
    """Walk the modules that a block calls, and yield those that read a norm's output or the residual stream."""
    made: set[Key] = set()
    for call in scope.children:
        if passes_through(call):
            continue
        others, made = made, made | tensor_keys(call.outputs)
        if _adds(call, residual, others - residual - set(normed)):
            continue
        for inner in call.descendants():
            # A post-norm block may keep its norm inside the sublayer that it follows, as BERT does.
            if (
                tensor_keys(inner.outputs) & tensor_keys(call.outputs)
                and received(inner, residual)
                and norms.form(inner)
            ):
                normed[tensor_key(inner.outputs[0])] = inner
        stream = received(call, residual)
        if stream and norms.form(call) is not None:
            normed[tensor_key(call.outputs[0])] = call
        elif fed := received(call, set(normed)):
            yield Reading(call, fed[0], normed[fed[1]], fed[1])
        elif stream and _opens_with_norm(call, residual, norms):
            # A wrapper around norm and sublayer, as in DBRX: the site is inside.
            yield from sublayer_readings(call, residual, normed, norms)
        elif stream:
            yield Reading(call, stream[0], None, stream[1])


def _adds(call: Call, residual: set[Key], made: set[Key]) -> bool:
    """Tell whether a module receives the residual stream beside what its siblings made: it adds to the stream."""
    stream = [tensor for tensor in call.inputs.values() if tensor_key(tensor) in residual]
    beside = [tensor for tensor in call.inputs.values() if tensor_key(tensor) in made]
    return any(one.shape == other.shape for one in stream for other in beside)


def _opens_with_norm(call: Call, residual: set[Key], norms: Norms) -> bool:
    made: set[Key] = set()
    readers = []
    for child in call.children:
        if not passes_through(child) and received(child, residual) and not _adds(child, residual, made - residual):
            readers.append(child)
        made |= tensor_keys(child.outputs)
    return any(norms.form(reader) for reader in readers) and all(
        norms.form(reader) or _opens_with_norm(reader, residual, norms) for reader in readers
    )
