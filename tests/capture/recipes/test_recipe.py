"""Recipes are read strictly: what is wrong is told with file, table and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capture.errors import OutliersError
from capture.recipes.recipe import Entry, read_recipe
from capture.request import Request

RECIPES = Path(__file__).parents[3] / "data" / "recipes"


def write(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text)
    return path


def test_a_recipe_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.toml").write_text('[[models]]\nmodel = "~/Files/M.GGUF"\n')
    (entry,) = read_recipe("~/r.toml").entries
    assert (entry.name, entry.request.model) == ("m", "~/Files/M.GGUF")


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 9999, "a = 1\0", "models", "a = 1\na = 2"])
def test_what_is_no_toml_is_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(OutliersError, match=r"r\.toml is no TOML file \(.*\); mend it there$") as caught:
        read_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(OutliersError, match="cannot be read"):
        read_recipe(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, '\ufeff[[models]]\nmodel = "m"\n')).entries[0].name == "m"


def test_defaults_reach_every_model_and_its_own_options_win(tmp_path: Path) -> None:
    recipe = read_recipe(
        write(
            tmp_path,
            """
            [defaults]
            text = "c4"
            length = 512
            trust_remote_code = true

            [analysis]
            presets = ["dettmers"]
            compare = false

            [[models]]
            model = "Org/Some-Model-7B"
            config = "shape.json"

            [[models]]
            model = "random:tiny/GPT2.json"
            length = 64
            bos = false

            [[models]]
            model = "files/model.Q8_0.gguf"
            name = "Own.name_1"
            """,
        )
    )
    shared: dict[str, Any] = {"text": "c4", "length": 512, "trust_remote_code": True}
    assert recipe.entries == (
        Entry("some-model-7b", Request("Org/Some-Model-7B", **shared), "shape.json"),
        Entry("gpt2", Request("random:tiny/GPT2.json", **{**shared, "length": 64, "bos": False})),
        Entry("Own.name_1", Request("files/model.Q8_0.gguf", **shared)),
    )
    assert recipe.analysis.presets == ("dettmers",)
    assert (recipe.analysis.compare, recipe.analysis.published, recipe.analysis.ablate) == (False, True, False)
    assert [entry.name for entry in recipe.chosen(["Own.name_1", "gpt2"])] == ["gpt2", "Own.name_1"]
    with pytest.raises(
        OutliersError, match=r"--only gpt names no model of .*r\.toml; expected some of some-model-7b, gpt2"
    ):
        recipe.chosen(["gpt"])


def test_each_revision_is_an_entry_with_a_name_of_its_own(tmp_path: Path) -> None:
    text = """
        [[models]]
        model = "Org/Pythia-410M"
        revisions = ["step1000", "refs/pr/1"]
        [[models]]
        model = "Org/Pythia-410M"
        revision = "step0"
        [[models]]
        model = "Org/Pythia-410M"
        name = "P"
        revisions = ["step0"]
        """
    entries = read_recipe(write(tmp_path, text)).entries
    assert [(entry.name, entry.request.revision) for entry in entries] == [
        ("pythia-410m-step1000", "step1000"),
        ("pythia-410m-refs-pr-1", "refs/pr/1"),
        ("pythia-410m-step0", "step0"),
        ("P-step0", "step0"),
    ]
    assert {entry.request.model for entry in entries} == {"Org/Pythia-410M"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no [[models]]; expected one such table for each model"),
        ("models = []", "no [[models]]"),
        ("models = 3", "no [[models]]"),
        ("models = [3]", "[[models]] number 1: expected a table, and it is 3"),
        ("model = 'm'", "the key 'model' is not known; expected one of defaults, analysis, models"),
        ("defaults = 3\n[[models]]\nmodel = 'm'", "[defaults]: expected a table, and it is 3"),
        ("[[models]]\nname = 'm'", "[[models]] number 1: the key model is missing"),
        ("[[models]]\nmodel = ''", "[[models]] number 1: model = '' is empty"),
        ("[[models]]\nmodel = '--help'", "[[models]] number 1: model = '--help' looks like an option"),
        ("[[models]]\nmodel = 3", "[[models]] number 1: model = 3; expected a string"),
        ("[[models]]\nmodel = 'm'\nsequnces = 3", "[[models]] number 1: the key 'sequnces' is not known"),
        ("[[models]]\nmodel = 'm'\nsequences = '3'", "[[models]] number 1: sequences = '3'; expected a whole number"),
        ("[[models]]\nmodel = 'm'\nsequences = true", "sequences = True; expected a whole number"),
        ("[[models]]\nmodel = 'm'\nsequences = 2.0", "sequences = 2.0; expected a whole number"),
        ("[[models]]\nmodel = 'm'\nsequences = 0", "sequences = 0 is too small; expected 1 or more"),
        ("[[models]]\nmodel = 'm'\nlength = 1", "length = 1 is too small; expected 2 or more"),
        ("[[models]]\nmodel = 'm'\nbos = 1", "bos = 1; expected true or false"),
        ("[[models]]\nmodel = 'm'\nraw = 'all'", "raw = 'all' is not known; expected one of input, output, both, none"),
        ("[[models]]\nmodel = 'm'\ndtype = 'int4'", "dtype = 'int4' is not known; expected one of auto, float32"),
        ("[[models]]\nmodel = 'm'\nout = '/etc'", "the key 'out' is not known"),
        ("[defaults]\nmodel = 'm'", "[defaults]: the key 'model' is not known; expected one of revision, text, field"),
        ("[defaults]\ncompression = 'zip'\n[[models]]\nmodel = 'm'", "[defaults]: compression = 'zip' is not known"),
        ("[[models]]\nmodel = 'm'\n[[models]]\nmodel = 'org/M'", "number 2: the name 'm' is that of number 1 too"),
        ("[[models]]\nmodel = 'm'\nname = '../x'", "name = '../x' cannot name a store"),
        ("[[models]]\nmodel = 'm'\nname = '/x'", "name = '/x' cannot name a store"),
        ("[[models]]\nmodel = 'm'\nname = '..'", "name = '..' cannot name a store"),
        ("[[models]]\nmodel = 'm'\nname = 'a\\nb'", "cannot name a store"),
        ('[[models]]\nmodel = "m"\nname = "a\\n"', "cannot name a store"),
        ("[[models]]\nmodel = 'org/ü'", "name = 'ü' cannot name a store"),
        ("[[models]]\nmodel = 'm'\nrevisions = 'a'", "revisions = 'a'; expected a list"),
        ("[[models]]\nmodel = 'm'\nrevisions = [1]", "revisions has 1; expected a string"),
        ("[[models]]\nmodel = 'm'\nrevisions = ['']", "revisions has '' is empty"),
        ("[[models]]\nmodel = 'm'\nrevisions = ['a', 'a']", "expected each of one or more once"),
        ("[[models]]\nmodel = 'm'\nrevisions = []", "expected each of one or more once"),
        ("[[models]]\nmodel = 'm'\nrevision = 'b'\nrevisions = ['a']", "no key revision beside it"),
        ("[[models]]\nmodel = 'm'\nrevisions = ['a', 'A']", "the name 'm-A' is that of number 1 too"),
        ("[analysis]\npresets = 'study'\n[[models]]\nmodel = 'm'", "[analysis]: presets = 'study'; expected a list"),
        (
            "[analysis]\npresets = ['mine']\n[[models]]\nmodel = 'm'",
            "presets has 'mine'; expected some of study, dettmers",
        ),
        ("[analysis]\npresets = [['study']]\n[[models]]\nmodel = 'm'", "presets has ['study']; expected some of"),
        ("[analysis]\npresets = ['study', 'study']\n[[models]]\nmodel = 'm'", "presets has one of them twice"),
        ("[analysis]\npresets = []\nablate = true\n[[models]]\nmodel = 'm'", "ablate = true, and presets is empty"),
        ("[analysis]\ncompare = 'yes'\n[[models]]\nmodel = 'm'", "compare = 'yes'; expected true or false"),
        ("[[models", "is no TOML file"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(OutliersError) as caught:
        read_recipe(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutliersError, match="no recipe at"):
        read_recipe(tmp_path / "no.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(OutliersError, match="is no TOML file"):
        read_recipe(tmp_path / "bytes.toml")


@pytest.mark.parametrize(("name", "models"), [("study-moe", 7), ("study-dense", 5), ("dettmers", 10), ("offline", 4)])
def test_the_recipes_that_come_along(name: str, models: int) -> None:
    recipe = read_recipe(RECIPES / f"{name}.toml")
    assert len(recipe.entries) == models
    for entry in recipe.entries:
        assert entry.config is None or (RECIPES / entry.config).is_file()
        if entry.request.model.startswith("random:"):
            assert (RECIPES / entry.request.model.removeprefix("random:")).is_file()


def test_the_recipes_of_the_study_have_the_models_of_its_tables() -> None:
    import csv

    for name in ("study_moe", "study_dense"):
        with (RECIPES.parent / "published" / f"{name}.csv").open() as file:
            published: list[dict[str, Any]] = list(csv.DictReader(file))
        recipe = read_recipe(RECIPES / f"{name.replace('_', '-')}.toml")
        assert [entry.request.model for entry in recipe.entries] == [row["hf_id"] for row in published]
