"""Commits of models in the local cache of the Hugging Face Hub: what serves where the hub is out of reach."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from capture.store.files import AtomicFile

_SHORTEST: Final = 7  # characters that tell a commit


def cached_commit(repository: str, revision: str | None = None) -> str | None:
    """Commit of a model in the cache of the hub; None where it is not there.

    Parameters
    ----------
    repository : id of the model
    revision : name or beginning of the commit; None for the one that `main` names there, else the one fetched last.
        A model that was fetched by its commit, as this tool does, leaves no name behind.
    """
    import huggingface_hub

    try:
        cache = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE)
    except huggingface_hub.CacheNotFound:
        return None
    found = [
        one
        for repo in cache.repos
        if repo.repo_type == "model" and repo.repo_id == repository
        for one in repo.revisions
        if any(file.file_name == "config.json" for file in one.files)
        and (revision is None or revision in one.refs or is_commit(revision, one.commit_hash))
    ]
    return max(found, key=lambda one: ("main" in one.refs, one.last_modified)).commit_hash if found else None


def is_commit(revision: str, commit: str) -> bool:
    """Whether a revision is that commit, or as much of it as tells it."""
    return len(revision) >= _SHORTEST and commit.startswith(revision)


def remember(repository: str, revision: str, commit: str) -> None:
    """Note in the cache what a revision names, once its commit is there, as the hub's own client does."""
    import huggingface_hub

    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    note = folder / "refs" / revision
    if (folder / "snapshots" / commit).is_dir() and revision != commit and folder.resolve() in note.resolve().parents:
        note.parent.mkdir(parents=True, exist_ok=True)
        with AtomicFile(note) as output:
            output.write(commit.encode())
