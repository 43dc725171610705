"""What a newcomer meets first is true: the archive answers as the README shows, CONTRIBUTING names what is there."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import analyze
from analyze import Criteria, find_outliers, open_store
from analyze.cli import main

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT / "data" / "smollm2-135m-peaks.zarr.zip"


def test_the_first_answer_is_the_one_that_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"```text\n(criterion(?:.*\n)+?)```", readme)
    assert main(["find", str(ARCHIVE), "--magnitude", "200"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for line in shown.splitlines():
        assert line.split() in printed


def test_the_archive_is_small_and_says_nothing_of_the_machine_that_made_it() -> None:
    assert ARCHIVE.stat().st_size <= 4_000_000
    attributes = open_store(ARCHIVE).attrs
    assert not re.search(r"(^|[\s\"'=])/\w", attributes["command"])
    assert attributes["model_source"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("signal", ["input", "output"])
def test_the_archive_agrees_with_a_plain_count(signal: str) -> None:
    store = open_store(ARCHIVE)
    layer = store[["layer_high", "layer_low"]].sel(signal=signal).map(abs).to_dataarray().max("variable")
    position = store["position_peak"].sel(signal=signal)
    magnitude = 200 if signal == "input" else 4
    shares = (layer >= magnitude).mean(["layer", "site"]), (position >= magnitude).mean("position")
    expected = int(((shares[0] >= 0.25) & (shares[1] >= 0.06)).sum())
    assert find_outliers(store, Criteria(magnitude=magnitude, signal=signal)).count == expected
    assert expected > 0


def test_the_archive_is_sound_once_it_is_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unpack", str(ARCHIVE), "--out", str(tmp_path / "s.zarr")]) == 0
    assert main(["verify", str(tmp_path / "s.zarr")]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs"])
def test_modules_and_files_that_are_named_exist(page: str) -> None:
    pages = sorted((ROOT / page).glob("*.md")) if (ROOT / page).is_dir() else [ROOT / page]
    for text in (one.read_text() for one in pages):
        for file in re.findall(r"\b((?:analyze|capture|tests)/[\w/]+\.py)\b", text):
            assert (ROOT / file).is_file(), file
        for name in re.findall(r"`((?:analyze|capture)(?:\.[a-z_]\w*)+)`", text):
            head, *rest = name.split(".")
            place = ROOT / head
            while rest and ((place / rest[0]).is_dir() or (place / f"{rest[0]}.py").is_file()):
                place = place / rest.pop(0)
            known = (
                place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
            ).read_text()
            public = head == "analyze" and place == ROOT / head and rest and rest[0] in analyze.__all__
            assert not rest or public or rest[0] in known, name


def test_the_imports_of_the_tutorial_resolve() -> None:
    pytest.importorskip("torch")
    cells = json.loads((ROOT / "docs/tutorial.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = re.findall(r"^from ((?:analyze|capture)[\w.]*) import ([\w, ]+)$", code, re.MULTILINE)
    assert len(found) >= 2
    for module, names in found:
        for name in names.split(", "):
            assert hasattr(import_module(module), name), (module, name)


def test_contributing_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = re.findall(r"`((?:analyze|capture|tests|data|\.ci)/[\w./]*|\w+\.(?:md|toml|txt))`", text)
    assert len(files) >= 12
    assert [name for name in files if not (ROOT / name).exists()] == []
    for target in re.findall(r"`?make ([a-z]+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for name, file in (("MatrixStatistics", "metrics"), ("_row", "metrics"), ("_SUM", "metrics")):
        assert name in text
        assert name in (ROOT / f"analyze/answers/{file}.py").read_text()
    assert "NAMES" in (ROOT / "analyze/commands/__init__.py").read_text()
    assert "_CRITERIA" in (ROOT / "analyze/commands/options.py").read_text()


def test_every_room_stands_in_the_map() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for package in ("analyze", "capture"):
        for room in (ROOT / package).iterdir():
            if room.is_dir() and room.name != "__pycache__":
                assert f"{room.name}/" in text, room


def test_files_for_other_tools_can_be_read() -> None:
    yaml = pytest.importorskip("yaml")
    names = ("CITATION.cff", ".pre-commit-config.yaml", ".github/workflows/ci.yml", ".github/ISSUE_TEMPLATE/bug.yml")
    read = {name: yaml.safe_load((ROOT / name).read_text()) for name in names}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert read["CITATION.cff"]["version"] == project["version"]
    assert read["CITATION.cff"]["license"] == project["license"]
    labels = " ".join(str(part["attributes"]["label"]) for part in read[names[3]]["body"])
    assert "outliers --version" in labels
    assert "outliers info" in labels


def test_the_list_of_public_names_is_what_the_documentation_shows() -> None:
    stub = (ROOT / "analyze/__init__.pyi").read_text()
    assert sorted(re.findall(r" as (\w+)$", stub, re.MULTILINE)) == sorted(analyze.__all__)
