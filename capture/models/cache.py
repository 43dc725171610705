"""Models in the local cache of the Hugging Face Hub, removed only where a user asks for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from capture.models.random_weights import is_random
from capture.models.source import OFFLINE_MODEL

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy


def cached_repository(model: str, folder: Path) -> str | None:
    """Repository whose files a capture of `model` keeps in the cache; None for everything that is not of the hub.

    Parameters
    ----------
    model : as on the command line
    folder : where relative paths begin
    """
    local = model == OFFLINE_MODEL or is_random(model) or model.lower().endswith((".gguf", ".json"))
    if local or (folder / model).exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        return None
    return model


def removal_of(repository: str, commit: str | None = None) -> DeleteCacheStrategy | None:
    """How a model would leave the cache, not carried out yet; None where it is not in it.

    Parameters
    ----------
    repository : id of the model
    commit : the one revision that goes; all of them where None
    """
    import huggingface_hub

    try:
        cache = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE)
    except huggingface_hub.CacheNotFound:
        return None
    repos = frozenset(repo for repo in cache.repos if repo.repo_type == "model" and repo.repo_id == repository)
    commits = [one.commit_hash for repo in repos for one in repo.revisions if commit in (None, one.commit_hash)]
    if not commits:
        return None
    # A copy of a repository has the same commits: without the others, none of theirs can be meant.
    own = dataclasses.replace(cache, repos=repos)
    return own.delete_revisions(*commits)
