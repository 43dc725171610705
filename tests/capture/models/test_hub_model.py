"""A model of the hub, from a stand-in that serves it: its commit is stored, and it is found again without the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from huggingface_hub import constants

from analyze import open_store
from capture.errors import OutliersError
from capture.models.load import load_model
from capture.models.source import cached_commit, find_source
from capture.run import capture
from tests.hub import COMMIT, connect, serving

NAME = "org/tiny"


@pytest.fixture
def fetched(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit in the store that was captured while the hub was there; now it is not."""
    with serving(checkpoint, NAME) as hub:
        connect(hub, tmp_path / "cache", monkeypatch)
        commit = load_model(NAME).attributes["model_revision"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("capture.models.retry.PATIENCE", 0)
    return str(commit)


def test_the_commit_is_stored(
    checkpoint: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(checkpoint, NAME) as hub:
        connect(hub, tmp_path / "cache", monkeypatch)
        out = capture(NAME, tmp_path / "s.zarr", text=str(text_file), sequences=2, length=16, raw="none")
    assert open_store(out).attrs["model_revision"] == COMMIT


def test_what_was_fetched_by_its_commit_is_found_without_the_hub(fetched: str, tmp_path: Path) -> None:
    assert fetched == COMMIT
    assert not (tmp_path / "cache" / "models--org--tiny" / "refs" / "main").exists()
    assert cached_commit(NAME) == COMMIT
    assert find_source(NAME).options == {"revision": COMMIT, "local_files_only": True}
    assert load_model(NAME).attributes["model_revision"] == COMMIT


def test_what_main_names_goes_before_what_was_fetched_last(fetched: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models--org--tiny"
    other = folder / "snapshots" / ("b" * 40)
    other.mkdir()
    for file in (folder / "snapshots" / fetched).iterdir():
        (other / file.name).symlink_to(file.resolve())
    (folder / "refs").mkdir(exist_ok=True)
    for commit in (fetched, "b" * 40):
        (folder / "refs" / "main").write_text(commit)
        assert cached_commit(NAME) == commit


def test_what_was_never_fetched_is_refused(fetched: str) -> None:
    assert cached_commit("org/other") is None
    with pytest.raises(OutliersError, match="org/other"):
        find_source("org/other")
