"""A model of the hub, from a stand-in that serves it: its commit is stored, and it is found again without the hub."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from huggingface_hub import constants

from analyze import open_store, store_info
from analyze.cli import main
from capture.ablation.reload import reload_model
from capture.errors import OutliersError
from capture.estimate import estimate
from capture.models.commits import cached_commit
from capture.models.load import load_config, load_model
from capture.models.source import find_source
from capture.run import capture
from tests.conftest import tiny_llama
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


@pytest.fixture
def other(checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model with other weights, of another revision."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "step1000"))
    tiny_llama(seed=3).save_pretrained(folder)
    return folder


STEP = "b" * 40


def test_a_revision_is_captured_resumed_and_found_again_without_the_hub(
    checkpoint: Path, other: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"text": str(text_file), "sequences": 2, "length": 16, "raw": "none"}
    out = tmp_path / "s.zarr"
    with serving(checkpoint, NAME, step1000=(STEP, other)) as hub:
        connect(hub, tmp_path / "cache", monkeypatch)
        capture(NAME, out, revision="step1000", part=(1, 2), **options)
        assert estimate(NAME, revision="step1000", length=16).store_bytes > 0
        with pytest.raises(OutliersError, match=r"differs in revision \(step1000 in the store, main asked for\)"):
            capture(NAME, out, **options)
        with pytest.raises(OutliersError, match="the model org/tiny has no revision step9 on the Hugging Face Hub"):
            capture(NAME, tmp_path / "none.zarr", revision="step9", **options)
        capture(NAME, tmp_path / "main.zarr", **options)
    attributes = open_store(out, partial=True).attrs
    assert (attributes["model_revision"], attributes["model_revision_name"]) == (STEP, "step1000")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("capture.models.retry.PATIENCE", 0)
    capture(NAME, out, revision=STEP[:9], **options)  # the commit that it is
    assert capture(str(other), tmp_path / "local.zarr", **options).exists()
    np.testing.assert_array_equal(open_store(out).nll, open_store(tmp_path / "local.zarr").nll)
    assert not np.array_equal(open_store(out).nll, open_store(tmp_path / "main.zarr").nll)
    assert cached_commit(NAME, "step1000") == STEP
    assert cached_commit(NAME, "step2000") is None
    with pytest.raises(OutliersError, match="cannot load the model org/tiny at step2000"):
        find_source(NAME, revision="step2000")
    assert (
        reload_model(out, attributes, model=None, device="cpu", trust_remote_code=False)[0].attributes["model_revision"]
        == STEP
    )
    words = shlex.split(store_info(out).to_command("c.zarr"))
    assert words == [
        *(
            "outliers",
            "capture",
            NAME,
            "--revision",
            STEP,
            "--text",
            str(text_file),
            "--sequences",
            "2",
            "--length",
            "16",
        ),
        *("--dtype", "float32", "--raw", "none", "--no-bos", "--out", "c.zarr"),
    ]
    with contextlib.chdir(tmp_path):
        assert main(words[1:]) == 0
    np.testing.assert_array_equal(open_store(out).nll, open_store(tmp_path / "c.zarr").nll)


def test_what_is_not_of_the_hub_has_no_revision(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text((checkpoint / "config.json").read_text())
    for model in (str(checkpoint), str(tmp_path / "c.json"), f"random:{tmp_path / 'c.json'}"):
        with pytest.raises(OutliersError, match=r"--revision main was given, and .* is no model of the hub"):
            load_config(model, revision="main")
