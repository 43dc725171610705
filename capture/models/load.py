"""Load a causal language model and wrap it for tracing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import OutliersError
from capture.models.commits import remember
from capture.models.failures import told
from capture.models.files import check_folder
from capture.models.limits import check_sizes
from capture.models.placement import memory_limits, placed_where, torch_device
from capture.models.provenance import commit_or_digest, quantisation
from capture.models.random_weights import PREFIX, byte_tokenizer, is_random, random_attributes, random_model
from capture.models.retry import patiently
from capture.models.source import OFFLINE_MODEL, OFFLINE_ORIGINAL, Source, find_source
from capture.progress import Reporter, Silence
from capture.store.schema import COMPUTE_DTYPES

if TYPE_CHECKING:
    from nnsight import NNsight
    from transformers import PreTrainedModel

DTYPES: Final = ("auto", *COMPUTE_DTYPES)

# Everything beside the weights. transformers passes over a tokenizer's file that a fault kept from it, and the tokens
# are then others.
_DESCRIPTION: Final = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]


@dataclass(frozen=True)
class Loaded:
    """A model, ready to be traced.

    Parameters
    ----------
    model : the transformers model
    traced : the same model under nnsight
    tokenizer : its Hugging Face tokenizer
    attributes : what the store records of where the model came from and how it computes
    """

    model: PreTrainedModel
    traced: NNsight
    tokenizer: Any
    attributes: dict[str, Any]


def silence_libraries() -> None:
    """Keep the libraries' own talk off standard error; what matters is raised."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def load_config(
    model: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> Any:
    """Load a model's configuration, without its weights.

    Parameters
    ----------
    model, revision, reporter : as for `find_source`

    Raises
    ------
    OutliersError
        The model is unknown, or the hub cannot be reached.
    """
    reporter = Silence() if reporter is None else reporter
    source = find_source(model, reporter, revision=revision, configuration_alone=True)
    return _configuration(model, source, trust_remote_code, reporter)


def _configuration(model: str, source: Source, trust_remote_code: bool, reporter: Reporter) -> Any:
    from transformers import AutoConfig, PreTrainedConfig

    options = {"trust_remote_code": trust_remote_code, **source.arguments()}
    what = f"configuration of the model {model}"
    with told(f"model {model}"):
        if source.gguf is None:  # as it is written: making a configuration of it may already take for ever
            read = PreTrainedConfig.get_config_dict
            written, _ = patiently(what, lambda: read(source.model, **source.options), reporter)
            check_sizes(written)
        config = patiently(what, lambda: AutoConfig.from_pretrained(source.model, **options), reporter)
    if source.revision is not None and not source.options.get("local_files_only"):
        remember(source.model, source.revision, source.options["revision"])
    return config


@dataclass(frozen=True)
class Description:
    """A model of which all but the weights is loaded: enough for every check that does not need them.

    Parameters
    ----------
    name, source : as the user named it, and where its files are
    tokenizer : its Hugging Face tokenizer
    config : its configuration; None for a GGUF file, which takes as long to parse for it as for the weights
    dtype, device, max_memory, trust_remote_code, reporter : as for `load_model`
    """

    name: str
    source: Source
    tokenizer: Any
    config: Any
    dtype: str
    device: str
    max_memory: str | None
    trust_remote_code: bool
    reporter: Reporter

    def load(self) -> Loaded:
        """Load the weights; raises as `load_model` does."""
        return _load_random(self) if is_random(self.name) else _load_weights(self)


def describe_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    max_memory: str | None = None,
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> Description:
    """Load of a model what is small: its tokenizer and its configuration.

    Parameters and errors are those of `load_model`.
    """
    if dtype not in DTYPES:
        raise OutliersError(f"--dtype {dtype} is not known; expected one of {', '.join(DTYPES)}")
    torch_device("cpu" if device == "auto" else device)
    if max_memory is not None:
        memory_limits(max_memory)
        if device != "auto" or is_random(model):
            raise OutliersError("--max-memory was given; expected it with --device auto and a checkpoint; leave it out")
    reporter = Silence() if reporter is None else reporter
    source = find_source(model, reporter, revision=revision, configuration_alone=is_random(model))
    if source.model.lower().endswith(".json") and not is_random(model):
        raise OutliersError(
            f"{model} is a configuration without weights; expected a checkpoint, or {PREFIX}{model} to draw random ones"
        )
    config = None
    if source.gguf is None or is_random(model):
        config = _configuration(model, source, trust_remote_code, reporter)
    if is_random(model):
        tokenizer = byte_tokenizer(config)
    else:
        if source.gguf is None and Path(source.model).is_dir():
            check_folder(Path(source.model))
        tokenizer = _load_tokenizer(model, source, trust_remote_code, reporter)
    return Description(model, source, tokenizer, config, dtype, device, max_memory, trust_remote_code, reporter)


def load_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    max_memory: str | None = None,
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> Loaded:
    """Load a model for capture: evaluation mode, no gradients, no pickled weights.

    Parameters
    ----------
    model, revision : as for `find_source`
    dtype : `auto` is the checkpoint's own (float32 for GGUF files, whose weights stay packed)
    device : `auto` spreads over all GPUs where there are any, else uses the CPU; or a torch device such as `cuda:1`
    max_memory : how much `auto` may put where, as for `memory_limits`; the rest is read from disk in each pass
    reporter : is told where the hub keeps one waiting

    Raises
    ------
    OutliersError
        The model is unknown or cannot be loaded, or the device is not there.
    """
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code, "reporter": reporter}
    described = describe_model(model, revision=revision, dtype=dtype, device=device, max_memory=max_memory, **how)
    return described.load()


def _load_weights(described: Description) -> Loaded:
    """The checkpoint's network."""
    import torch
    from transformers.utils import logging

    from capture.models.traced import traced

    model, source, dtype, device = described.name, described.source, described.dtype, described.device
    logging.disable_progress_bar()
    placement: dict[str, Any] = {}
    if device == "auto" and (torch.cuda.is_available() or described.max_memory is not None):
        placement["device_map"] = "auto"
        if described.max_memory is not None:
            placement["max_memory"] = memory_limits(described.max_memory)
    options: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else getattr(torch, dtype)}
    options["ignore_mismatched_sizes"] = True  # they are refused below, by their names
    if source.gguf is not None and dtype == "auto":
        options = {}
    elif source.gguf is None:
        options["use_safetensors"] = True  # a pickled checkpoint can run code
    network, report = _load_network(described, {**options, **placement})
    _check_report(report, network, model)
    if unused := sorted(report["unexpected_keys"]):  # as where a configuration has fewer layers than its checkpoint
        described.reporter.warn(
            f"{len(unused)} weights of the checkpoint of {model} have no place in {type(network).__name__}, such as "
            f"{unused[0]}; they are left out"
        )
    if placement:
        described.reporter.say(f"the weights of {model} lie where there is room: {placed_where(network)}")
    else:
        network.to(torch_device("cpu" if device == "auto" else device))
    network.eval()
    network.requires_grad_(False)
    attributes = {
        "model_id": model,
        "model_source": OFFLINE_ORIGINAL if model == OFFLINE_MODEL else model,
        "model_file": source.gguf,
        "model_revision": commit_or_digest(source.model, source.gguf, source.options),
        "model_revision_name": source.revision,
        "weight_quantisation": quantisation(source.gguf, described.config, network.config),
        **_computation(network),
    }
    return Loaded(network, traced(network), described.tokenizer, attributes)


def _check_report(report: Any, network: Any, model: str) -> None:
    """Refuse a checkpoint for whose weights transformers would make up random values."""
    lacking, misshapen = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if misshapen:
        name, there, wanted = misshapen[0]
        raise OutliersError(
            f"{len(misshapen)} weights of the checkpoint of {model} have other shapes than its configuration says, "
            f"such as {name} ({list(there)}, expected {list(wanted)}); download both again, from one revision"
        )
    if lacking:
        raise OutliersError(
            f"the checkpoint of {model} lacks {len(lacking)} weights that {type(network).__name__} has, such as "
            f"{lacking[0]}; expected a whole checkpoint; download or save it again"
        )


def _computation(network: Any) -> dict[str, Any]:
    """What a store records of the network itself."""
    return {
        "architecture": type(network).__name__,
        "compute_dtype": str(network.dtype).removeprefix("torch."),
        "attention_implementation": network.config._attn_implementation,
    }


def _load_random(described: Description) -> Loaded:
    """The configuration's network with random weights, under a name and with attributes that say so."""
    import torch

    from capture.models.traced import traced

    device = described.device
    target = torch_device(("cuda:0" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    config, trusted = described.config, described.trust_remote_code
    network = random_model(config, described.dtype, target, trust_remote_code=trusted).eval().requires_grad_(False)
    attributes = {
        "model_id": described.name,
        "model_source": described.name,
        "model_file": None,
        "weight_quantisation": None,
        **random_attributes(config, target),
        **_computation(network),
    }
    return Loaded(network, traced(network), described.tokenizer, attributes)


def _load_tokenizer(model: str, source: Source, trust_remote_code: bool, reporter: Reporter) -> Any:
    import huggingface_hub
    from transformers import AutoTokenizer

    what = f"tokenizer of the model {model}"
    options = {"trust_remote_code": trust_remote_code, **source.arguments()}

    def load() -> Any:
        if "revision" in source.options:
            huggingface_hub.snapshot_download(
                source.model,
                revision=source.options["revision"],
                allow_patterns=_DESCRIPTION,
                ignore_patterns=["*/*"],
            )
        return AutoTokenizer.from_pretrained(source.model, **options)

    with told(what):
        return patiently(what, load, reporter)


def _load_network(described: Description, options: dict[str, Any]) -> tuple[Any, Any]:
    """The transformers model, and what `from_pretrained` tells of keys that did not fit."""
    from transformers import AutoModelForCausalLM

    from capture.models.meta import model_class

    model, source, trusted = described.name, described.source, described.trust_remote_code
    arguments = {"trust_remote_code": trusted, **source.arguments()}
    maker: Any = AutoModelForCausalLM  # a GGUF file holds a language model
    if described.config is not None:
        maker = model_class(described.config, trust_remote_code=trusted)
    with told(f"model {model}"):
        loaded: tuple[Any, Any] = patiently(
            f"weights of the model {model}",
            lambda: maker.from_pretrained(source.model, output_loading_info=True, **options, **arguments),
            described.reporter,
        )
    return loaded
