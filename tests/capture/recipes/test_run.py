"""`outliers run`: one model after another, going on after failures, and never doing again what is done."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from analyze.answers.find import find_outliers
from analyze.cli import main
from analyze.question.criteria import Criteria
from capture.errors import OutliersError
from capture.models.cache import cached_repository, removal_of
from capture.recipes.process import StepError
from capture.recipes.recipe import read_recipe
from capture.recipes.run import Outcome, Results, run_recipe
from capture.run import capture
from capture.store.write import StoreWriter
from tests.capture.models.test_random_weights import SHAPE
from tests.capture.recipes.conftest import Commands
from tests.hub import COMMIT, connect, serving

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[3] / "data" / "recipes"

RECIPE = """
[defaults]
text = "words.txt"
sequences = 2
length = 16

[analysis]
presets = ["study"]

[[models]]
model = "random:llama.json"

[[models]]
model = "random:absent.json"

[[models]]
model = "random:gpt2.json"
raw = "none"
"""


@pytest.fixture
def folder(tmp_path: Path, text_file: Path) -> Path:
    """A recipe's folder, which is not the working directory."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    shutil.copy(text_file, folder / "words.txt")
    (folder / "llama.json").write_text(json.dumps(SHAPE))
    gpt2 = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    (folder / "gpt2.json").write_text(json.dumps(gpt2))
    (folder / "r.toml").write_text(RECIPE)
    return folder


def results(out: Path) -> Any:
    return json.loads((out / "results.json").read_text())


def test_a_sweep_goes_on_after_a_failure_and_is_never_done_twice(
    folder: Path, tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["run", str(folder / "r.toml"), "--out", str(out)]
    assert main(words) == 2
    told, err = capsys.readouterr()
    rows = [line.split() for line in told.splitlines()]
    assert rows[0] == ["name", "status", "seconds", "GB", "outliers", "(study)"]
    assert [row[:2] for row in rows[1:]] == [["llama", "captured"], ["absent", "failed"], ["gpt2", "captured"]]
    assert "\nfailed: absent: no configuration at absent.json; check the path\n" in err
    assert err.splitlines()[-1].startswith("outliers: 1 failed of 3 models and their comparison (absent); mend what")
    assert commands.names() == ["capture", "find", "capture", "capture", "find", "compare"]
    # What the stores say is what a user finds by hand, and relative paths begin at the recipe.
    for name in ("llama", "gpt2"):
        found = json.loads((out / "found" / f"{name}.study.json").read_text())
        assert found == json.loads(json.dumps(find_outliers(out / f"{name}.zarr", Criteria.preset("study")).to_dict()))
        assert StoreWriter(out / f"{name}.zarr").attributes["model_id"] == f"random:{name}.json"
    assert StoreWriter(out / "gpt2.zarr").raw == "none"
    kept = results(out)
    assert [model["status"] for model in kept["models"]] == ["captured", "failed", "captured"]
    assert kept["models"][1]["reason"] == "no configuration at absent.json; check the path"
    assert kept["models"][0]["found"]["study"]["count"] == found["count"]

    assert main(words) == 2
    assert commands.names() == ["capture"]  # the one that failed
    (folder / "absent.json").write_text(json.dumps(SHAPE))
    assert main(words) == 0
    assert commands.names() == ["capture", "find", "compare"]
    assert main(words) == 0
    assert commands.names() == []
    assert [model["status"] for model in results(out)["models"]] == ["present"] * 3

    # What is missing or older than its store is made again, and nothing else.
    (out / "found" / "gpt2.study.json").unlink()
    os.utime(out / "found" / "llama.study.json", (0, 0))
    assert main(words) == 0
    assert commands.names() == ["find", "find"]
    shutil.rmtree(out / "comparison")
    assert main(words) == 0
    assert commands.names() == ["compare"]
    (out / "found" / "gpt2.study.json").write_text("{")
    assert main(words) == 2
    assert "is no JSON file" in capsys.readouterr().err


def test_an_unfinished_store_is_gone_on_with(folder: Path, tmp_path: Path, commands: Commands) -> None:
    store = tmp_path / "out" / "llama.zarr"
    with contextlib.chdir(folder):
        capture("random:llama.json", store, text="words.txt", sequences=2, length=16, part=(1, 2))
    assert StoreWriter(store).done().tolist() == [True, False]
    before = StoreWriter(store).file("norm_input", 0).stat().st_mtime_ns
    run_recipe(read_recipe(folder / "r.toml"), tmp_path / "out", only=["llama"])
    assert StoreWriter(store).done().all()
    assert StoreWriter(store).file("norm_input", 0).stat().st_mtime_ns == before
    assert commands.names() == ["capture", "find", "compare"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("length = 16", "length = 8", r"length \(16 in the store, 8 asked for\)"),
        ("sequences = 2", "sequences = 1", r"sequences \(2 in the store, 1 asked for\)"),
        ('"words.txt"', '"python-docs"', r"text \(words.txt in the store, python-docs asked for\)"),
        ("length = 16", 'length = 16\nraw = "both"', r"raw \(input in the store, both asked for\)"),
        ("length = 16", 'length = 16\ndtype = "bfloat16"', r"dtype \(float32 in the store, bfloat16 asked for\)"),
        ("length = 16", 'length = 16\ncompression = "none"', r"compression \(fast in the store, none asked for\)"),
    ],
)
def test_a_finished_store_of_another_request_is_never_taken_for_done(
    folder: Path, tmp_path: Path, commands: Commands, finished: Path, old: str, new: str, told: str
) -> None:
    recipe = folder / "r.toml"
    shutil.copytree(finished, tmp_path / "out" / "llama.zarr")
    recipe.write_text(RECIPE.replace(old, new))
    outcome = run_recipe(read_recipe(recipe), tmp_path / "out", only=["llama"]).models[0]
    assert outcome.status == "failed"
    assert outcome.reason is not None
    assert pytest.importorskip("re").search(told, outcome.reason)
    assert commands.names() == []


def test_a_text_is_told_by_its_content_and_not_by_its_path(
    folder: Path, tmp_path: Path, commands: Commands, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out" / "llama.zarr")
    shutil.copy(folder / "words.txt", folder / "same.txt")
    (folder / "r.toml").write_text(RECIPE.replace("words.txt", "same.txt"))
    recipe = read_recipe(folder / "r.toml")
    assert run_recipe(recipe, tmp_path / "out", only=["llama"]).failures() == {}
    (folder / "same.txt").write_text("other words " * 100)
    told = run_recipe(recipe, tmp_path / "out", only=["llama"]).failures()["llama"]
    assert "text (words.txt of other content in the store, same.txt asked for)" in told


@pytest.mark.parametrize("kept", ['{"comparison": 3}', '{"comparison": {"command": "x"}}', "[]", "{"])
def test_a_record_that_is_none_is_passed_over(
    folder: Path, tmp_path: Path, commands: Commands, finished: Path, kept: str
) -> None:
    shutil.copytree(finished, tmp_path / "out" / "llama.zarr")
    (tmp_path / "out" / "results.json").write_text(kept)
    assert run_recipe(read_recipe(folder / "r.toml"), tmp_path / "out", only=["llama"]).failures() == {}
    assert commands.names() == ["find", "compare"]


def test_no_failure_is_lost() -> None:
    outcomes = [Outcome(name, "m", "s", "failed", "") for name in ("a", "comparison")]
    assert set(Results(outcomes).failures()) == {"a", "comparison"}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_place_that_can_be_no_folder_is_refused_before_anything_runs(
    folder: Path, tmp_path: Path, commands: Commands, finished: Path, capsys: pytest.CaptureFixture[str], dry: list[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for out, told in (
        (file, f"cannot make {file}, for {file} is no folder; choose another --out"),
        (file / "x", f"cannot make {file / 'x'}, for {file} is no folder; choose another --out"),
        (finished, f"{finished} is a store; choose another folder for --out"),
    ):
        assert main(["run", str(folder / "r.toml"), "--out", str(out), "--only", "llama", *dry]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"outliers: {told}"
    assert commands.run == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """The store of the recipe's first model."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "llama.json").write_text(json.dumps(SHAPE))
    shutil.copy(text_file, folder / "words.txt")
    with contextlib.chdir(folder):
        return capture("random:llama.json", folder / "s.zarr", text="words.txt", sequences=2, length=16)


def test_what_only_leaves_out_is_still_compared(
    folder: Path, tmp_path: Path, commands: Commands, finished: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out / "llama.zarr")
    outcomes = run_recipe(read_recipe(folder / "r.toml"), out, only=["gpt2"]).models
    assert [outcome.status for outcome in outcomes] == ["left out", "left out", "captured"]
    assert commands.run[-1] == [
        *("compare", str(out / "llama.zarr"), str(out / "gpt2.zarr"), "--published"),
        *("--out", str(out / "comparison")),
    ]
    with pytest.raises(Exception, match="--only nothing names no model"):
        run_recipe(read_recipe(folder / "r.toml"), out, only=["nothing"])


def test_a_store_that_was_replaced_is_asked_again_whatever_its_times(
    folder: Path, tmp_path: Path, commands: Commands, finished: Path
) -> None:
    out = tmp_path / "out"
    store = out / "llama.zarr"
    shutil.copytree(finished, store)
    words = ["run", str(folder / "r.toml"), "--out", str(out), "--only", "llama"]
    assert main(words) == 0
    assert commands.names() == ["find", "compare"]
    shutil.rmtree(store)
    with contextlib.chdir(folder):
        capture("random:llama.json", store, text="words.txt", sequences=2, length=16)
    for file in store.rglob("*"):
        os.utime(file, (0, 0))
    assert main(words) == 0
    assert commands.names() == ["find", "compare"]
    answer = json.loads((out / "found" / "llama.study.json").read_text())
    assert answer["store_id"] == StoreWriter(store).store_id != StoreWriter(finished).store_id
    assert main(words) == 0
    assert commands.names() == []


def test_it_stops_at_a_failure_where_that_is_asked(folder: Path, tmp_path: Path, commands: Commands) -> None:
    commands.failing["capture"] = StepError("capture was ended by SIGKILL, most likely for want of memory")
    words = ["run", str(folder / "r.toml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--stop-at-failure"]) == 2
    assert commands.names() == ["capture"]
    assert [model["status"] for model in results(tmp_path / "out")["models"]] == ["failed", "pending", "pending"]
    assert main(words) == 2
    assert commands.names() == ["capture"] * 3


def test_a_comparison_that_fails_is_reported_like_a_model(
    folder: Path, tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.failing["compare"] = StepError("no room")
    assert main(["run", str(folder / "r.toml"), "--out", str(tmp_path / "out"), "--only", "gpt2"]) == 2
    assert "failed: comparison: no room\n" in capsys.readouterr().err
    assert results(tmp_path / "out")["comparison_failure"] == "no room"


def test_an_interruption_is_recorded(
    folder: Path, tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.failing["capture"] = KeyboardInterrupt()
    assert main(["run", str(folder / "r.toml"), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("the same command goes on")
    assert [model["status"] for model in results(tmp_path / "out")["models"]] == ["interrupted", "pending", "pending"]


def test_a_dry_run_tells_sizes_and_makes_nothing(
    folder: Path, tmp_path: Path, commands: Commands, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["run", str(folder / "r.toml"), "--out", str(out), "--dry-run"]
    assert main(words) == 2
    told, err = capsys.readouterr()
    assert told.splitlines()[2].split()[:2] == ["absent", "?"]
    assert err == "outliers: 1 of 3 models would fail (absent); see the table\n"
    assert not out.exists()
    (folder / "r.toml").write_text(RECIPE.replace('absent.json"', 'absent.json"\nconfig = "gpt2.json"'))
    shutil.copytree(finished, out / "llama.zarr")
    assert main(words) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["llama", "0.00", "finished already"]
    assert rows[2][2] == "by gpt2.json"
    assert commands.run == []


def test_what_the_disk_has_no_room_for_is_refused_before_anything_runs(
    folder: Path,
    tmp_path: Path,
    commands: Commands,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for words in ([], ["--dry-run"]):
        assert main(["run", str(folder / "r.toml"), "--out", str(tmp_path / "out"), *words]) == 2
        told = capsys.readouterr().err
        assert "the recipe needs about 0." in told
        assert "and the disk of" in told
    assert commands.run == []
    assert not (tmp_path / "out").exists()


def test_ablations_are_asked_of_stores_with_outliers_only(
    folder: Path, tmp_path: Path, commands: Commands, finished: Path
) -> None:
    (folder / "r.toml").write_text(RECIPE.replace('presets = ["study"]', "ablate = true\ncompare = false"))
    out = tmp_path / "out"
    shutil.copytree(finished, out / "llama.zarr")
    (out / "found").mkdir()
    own = StoreWriter(finished).store_id
    for preset, count, saturated in (("study", 0, False), ("dettmers", 3, True)):
        found = {"count": count, "distinct_features": count, "saturated": saturated, "store_id": own}
        (out / "found" / f"llama.{preset}.json").write_text(json.dumps(found))
    run_recipe(read_recipe(folder / "r.toml"), out, only=["llama"])
    assert commands.names() == []
    (out / "found" / "llama.study.json").write_text(json.dumps({**found, "saturated": False}))
    commands.failing["ablate"] = StepError("no weights")
    assert run_recipe(read_recipe(folder / "r.toml"), out, only=["llama"]).models[0].reason == "no weights"
    assert commands.run == [["ablate", str(out / "llama.zarr"), "--preset", "study", "--sequences", "2", "--json"]]


# ---- the hub's cache


def make_cached(cache: Path, kind: str, repository: str) -> Path:
    folder = cache / f"{kind}--{repository.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "abc").write_bytes(bytes(1000))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "model.safetensors").symlink_to("../../blobs/abc")
    return folder


def test_only_the_one_model_leaves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert removal_of("org/m") is None
    gone = make_cached(tmp_path / "cache", "models", "org/m")
    kept = [
        make_cached(tmp_path / "cache", kind, name)
        for kind, name in (("models", "org/m2"), ("datasets", "org/m"), ("models", "other/m"))
    ]
    removal = removal_of("org/m")
    assert removal is not None
    assert gone.exists()
    assert removal.expected_freed_size == 1000
    removal.execute()
    assert not gone.exists()
    assert all((folder / "snapshots" / COMMIT / "model.safetensors").is_file() for folder in kept)
    assert removal_of("org/m") is None


def test_nothing_local_is_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "org" / "here").mkdir(parents=True)
    for model in ("org/here", "./m", "../m", "/m", "~/m", "a/b/c", "m.gguf", "random:org/m", "smollm2-135m", "s.json"):
        assert cached_repository(model, tmp_path) is None
    assert cached_repository("org/m", tmp_path) == "org/m"
    assert cached_repository("gpt2", tmp_path) == "gpt2"


def test_a_model_leaves_the_cache_once_its_store_is_verified(
    folder: Path, tmp_path: Path, commands: Commands, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "r.toml").write_text(
        RECIPE.split("[[models]]")[0]
        + '[[models]]\nmodel = "org/tiny"\n[[models]]\nmodel = "org/tiny"\nname = "again"\n'
    )
    recipe = read_recipe(folder / "r.toml")
    cached = tmp_path / "cache" / "models--org--tiny"
    with serving(checkpoint, "org/tiny") as hub:
        connect(hub, tmp_path / "cache", monkeypatch)
        run_recipe(recipe, tmp_path / "kept", only=["tiny"])
        assert cached.is_dir()
        commands.names()
        commands.failing["verify"] = StepError("is damaged")
        assert run_recipe(recipe, tmp_path / "out", clean_cache=True).failures()["again"] == "is damaged"
        assert cached.is_dir()
        # The first of the two leaves it to the second, which needs it.
        assert commands.names() == ["capture", "find", "capture", "find", "verify", "compare"]
        del commands.failing["verify"]
        assert run_recipe(recipe, tmp_path / "out", clean_cache=True).failures() == {}
        assert not cached.exists()
        assert checkpoint.is_dir()
        commands.names()
        run_recipe(recipe, tmp_path / "out", clean_cache=True)
        assert commands.names() == []  # nothing to remove, hence nothing to verify


@pytest.mark.exhaustive
def test_the_offline_recipe_in_real_processes(tmp_path: Path) -> None:
    """All but its one large model, with one more that fails: each in a process of its own."""
    shutil.copytree(RECIPES, tmp_path / "recipes")
    recipe = tmp_path / "recipes" / "offline.toml"
    recipe.write_text(
        recipe.read_text().replace('"smollm2-135m"', '"random:tiny/no-such-model.json"')
        + '[[models]]\nmodel = "random:tiny/gpt2.json"\nname = "too-long"\nlength = 100_000\n'
    )
    command = [sys.executable, "-m", "analyze.cli", "run", str(recipe), "--only", "tiny-qwen3-moe"]
    command += ["--only", "no-such-model", "--only", "too-long", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 2
    assert "failed: no-such-model: no configuration at tiny/no-such-model.json; check the path\n" in done.stderr
    assert "failed: too-long: " in done.stderr
    assert done.stderr.splitlines()[-1].startswith("outliers: ")
    status = {model["name"]: model["status"] for model in results(tmp_path / "out")["models"]}
    assert status["tiny-qwen3-moe"] == "captured"
    assert status["no-such-model"] == status["too-long"] == "failed"
    assert (
        "$ outliers capture random:tiny/qwen3-moe.json --out" in (tmp_path / "out/logs/tiny-qwen3-moe.txt").read_text()
    )


CODE = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("")
raise RuntimeError
"""


@pytest.fixture
def hostile(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A recipe beside a model folder whose own code it wants to be run; the code leaves a file called `ran`."""
    model = folder / "mine"
    model.mkdir()
    (model / "code.py").write_text(CODE)
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (model / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": classes}))
    (folder / "r.toml").write_text(f'{RECIPE}\n[[models]]\nmodel = "mine"\nname = "mine"\ntrust_remote_code = true\n')
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def ran(*folders: Path) -> bool:
    return any(list(folder.rglob("ran")) for folder in folders)


@pytest.mark.parametrize(
    "options", [["--dry-run"], ["--dry-run", "--trust-remote-code"], [], ["--only", "mine"]], ids=" ".join
)
def test_a_recipe_alone_runs_no_code(
    options: list[str], hostile: Path, tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", str(hostile / "r.toml"), "--out", str(tmp_path / "out"), *options])
    assert not ran(tmp_path)
    assert code == 2  # one of the models cannot be had
    told = capsys.readouterr()
    if options[:1] == ["--dry-run"]:
        assert "not known before its own code runs" in told.out
        assert "would fail (absent)" in told.err
    else:
        assert "asks to run the code that mine brings along, and a recipe cannot allow that" in told.err
        assert told.err.count("\n") == 1
    assert commands.run == []


def test_python_needs_the_permission_too(hostile: Path, tmp_path: Path, commands: Commands) -> None:
    recipe = read_recipe(hostile / "r.toml")
    with pytest.raises(OutliersError, match="a recipe cannot allow that"):
        run_recipe(recipe, tmp_path / "out")
    run_recipe(recipe, tmp_path / "out", only=["llama"])
    assert not ran(tmp_path)


def test_the_permission_reaches_those_that_the_recipe_names(hostile: Path, tmp_path: Path, commands: Commands) -> None:
    commands.failing["capture"] = StepError("not here")
    run_recipe(read_recipe(hostile / "r.toml"), tmp_path / "out", trust_remote_code=True)
    trusted = ["--trust-remote-code" in words for words in commands.run if words[0] == "capture"]
    assert trusted == [False, False, False, True]
