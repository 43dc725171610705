"""Facts about a model that its description alone tells: parameters, experts and how they are chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from capture.errors import OutliersError
from capture.models.limits import text_config
from capture.models.meta import meta_model
from capture.sites.blocks import block_calls
from capture.sites.probe import Call, probe


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model.

    Parameters
    ----------
    architecture : class of the model
    hidden_size, layers : width of the residual stream, number of blocks
    total_parameters : distinct parameters; tied ones count once
    active_parameters : the same without the experts that one token does not use
    embedding_parameters, head_parameters : those of the token embedding and of the map back to the vocabulary, part of
        both counts; the latter is 0 where they are tied. Published counts differ in whether they have them: Mixtral
        and OLMoE have both, gpt-oss has no embedding in its active count, GLM-4.5 neither in either
    experts, shared_experts, top_k : of a mixture-of-experts layer; 0 in a dense model
    routing : "softmax" or "sigmoid", "none" in a dense model
    """

    architecture: str
    hidden_size: int
    layers: int
    total_parameters: int
    active_parameters: int | None
    embedding_parameters: int
    head_parameters: int
    experts: int
    shared_experts: int
    top_k: int
    routing: str

    def as_attributes(self) -> dict[str, str | int | None]:
        """Return the facts as attributes of a store."""
        return asdict(self)


def _expert_parameters(block: torch.nn.Module) -> dict[int, tuple[str, int]]:
    """Map the number of experts to the path of their module and the count of all their parameters.

    The experts of a block are either stacked in tensors whose first axis counts them, or listed one by one.
    """
    found: dict[int, tuple[str, int]] = {}
    for path, module in block.named_modules():
        own = dict(module.named_parameters(recurse=False))
        stacked = {len(parameter) for parameter in own.values() if parameter.dim() == 3}
        if len(stacked) == 1 and (count := stacked.pop()) > 1:
            size = sum(parameter.numel() for parameter in own.values() if len(parameter) == count)
            outer, before = found.get(count, (path.rpartition(".")[0] if count in found else path, 0))
            found[count] = outer, before + size
        elif isinstance(module, torch.nn.ModuleList) and len(module) > 1:
            sizes = {sum(parameter.numel() for parameter in member.parameters()) for member in module}
            if len(sizes) == 1 and (size := sizes.pop()):
                found[len(module)] = path, size * len(module)
    return found


@dataclass(frozen=True)
class _Mixture:
    experts: int
    top_k: int
    routing: str
    shared: bool
    idle_parameters: int | None


def _routing(gates: set[tuple[str, int]], experts: int, top_k: int) -> str:
    if ("sigmoid", experts) in gates:
        return "sigmoid"
    if ("softmax", experts) in gates or ("softmax", top_k) in gates:
        return "softmax"
    return "other"


def _reading_beside(block: Call, experts_path: str, hidden_size: int) -> Iterator[Call]:
    """Yield the calls beside the experts that map back to the width of the stream, as experts do and routers do not."""
    for call in block.descendants():
        parent = call.path.rpartition(".")[0]
        if call.mixing or not experts_path.startswith(parent + ".") or experts_path.startswith(call.path):
            continue
        weights = [parameter for parameter in call.module.parameters() if parameter.dim() == 2]
        if any(weight.shape[0] == hidden_size for weight in weights):
            yield call


def _mixture(block: Call, hidden_size: int, config: Any) -> _Mixture | None:
    """Find the mixture of experts of a block.

    It is told by a top-k over as many scores as there are experts. A router that chooses otherwise (PhiMoE draws one
    after another) leaves the k to the configuration.
    """
    calls = list(block.descendants())
    mixers = [call.path for call in calls if call.mixing]
    routers = [call for call in calls if not call.mixing]
    for experts, (path, size) in _expert_parameters(block.module).items():
        inside = f"{block.path}.{path}"
        if any(inside == mixer or inside.startswith(mixer + ".") for mixer in mixers):
            continue
        # Grouped routing takes a top-k over groups first; the last over all experts chooses.
        chosen = [k for call in routers for width, k in call.selections if width == experts]
        stacked = not isinstance(block.module.get_submodule(path), torch.nn.ModuleList)
        if not chosen and stacked:
            chosen = [_configured_top_k(config, inside)]
        if chosen:
            gates = set().union(*(call.gates for call in routers))
            shared = any(True for _ in _reading_beside(block, inside, hidden_size))
            idle = size // experts * (experts - chosen[-1])
            return _Mixture(experts, chosen[-1], _routing(gates, experts, chosen[-1]), shared, idle)
    # A router without experts that can be told apart (DBRX keeps them all in one matrix): no dense model all the same.
    outside = [call for call in routers if not any(call.path.startswith(mixer + ".") for mixer in mixers)]
    for width, k in (selection for call in outside for selection in call.selections):
        gates = set().union(*(call.gates for call in outside))
        return _Mixture(width, k, _routing(gates, width, k), False, None)
    return None


def _configured_top_k(config: Any, path: str) -> int:
    top_k = getattr(config, "num_experts_per_tok", None)
    if not isinstance(top_k, int):
        raise OutliersError(
            f"how many experts of {path} a token uses is seen neither in a probe pass nor in the configuration; "
            "expected num_experts_per_tok; choose another model"
        )
    return top_k


def _shared_count(config: Any, present: bool) -> int:
    """Shared experts of a layer; a configuration that does not count them has one, however wide."""
    if not present:
        return 0
    counts = (value for name, value in config.to_dict().items() if "shared_expert" in name and "size" not in name)
    return next((count for count in counts if isinstance(count, int) and count > 0), 1)


def model_facts(
    model_or_config: torch.nn.Module | transformers.PreTrainedConfig, *, trust_remote_code: bool = False
) -> ModelFacts:
    """Derive the facts from the module tree and from a probe pass; no weights are needed.

    Raises
    ------
    OutliersError
        If the model is not a decoder, or the layers with experts differ in their number.
    """
    if isinstance(model_or_config, torch.nn.Module):
        model: Any = model_or_config
    else:
        model = meta_model(model_or_config, trust_remote_code=trust_remote_code)
    blocks = block_calls(probe(model))
    hidden_size = next(int(tensor.shape[-1]) for tensor in blocks[0].inputs.values() if tensor.dim() >= 2)
    config = text_config(model.config)
    mixtures = [mixture for block in blocks if (mixture := _mixture(block, hidden_size, config))]
    kinds = {(mixture.experts, mixture.top_k, mixture.routing, mixture.shared) for mixture in mixtures}
    if len(kinds) > 1:
        raise OutliersError(
            f"layers of {type(model).__name__} differ in their experts: {sorted(kinds)}; "
            "expected one number of experts, top-k and routing; choose another model"
        )
    experts, top_k, routing, shared = kinds.pop() if kinds else (0, 0, "none", False)
    idle = [mixture.idle_parameters for mixture in mixtures]
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight
    head = getattr(model.get_output_embeddings(), "weight", embedding)
    return ModelFacts(
        architecture=type(model).__name__,
        hidden_size=hidden_size,
        layers=len(blocks),
        total_parameters=total,
        active_parameters=None if None in idle else total - sum(size for size in idle if size is not None),
        embedding_parameters=embedding.numel(),
        head_parameters=0 if head is embedding else head.numel(),
        experts=experts,
        shared_experts=_shared_count(config, shared),
        top_k=top_k,
        routing=routing,
    )
