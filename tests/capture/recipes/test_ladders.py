"""The ladders that come along: dry-run without the hub, true to what is published, and taken by the analyses."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import transformers

from analyze import trajectory, transition
from analyze.cli import main
from analyze.question.criteria import Criteria
from analyze.trajectories.names import checkpoint_name
from capture.models.meta import meta_model
from capture.recipes import run
from capture.recipes.recipe import read_recipe
from capture.recipes.run import run_recipe
from tests.capture.recipes.conftest import Commands
from tests.conftest import tiny_llama, tiny_tokenizer
from tests.hub import connect, running

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[3] / "data"
RECIPES = sorted(path.stem for path in (DATA / "recipes").glob("*.toml"))
LADDERS = {
    "pythia": 8,
    "pythia-410m-steps": 19,
    "olmo2": 8,
    "olmo2-1b-steps": 13,
    "qwen2.5": 7,
    "qwen3": 6,
    "llama3": 4,
    "gemma3": 5,
    "smollm2": 3,
}
with (DATA / "models" / "sources.csv").open() as file:
    SOURCES = {row["model"]: row for row in csv.DictReader(file)}


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk for every recipe."""
    room = shutil.disk_usage(tmp_path)._replace(free=10**15)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "pythia-410m-steps" else pytest.mark.exhaustive) for name in RECIPES],
)
def test_every_recipe_is_dry_run_without_the_hub(
    name: str, offline: None, roomy: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = DATA / "recipes" / f"{name}.toml"
    assert main(["run", str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    entries = read_recipe(path).entries
    assert [row[0] for row in rows] == ["name", *(entry.name for entry in entries), "total"]
    assert all(float(row[1]) >= 0 for row in rows[1:])
    assert float(rows[-1][1]) > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", LADDERS)
def test_a_ladder_names_the_configurations_of_its_models(name: str) -> None:
    entries = read_recipe(DATA / "recipes" / f"{name}.toml").entries
    assert len(entries) == LADDERS[name]
    for entry in entries:
        model = entry.request.model
        assert entry.config == f"../models/{model.replace('/', '--')}.json"
        assert model in SOURCES
    assert len({(entry.request.dtype, entry.request.length, entry.request.text) for entry in entries}) == 1


def test_every_configuration_of_a_ladder_says_where_it_is_from() -> None:
    shipped = {path.stem.replace("--", "/") for path in (DATA / "models").glob("*.json")}
    assert set(SOURCES) <= shipped
    for row in SOURCES.values():
        assert all(row.values())
        assert row["gated"] in ("yes", "no")


@pytest.mark.parametrize("model", SOURCES)
def test_a_shipped_configuration_has_the_published_number_of_parameters(model: str) -> None:
    settings = json.loads((DATA / "models" / f"{model.replace('/', '--')}.json").read_text())
    network = meta_model(transformers.AutoConfig.for_model(**settings))
    assert sum(parameter.numel() for parameter in network.parameters()) == int(SOURCES[model]["parameters"])


def revisions(name: str) -> list[str]:
    (model,) = tomllib.loads((DATA / "recipes" / f"{name}.toml").read_text())["models"]
    return list(model["revisions"])


def test_checkpoints_are_named_as_the_trainings_saved_them() -> None:
    """Pythia saves steps 0, 1, 2, 4 ... 512 and every 1,000; OLMo 2 1B has batches of 512 x 4,096 tokens."""
    saved = {0, *(2**n for n in range(10)), *range(1000, 143_001, 1000)}
    pythia = [int(re.fullmatch(r"step(\d+)", one)[1]) for one in revisions("pythia-410m-steps")]  # type: ignore[index]
    assert pythia == sorted(set(pythia) & saved)
    olmo = [checkpoint_name(one) for one in revisions("olmo2-1b-steps")]
    assert {one.run for one in olmo if one is not None} == {"stage1", "stage2-ingredient3"}
    for one in olmo:
        assert one is not None
        assert one.tokens == math.ceil(one.step * 512 * 4096 / 1e9) * 10**9


# ---- what takes them


def write_recipe(folder: Path, models: str, text_file: Path) -> Path:
    shutil.copy(text_file, folder / "words.txt")
    path = folder / "ladder.toml"
    defaults = 'text = "words.txt"\nsequences = 2\nlength = 16\ndtype = "float32"\nraw = "none"'
    path.write_text(f'[defaults]\n{defaults}\n[analysis]\npresets = ["study"]\ncompare = false\n{models}')
    return path


def test_a_transition_takes_a_ladder_as_it_is(
    tmp_path: Path, text_file: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight sizes of Pythia's architecture, small enough for a test."""
    models = []
    for width in range(16, 144, 16):
        shape = {
            "model_type": "gpt_neox", "vocab_size": 300, "hidden_size": width, "intermediate_size": 4 * width,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32, "rotary_pct": 0.25,
        }  # fmt: skip
        (tmp_path / f"size-{width:03}.json").write_text(json.dumps(shape))
        models.append(f'[[models]]\nmodel = "random:size-{width:03}.json"\n')
    recipe = read_recipe(write_recipe(tmp_path, "".join(models), text_file))
    assert run_recipe(recipe, tmp_path / "out").failures() == {}
    stores = sorted((tmp_path / "out").glob("*.zarr"))
    criteria = Criteria(magnitude=1, signal="output")
    found = transition(stores, criteria, repeats=99)
    assert [point.model for point in found.points] == [f"random:size-{width:03}.json" for width in range(16, 144, 16)]
    sizes = [point.x for point in found.points]
    assert sizes == sorted(set(sizes))
    assert all(point.count > 0 for point in found.points)
    assert set(found.tests) == {"layers", "positions", "count"}
    assert (
        main(["transition", *map(str, stores), "--preset", "study", "--magnitude", "1", "--repeats", "99", "--json"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert json.dumps(told).count("random:size-") == 8


def test_revisions_of_a_recipe_make_a_trajectory_and_leave_the_cache_one_by_one(
    tmp_path: Path, text_file: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models at the end of a stage, in it, and as released; one revision serves the weights of another."""
    served: dict[str, dict[str, tuple[str, Path]]] = {}
    cached: list[int] = []
    for number, model in enumerate(("org/one", "org/two", "org/three")):
        served[model] = {}
        for step, revision in enumerate(("stage1-step10-tokens1B", "stage1-step20-tokens2B", "main")):
            folder = tmp_path / "hub" / model.replace("/", "--") / revision
            seed = 10 * number + (1 if revision == "main" else step)
            tiny_llama(layers=2 + number, seed=seed).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
            served[model][revision] = (f"{number}{step}".ljust(40, "a"), folder)
    models = "".join(
        f'[[models]]\nmodel = "{model}"\nrevisions = ["stage1-step10-tokens1B", "stage1-step20-tokens2B", "main"]\n'
        for model in served
    )
    recipe = read_recipe(write_recipe(tmp_path, models, text_file))

    def watch(*arguments: Any, **settings: Any) -> None:
        cached.append(len(list((tmp_path / "cache").glob("models--*/snapshots/*"))))
        Commands.__call__(commands, *arguments, **settings)

    monkeypatch.setattr(run, "run_outliers", watch)
    with running(models=served) as hub:
        connect(hub, tmp_path / "cache", monkeypatch)
        assert run_recipe(recipe, tmp_path / "out", clean_cache=True).failures() == {}
    assert max(cached) == 1
    assert not list((tmp_path / "cache").glob("models--*"))
    out = tmp_path / "out"
    one = trajectory(sorted(out.glob("one-stage1-*.zarr")), by="tokens", resamples=0)
    assert [(row["step"], row["tokens"]) for row in one.rows()] == [(10, 10**9), (20, 2 * 10**9)]
    every = trajectory(sorted(out.glob("one-*.zarr")), steps=[30, 10, 20], resamples=0)
    assert [row["revision"] for row in every.rows()] == ["stage1-step10-tokens1B", "stage1-step20-tokens2B", "main"]
    assert [(found.steps, found.same_losses) for found in every.duplicates] == [((20, 30), True)]
    released = transition(sorted(out.glob("*-main.zarr")), repeats=99)
    assert [point.model for point in released.points] == ["org/one", "org/two", "org/three"]
    both = transition(sorted(out.glob("*.zarr")), repeats=99)
    assert {point.model for point in both.points} == {f"{model}@{name}" for model in served for name in served[model]}
