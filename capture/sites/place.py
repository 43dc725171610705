"""Where each sublayer of a decoder reads the residual stream: found by data flow, never by names.

A probe pass shows which module returned and which received which tensor. In every block,

- a module that behaves as a norm, that reads the residual stream and whose very output another module of the block
  receives, is a site; those that receive it are what the site feeds;
- where no norm feeds the attention, or none the feed-forward part, the modules that receive the residual stream itself
  are read instead (kind "none": post-norm blocks);
- a module that mixes positions is the token mixer (`ln_attn`), one that does not is part of the feed-forward
  (`ln_mlp`); a norm that feeds both is `ln_attn_mlp`. Where every block is a single sublayer, some of one kind and some
  of the other, each has the one site `ln_block`.

A cast of the stream counts as the stream, and a norm's output times a number as the output.

Norms inside attention or experts never meet the residual stream, and the output of a norm after a sublayer is added to
the stream, not received by a module; so neither is taken for a site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from capture.errors import OutliersError
from capture.models.meta import meta_model
from capture.models.placement import whole_parameter
from capture.sites.blocks import (
    REMEDY,
    Norms,
    Reading,
    block_calls,
    passes_through,
    received,
    refuse_encoder,
    refuse_incomplete,
    refuse_several_streams,
    sublayer_readings,
    tensor_keys,
)
from capture.sites.norms import norm_form
from capture.sites.probe import Call, Key, Record, probe
from capture.store.schema import SITES

FINAL = "final"


@dataclass(frozen=True)
class Site:
    """One place where a sublayer reads the residual stream.

    Parameters
    ----------
    layer : index of the block; for the final site, the number of blocks
    name : "ln_attn", "ln_mlp", "ln_attn_mlp", "ln_block", or "final"
    module : dotted path of the norm; for kind "none", of the sublayer that reads the residual stream itself
    kind : "rms", "layer" or "none"
    feeds : dotted paths of the modules that receive the norm's output
    epsilon, weight_offset, rounding : of the norm, as `capture.store.norms.derive_norm_output` takes them
    argument : position or keyword under which `module` receives the residual stream
    width : number of features
    call : which of the module's calls in a pass is read, from 0; another than the first only for the final site
    """

    layer: int
    name: str
    module: str
    kind: str
    feeds: tuple[str, ...]
    epsilon: float | None = None
    weight_offset: float = 0.0
    rounding: str = "last"
    argument: int | str = 0
    width: int = 0
    call: int = 0

    def row(self) -> dict[str, Any]:
        """The site as values that JSON can hold; without `call` where it is the first, as in older stores."""
        row = {**asdict(self), "feeds": list(self.feeds)}
        if self.call == 0:
            del row["call"]
        return row


@dataclass(frozen=True)
class SiteMap:
    """All sites of a model.

    Parameters
    ----------
    sites : in the order in which the modules run
    final : the last norm of the model; kind "none" names the module that reads the last block's output
    hidden_size : width of the residual stream
    """

    sites: tuple[Site, ...]
    final: Site
    hidden_size: int

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return 1 + max(site.layer for site in self.sites)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites of each layer, in the order of `capture.store.schema.SITES`."""
        return tuple(name for name in SITES if any(site.name == name for site in self.sites))

    @property
    def kind(self) -> str:
        """The kind of all norms before sublayers, or "mixed"."""
        kinds = {site.kind for site in self.sites}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    def table(self) -> list[dict[str, Any]]:
        """Every site, the final one last, as values that JSON can hold."""
        return [site.row() for site in (*self.sites, self.final)]


def _role(consumers: list[Call]) -> str:
    mixers = [bool(consumer.mixing) for consumer in consumers]
    return "ln_attn_mlp" if any(mixers) and not all(mixers) else "ln_attn" if all(mixers) else "ln_mlp"


def _site(layer: int, name: str, readings: list[Reading], norms: Norms) -> Site:
    feeds = tuple(reading.consumer.path for reading in readings)
    norm = readings[0].norm
    if norm is None:
        return _bare_site(layer, name, feeds, readings[0].argument, norms)
    return _norm_site(layer, name, norm, feeds, norms)


def _norm_site(layer: int, name: str, norm: Call, feeds: tuple[str, ...], norms: Norms) -> Site:
    form = norms.form(norm)
    assert form is not None
    return Site(
        layer,
        name,
        norm.path,
        form.kind,
        feeds,
        form.epsilon,
        form.weight_offset,
        form.rounding,
        next(iter(norm.inputs)),
        norms.width,
    )


def _bare_site(layer: int, name: str, feeds: tuple[str, ...], argument: int | str, norms: Norms) -> Site:
    return Site(layer, name, feeds[0], "none", feeds, argument=argument, width=norms.width)


def _block_sites(layer: int, block: Call, record: Record, norms: Norms) -> list[Site]:
    """Sites of one block, in the order in which their modules ran."""
    stream = tuple(tensor for tensor in block.inputs.values() if tensor.shape[-1] == norms.width)
    residual = tensor_keys(stream) | record.sums
    grouped: dict[tuple[Key, bool], list[Reading]] = {}
    for reading in sublayer_readings(block, residual, {}, norms, record):
        if reading.tensor in record.addends:
            # A norm whose output the sublayer's own is added to makes the residual stream (OPT-350m), and is not
            # before the sublayer but after the last one.
            reading = replace(reading, norm=None)
        grouped.setdefault((reading.tensor, reading.norm is None), []).append(reading)
    named = [(_role([reading.consumer for reading in group]), group) for group in grouped.values()]
    served = {part for name, group in named if group[0].norm for part in name.split("_")[1:]}
    # In a block with norms, whatever reads the bare stream beside them (a gate, an adapter) is no sublayer.
    sites = [
        _site(layer, name, group, norms)
        for name, group in named
        if group[0].norm or not served & set(name.split("_")[1:])
    ]
    names = [site.name for site in sites]
    if len(set(names)) < len(names) or ("ln_attn_mlp" in names and len(names) > 1):
        modules = ", ".join(f"{site.name} at {site.module}" for site in sites)
        raise OutliersError(f"block {block.path} reads the stream at {modules}; expected each site once; {REMEDY}")
    order = {call.path: index for index, call in enumerate(block.descendants())}
    return sorted(sites, key=lambda site: order[site.module])


def _final_site(blocks: list[Call], after: list[Call], norms: Norms) -> Site:
    """Find the norm that reads the last block's output or, without one, the first module that does."""
    output = tensor_keys(blocks[-1].outputs)
    readers = [(call, reading) for call in after if (reading := received(call, output)) and not passes_through(call)]
    # Where something between the two makes another tensor (a scale, a sum of streams), the first norm is the last one.
    normed = [call for call, _ in readers] or after
    for call in normed:
        if norms.form(call) is not None:
            return _norm_site(len(blocks), FINAL, call, (), norms)
    for call, (argument, _) in readers:
        return _bare_site(len(blocks), FINAL, (call.path,), argument, norms)
    raise OutliersError(
        f"nothing reads the output of {blocks[-1].path}; expected a last norm; name it: --sites final=PATH"
    )


def _after(record: Record, blocks: list[Call]) -> list[Call]:
    """Calls that began after the last block had ended."""
    inside = {id(call) for call in blocks[-1].descendants()}
    calls = list(record.root.descendants())
    return [call for call in calls[calls.index(blocks[-1]) + 1 :] if id(call) not in inside]


def _numbered(final: Site, record: Record, after: list[Call]) -> Site:
    """The final site with the number of its call: a last norm may run before the first block too (nanochat)."""
    own = [call for call in record.root.descendants() if call.path == final.module]
    return replace(final, call=next((number for number, call in enumerate(own) if call in after), 0))


def _refuse_repeated(record: Record, sites: Iterable[Site]) -> None:
    """Refuse modules that run more than once in a pass, of which a trace would read the first call."""
    calls = Counter(call.path for call in record.root.descendants())
    for site in sites:
        if calls[site.module] > 1:
            raise OutliersError(
                f"{site.module}, read at {site.name}, runs {calls[site.module]} times in a pass; expected once; "
                "name another module with --sites"
            )


def _uniform(sites: list[list[Site]]) -> None:
    first = {site.name for site in sites[0]}
    for layer in sites:
        names = {site.name for site in layer}
        if names != first:
            raise OutliersError(
                f"layer {layer[0].layer if layer else sites.index(layer)} has sites {sorted(names)} and layer 0 has "
                f"{sorted(first)}; expected the same in every layer; {REMEDY}"
            )


def find_sites(model: torch.nn.Module, overrides: Mapping[str, str] | None = None) -> SiteMap:
    """Find where the sublayers of `model` read the residual stream.

    Works the same with weights, on the meta device and under fake tensors.

    Parameters
    ----------
    model : a decoder of transformers, or one with its manners
    overrides : site name (or "final") to path, with {} for the layer, as `parse_overrides` gives it; the named norms
        replace what would have been found

    Raises
    ------
    OutliersError
        If the model is not a decoder, or its blocks cannot be read as attention and feed-forward.
    """
    record = probe(model)
    blocks = block_calls(record)
    refuse_encoder(model, blocks)
    stream = next(tensor for tensor in blocks[0].inputs.values() if tensor.dim() >= 2)
    refuse_several_streams(model, stream)
    norms = Norms(stream.shape[-1])
    overrides = dict(overrides or {})
    final_path = overrides.pop(FINAL, None)
    if overrides:
        layers = [_overridden(index, block, overrides, norms) for index, block in enumerate(blocks)]
    else:
        layers = [_block_sites(index, block, record, norms) for index, block in enumerate(blocks)]
    if not overrides:
        parts = {part for layer in layers for site in layer for part in site.name.split("_")[1:]}
        if parts == {"attn", "mlp"} and all(len(layer) == 1 and layer[0].name != "ln_attn_mlp" for layer in layers):
            layers = [[replace(site, name="ln_block") for site in layer] for layer in layers]
        else:
            refuse_incomplete(model, blocks, {part for site in layers[0] for part in site.name.split("_")[1:]})
    _uniform(layers)
    after = _after(record, blocks)
    if final_path is None:
        final = _final_site(blocks, after, norms)
    else:
        final = _named_site(len(blocks), FINAL, final_path, after, norms)
    final = _numbered(final, record, after)
    found = SiteMap(tuple(site for layer in layers for site in layer), final, stream.shape[-1])
    _refuse_repeated(record, found.sites)
    return found


def _named_site(layer: int, name: str, path: str, calls: list[Call], norms: Norms) -> Site:
    call = next((call for call in calls if call.path == path), None)
    if call is None or not call.inputs:
        where = "after the last block" if name == FINAL else "in the blocks"
        raise OutliersError(
            f"--sites {name}: no module {path} was called {where}; expected a path as in `outliers sites MODEL`"
        )
    if (found := next(iter(call.inputs.values())).shape[-1]) != norms.width:
        raise OutliersError(
            f"--sites {name}: {path} receives {found} features; "
            f"expected one that receives all {norms.width} of the stream"
        )
    if norms.form(call) is None:
        return _bare_site(layer, name, (path,), next(iter(call.inputs)), norms)
    output = tensor_keys(call.outputs)
    siblings = [other for other in calls if other.parent is call.parent and not passes_through(other)]
    feeds = tuple(other.path for other in siblings if received(other, output))
    return _norm_site(layer, name, call, feeds, norms)


def _overridden(layer: int, block: Call, overrides: Mapping[str, str], norms: Norms) -> list[Site]:
    index = block.path.rpartition(".")[2]
    calls = list(block.descendants())
    sites = [_named_site(layer, name, path.replace("{}", index), calls, norms) for name, path in overrides.items()]
    order = {call.path: number for number, call in enumerate(calls)}
    return sorted(sites, key=lambda site: order[site.module])


def parse_overrides(text: str) -> dict[str, str]:
    """Read `--sites`: comma-separated NAME=PATH, with {} in PATH for the number of the layer.

    NAME is "ln_attn", "ln_mlp", "ln_attn_mlp", "ln_block" or "final". If any but the last is given, no other site of
    the blocks is looked for; "final" alone replaces only the last norm. A path to a module that is no norm names a
    sublayer that reads the residual stream itself.
    """
    result: dict[str, str] = {}
    for part in text.split(","):
        name, equals, path = (piece.strip() for piece in part.partition("="))
        if not equals or not path or name not in (*SITES, FINAL) or name in result:
            raise OutliersError(
                f"--sites {part.strip()!r} is not understood; expected NAME=PATH, each of {', '.join((*SITES, FINAL))} "
                "at most once; for example ln_attn=model.layers.{}.norm_a,final=model.norm"
            )
        if (name != FINAL) != ("{}" in path):
            raise OutliersError(
                f"--sites {part.strip()!r}: expected {{}} for the number of the layer in the path of a site of the "
                "blocks, and none in that of the final norm; for example ln_mlp=model.layers.{}.norm_b"
            )
        result[name] = path
    return result


def sites_from_config(
    model_or_config: torch.nn.Module | transformers.PreTrainedConfig,
    overrides: Mapping[str, str] | None = None,
    *,
    trust_remote_code: bool = False,
) -> SiteMap:
    """Find the sites of a model that is only described, without allocating a weight."""
    if isinstance(model_or_config, torch.nn.Module):
        return find_sites(model_or_config, overrides)
    return find_sites(meta_model(model_or_config, trust_remote_code=trust_remote_code), overrides)


def norm_parameters(
    model: torch.nn.Module, site: Site
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """Weight and bias of the norm of a site, as stored in the model, in float32.

    The weight is one everywhere where the norm has none, and where the kind is "none".
    """
    ones = np.ones(site.width, dtype=np.float32)
    if site.kind == "none":
        return ones, None
    module = model.get_submodule(site.module)
    form = norm_form(module, site.width)
    values = {name: whole_parameter(module, name) for name, _ in module.named_parameters()}
    if form is None or any(parameter.is_meta for parameter in values.values()):
        raise OutliersError(
            f"{site.module} is not a norm with its weights loaded; expected one; load the model of which the sites are"
        )
    weight, bias = (
        None if name is None else values[name].float().cpu().numpy() * ones for name in (form.weight, form.bias)
    )
    return ones if weight is None else weight, bias
