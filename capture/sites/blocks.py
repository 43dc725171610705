"""The blocks of a decoder as a probe pass showed them: which calls they are, and what the modules in them read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import transformers

from capture.errors import OutliersError
from capture.models.limits import text_config
from capture.sites.norms import NormForm, norm_form
from capture.sites.probe import Call, Key, Record, chain, tensor_key

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
    numbers = [int(path.rpartition(".")[2]) for path in paths]
    if numbers != list(range(len(numbers))):
        list_of, missing = paths[0].rpartition(".")[0], sorted(set(range(max(numbers) + 1)) - set(numbers))
        what = (
            f"blocks {', '.join(map(str, missing))} of {list_of} do not run" if missing else "blocks run out of order"
        )
        raise OutliersError(
            f"{what} in {type(record.root.module).__name__} on text alone; expected every block, so that layers keep "
            "their numbers; choose another model"
        )
    return calls


def refuse_encoder(model: torch.nn.Module, blocks: list[Call]) -> None:
    """Refuse a model whose blocks say that they also look ahead; with weights, `trial.refuse_lookahead` decides.

    Whether a mask looks ahead is a matter of values, which a model without weights does not have. A configuration's
    `is_decoder` means nothing where no module took it over: it is false by default.
    """
    modules = [module for block in blocks for module in block.module.modules()]
    causal, decoder = (
        {value for module in modules if isinstance(value := getattr(module, name, None), bool)}
        for name in ("is_causal", "is_decoder")
    )
    if causal == {False} or (decoder == {False} and not causal):
        raise OutliersError(
            f"{type(model).__name__} is an encoder: its attention also looks ahead; expected a decoder; choose another"
        )


def refuse_several_streams(model: torch.nn.Module, stream: torch.Tensor) -> None:
    """Refuse a model that hands several residual streams from block to block, beside or behind each other."""
    config = getattr(model, "config", None)
    hidden = None
    if isinstance(config, transformers.PreTrainedConfig):
        hidden = getattr(text_config(config), "hidden_size", None)
    wide = isinstance(hidden, int) and stream.shape[-1] > hidden and stream.shape[-1] % hidden == 0
    if stream.dim() > 3 or wide:
        raise OutliersError(
            f"{type(model).__name__} carries several residual streams from block to block (its hidden states are "
            f"{' x '.join(map(str, stream.shape[2:]))}, of width {hidden}); expected one; choose another model"
        )


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


def received(call: Call, keys: Collection[Key], same: Mapping[Key, Key] | None = None) -> tuple[int | str, Key] | None:
    """Return the first argument under which a call received one of the tensors, and which.

    Parameters
    ----------
    same : `Record.casts` or `Record.multiples`, where these count as the tensors of which they were made
    """
    for argument, tensor in call.inputs.items():
        for key in chain(tensor_key(tensor), {} if same is None else same):
            if key in keys:
                return argument, key
    return None


def sublayer_readings(
    scope: Call, residual: set[Key], normed: dict[Key, Call], norms: Norms, record: Record
) -> Iterator[Reading]:
    """Walk the modules that a block calls, and yield those that read a norm's output or the residual stream."""
    made: set[Key] = set()
    for call in scope.children:
        if passes_through(call):
            continue
        others, made = made, made | tensor_keys(call.outputs)
        # A norm whose output is added to is the stream itself from there on, as in BERT.
        if _adds(call, residual | (set(normed) & record.addends), others - residual - set(normed)):
            continue
        for inner in call.descendants():
            # A post-norm block may keep its norm inside the sublayer that it follows, as BERT does.
            if (
                tensor_keys(inner.outputs) & tensor_keys(call.outputs)
                and received(inner, residual, record.casts)
                and norms.form(inner)
            ):
                normed[tensor_key(inner.outputs[0])] = inner
        stream = received(call, residual, record.casts)
        if stream and norms.form(call) is not None:
            normed[tensor_key(call.outputs[0])] = call
        elif fed := received(call, normed, record.multiples):
            yield Reading(call, fed[0], normed[fed[1]], fed[1])
        elif stream and _opens_with_norm(call, residual, norms, record):
            # A wrapper around norm and sublayer, as in DBRX: the site is inside.
            yield from sublayer_readings(call, residual, normed, norms, record)
        elif stream:
            yield from _bare_readings(call, stream, residual, normed, norms, record)


def _bare_readings(
    call: Call, stream: tuple[int | str, Key], residual: set[Key], normed: dict[Key, Call], norms: Norms, record: Record
) -> Iterator[Reading]:
    """What reads the stream without a norm: a module or, where it also adds to it, as in BERT, the sublayer within."""
    uses = call.uses.get(tensor_key(call.inputs[stream[0]])[0], set())
    if "add" in uses and call.children:
        within = list(sublayer_readings(call, residual, dict(normed), norms, record))
        if within and call.mixing <= set().union(*(reading.consumer.mixing for reading in within)):
            yield from within
            return
    yield Reading(call, stream[0], None, stream[1])


def _adds(call: Call, stream: set[Key], made: set[Key]) -> bool:
    """Tell whether a module adds to the stream: it receives it beside what its siblings made, alike or to sum alone."""
    received_stream = [tensor for tensor in call.inputs.values() if tensor_key(tensor) in stream]
    beside = [tensor for tensor in call.inputs.values() if tensor_key(tensor) in made]
    uses = [call.uses.get(tensor.untyped_storage()._cdata, set()) for tensor in received_stream]
    return any(one.shape == other.shape for one in received_stream for other in beside) or (
        bool(beside) and any(uses) and all(use <= {"add", "add_"} for use in uses)
    )


def _opens_with_norm(call: Call, residual: set[Key], norms: Norms, record: Record) -> bool:
    made: set[Key] = set()
    readers = []
    for child in call.children:
        reads = not passes_through(child) and received(child, residual, record.casts)
        if reads and not _adds(child, residual, made - residual):
            readers.append(child)
        made |= tensor_keys(child.outputs)
    return any(norms.form(reader) for reader in readers) and all(
        norms.form(reader) or _opens_with_norm(reader, residual, norms, record) for reader in readers
    )
