"""The documentation holds: its commands and Python blocks run, on small stand-ins, and its API page is complete."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import typer

import analyze
from analyze.cli import app, main
from analyze.comparison import figures
from tests import builders, families, servers
from tests.analyze.sharing.test_push import bucket, endpoint, server  # noqa: F401  (fixtures: stand-ins of a bucket and of the Hub)
from tests.conftest import tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))))
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHELLS = ("", "sh", "bash", "shell", "console")

PLANTED = 5
"""The feature that is large at every place of the stand-ins."""

# What follows is all that a command is run with instead of what is printed. Its stores are copies of one tiny store
# unless an earlier command of the page has made them, its models one tiny checkpoint, its recipes one tiny recipe.
VALUES = {"--feature": str(PLANTED), "--text": "words.txt", "--workers": "1", "--part": "1/2"}
GRIDS = {"--magnitude": "4:16:12", "--layers": "0.5"}
SITES = "ln_attn=model.layers.{}.input_layernorm,ln_mlp=model.layers.{}.post_attention_layernorm"
QUICK = {
    "ablate": {"--sequences": "2", "--repeats": "2"},
    "capture": {"--text": "words.txt", "--sequences": "3", "--length": "24"},
    "compare": {"--resamples": "20"},
    "estimate": {"--sequences": "3", "--length": "24"},
    "null": {"--repeats": "2"},
    "weight": {"--sequences": "2", "--repeats": "2"},
    "trajectory": {"--resamples": "20"},
    "transition": {"--repeats": "99"},
}
LIBRARIES = {  # without which a command cannot be run: those of the analysis alone are enough for the others
    **dict.fromkeys(("capture", "sites", "estimate", "run", "ablate", "weight"), ("torch",)),
    "hf://": ("huggingface_hub",),
    "s3://": ("obstore", "moto", "boto3"),
    "https://": ("obstore",),
    "--perplexity": ("torch",),
}
NOT_RUN: dict[str, str] = {}
"""Commands, as they are printed, that no stand-in can be had for, and why."""

RECIPE = """
[defaults]
text = "words.txt"
sequences = 2
length = 16

[analysis]
compare = false

[[models]]
model = "{model}"
name = "qwen3-8b"
"""


@dataclass(frozen=True)
class Piece:
    """Something of a page that a reader would run."""

    where: str
    text: str
    python: bool = False


def pieces(page: str, text: str) -> Iterator[Piece]:
    """Commands and Python blocks, in order: of fenced blocks by their language, and of indented ones."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line, where = lines[number], f"{page}:{number + 1}"
        number += 1
        fence = re.fullmatch(r"(\s*)```\s*(\w*).*", line)
        if fence:
            start = number
            while not re.fullmatch(r"\s*```\s*", lines[number]):
                number += 1
            block = "\n".join(row.removeprefix(fence[1]) for row in lines[start:number])
            number += 1
            if fence[2] == "python":
                yield Piece(where, block, python=True)
            elif fence[2] in SHELLS:
                yield from _commands(where, block.replace("\n$ ", "\n").removeprefix("$ "))
        elif re.match(r" {4,}\S", line):
            start = number - 1
            while number < len(lines) and re.match(r" {4,}\S", lines[number]):
                number += 1
            yield from _commands(where, "\n".join(row.strip() for row in lines[start:number]))


def _commands(where: str, block: str) -> Iterator[Piece]:
    for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
        command = re.sub(r"(^|\s+)#.*", "", line)
        if command.startswith("outliers "):
            yield Piece(where, command)
        elif re.search(rf"\boutliers ({'|'.join(COMMANDS)})\b", command) and not command.startswith("pip "):
            pytest.fail(f"{where}: {command!r} has a command in its middle; put it at the start of its line")


def written() -> dict[str, list[Piece]]:
    """What there is to run, by page and, of the help, by command."""
    found = {page: list(pieces(page, (ROOT / page).read_text())) for page in PAGES}
    for name, command in COMMANDS.items():
        examples = re.findall(r"^Example: (.+(?:\n.+)*)", inspect.cleandoc(command.help), re.MULTILINE)
        found[f"{name} --help"] = [Piece(f"{name} --help", " ".join(example.split())) for example in examples]
    return {page: parts for page, parts in found.items() if parts}


WRITTEN = written()


def plant(values: np.ndarray) -> np.ndarray:
    values[..., PLANTED] = 300
    return values


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 12 layers in which one feature is large from the embedding on, before and after every norm."""
    import torch

    folder = tmp_path_factory.mktemp("documented") / "model"
    network = tiny_llama(layers=12)
    with torch.no_grad():
        network.model.embed_tokens.weight[:, PLANTED] = 400
        for block in network.model.layers:
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight[PLANTED] = 2
    network.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documented") / "words.txt"
    path.write_text(" ".join(("alpha", "beta", "gamma", "delta")[i * i % 7 % 4] for i in range(200)))
    return path


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store: a capture of the tiny model, or where there is no torch one from arrays."""
    path = tmp_path_factory.mktemp("documented") / "stand-in.zarr"
    if not has("torch"):
        values = builders.random_activations((3, 12, 2, 24, 24))
        return builders.on_disk(path, plant(values), plant(values / 2), raw="input")
    model = request.getfixturevalue("model")
    settings = [f"{option}={value}" for option, value in QUICK["capture"].items() if option != "--text"]
    assert main(["capture", str(model), "--text", str(words), *settings, "--out", str(path)]) == 0
    return path


def has(*libraries: str) -> bool:
    return all(importlib.util.find_spec(library) is not None for library in libraries)


class Stage:
    """A folder in which the pieces of one page run, one after another."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self.request = request
        self.folder = folder
        self.store: Path = request.getfixturevalue("store")
        self.pushed: set[str] = set()
        shutil.copy(request.getfixturevalue("words"), folder / "words.txt")
        record = {"input_ids": [3, 4, 5] * 9, "messages": [{"role": "user", "content": "alpha " * 30}]}
        (folder / "words.jsonl").write_text(f"{json.dumps(record)}\n" * 5)

    def run(self, piece: Piece) -> None:
        """Run a piece, or fail with where it stands."""
        with contextlib.chdir(self.folder):
            if piece.python:
                if self.possible(piece.text):
                    text = re.sub(
                        r'"([^"\n*]+\.zarr(?:\.zip)?)"', lambda name: f'"{self.readable(name[1])}"', piece.text
                    )
                    exec(compile(text, piece.where, "exec"), {})
            elif piece.text not in NOT_RUN and self.possible(piece.text):
                given = self.stand_in(shlex.split(piece.text)[1:])
                assert main(given) == 0, f"{piece.where}: {piece.text}\nrun as: outliers {shlex.join(given)}"

    def possible(self, command: str) -> bool:
        needed = [
            library
            for key, libraries in LIBRARIES.items()
            if (command.startswith(f"outliers {key} ") if key.isalpha() else key in command)
            for library in libraries
        ]
        if "https://" in command and shutil.which("nginx", path="/usr/bin:/usr/sbin") is None:
            return False
        return has(*needed)

    def stand_in(self, words: Sequence[str]) -> list[str]:
        """A command as it can be run here."""
        name, *rest = words
        assert name in COMMANDS, f"no command is called {name}"
        flags = {flag for option in COMMANDS[name].params if getattr(option, "is_flag", False) for flag in option.opts}
        given, options = [name], dict(QUICK.get(name, {}))
        if {"--field", "--chat"} & set(rest):
            options["--text"] = "words.jsonl"
        positional = 0
        while rest:
            word = rest.pop(0)
            if word == "--revision":  # the stand-in is no model of the hub
                rest.pop(0)
                continue
            if word.startswith("--"):
                given.append(word)
                if word not in flags:
                    given.append(options.pop(word, self.value(name, word, rest.pop(0))))
                continue
            positional += 1
            given += self.argument(name, word, positional)
        return [*given, *(word for option in options.items() for word in option)]

    def value(self, command: str, option: str, value: str) -> str:
        if option == "--sites" and "=" in value:
            return SITES
        if command == "weight" and option == "--feature":  # the planted one comes from the embedding
            return "0"
        if option == "--scales-from":
            return self.readable(value)
        if command == "transition" and ":" in value:  # a fit with permutations for every cell
            return GRIDS[option]
        return VALUES.get(option, value)

    def argument(self, command: str, word: str, place: int) -> list[str]:
        if command in ("capture", "sites", "estimate"):
            return [str(self.request.getfixturevalue("model"))]
        if command == "run":
            recipe = self.folder / "recipe.toml"
            recipe.write_text(RECIPE.format(model=self.request.getfixturevalue("model")))
            return [str(recipe)]
        if command == "push" and place == 2:
            return [self.server(word)]
        if "*" in word and not glob.glob(word):
            if command == "transition":  # a step needs eight models of different sizes
                for path in families.family(families.step, self.folder):
                    path.rename(word.replace("*", path.stem))
            elif command == "trajectory":  # checkpoints of one run
                for path in families.training(self.folder):
                    path.rename(word.replace("*", path.stem))
            else:
                self.provide(word.replace("*", "one"))
        return sorted(glob.glob(word)) if "*" in word else [self.readable(word)]

    def readable(self, store: str) -> str:
        """Where a store is that a page reads; unless the page has made it, the tiny store is put there."""
        if "://" not in store:
            self.provide(store)
            return store
        url = self.server(store)
        if url.startswith(("hf://", "s3://")) and url not in self.pushed:
            dataset, _, name = url.rpartition("/")
            into = {"target": dataset, "name": name} if url.startswith("hf://") else {"target": url}
            analyze.push(self.store, **into)
            self.pushed.add(url)
        return url

    def provide(self, name: str) -> None:
        path = self.folder / name
        assert re.search(r"\.zarr(\.zip)?$", name), f"{name!r} is not known; add a stand-in for it"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".zip":
                analyze.pack(self.store, path)
            else:
                shutil.copytree(self.store, path)

    def server(self, url: str) -> str:
        """The same place on a server of this machine."""
        if url.startswith("hf://"):
            self.request.getfixturevalue("server")
            return url.replace("ORG", "org").replace("NAME", "name")
        if url.startswith("s3://"):
            self.request.getfixturevalue("bucket")
            return url.replace("BUCKET", "bucket")
        assert url.startswith("https://"), f"{url} is not known; add a stand-in for it"
        work = self.folder / "nginx"
        work.mkdir()
        running = servers.nginx(self.store.parent, work)
        self.request.addfinalizer(lambda: running.__exit__(None, None, None))
        return f"{running.__enter__().url}/{self.store.name}"


@pytest.fixture
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes start a process for each command, which imports torch anew; here they stay in this one."""

    def run(words: Sequence[str], folder: Path, log: IO[str], tell: Any, output: IO[str] | None = None) -> None:
        with contextlib.chdir(folder), contextlib.redirect_stdout(log if output is None else output):
            assert main(words) == 0

    if has("torch"):
        monkeypatch.setattr("capture.recipes.process.run_outliers", run)


@pytest.fixture
def _drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures of a comparison take longer than the rest of most pages: one is enough."""
    draw = figures.write_figures

    def write(comparison: Any, folder: Path) -> list[Path]:
        if not _FIGURES:
            _FIGURES.extend(draw(comparison, folder))
        return _FIGURES

    monkeypatch.setattr(figures, "write_figures", write)


_FIGURES: list[Path] = []


@pytest.mark.exhaustive
@pytest.mark.usefixtures("_one_process", "_drawn_once")
@pytest.mark.parametrize("page", WRITTEN)
def test_what_is_written_runs(
    page: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["outliers"])
    folder = tmp_path / "page"
    folder.mkdir()
    stage = Stage(request, folder)
    for piece in WRITTEN[page]:
        stage.run(piece)


def test_every_page_with_commands_is_read() -> None:
    # Pieces are found by their form, so that a form which is not known must not go by in silence.
    for page in PAGES:
        commands = re.findall(rf"^[\s$]*outliers (?:{'|'.join(COMMANDS)})\b", (ROOT / page).read_text(), re.MULTILINE)
        assert len(commands) == sum(not piece.python for piece in WRITTEN.get(page, ())), page
    assert {piece.text for parts in WRITTEN.values() for piece in parts} >= set(NOT_RUN)


def test_commands_within_sentences_exist() -> None:
    for page in (*PAGES, "CHANGELOG.md"):
        for words in re.findall(r"`outliers ([a-z][^`]*)`", (ROOT / page).read_text()):
            name, *rest = words.split()
            assert name in COMMANDS, f"{page}: outliers {words}"
            known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
            unknown = {word for word in rest if word.startswith("--")} - known
            assert not unknown, f"{page}: outliers {words}"


def test_pieces_are_found_in_every_form() -> None:
    text = """
Text with `outliers find x.zarr`.

    pip install '.[capture]'
    outliers info a.zarr       # comment
    outliers find a.zarr \\
        --magnitude 6

```sh
$ outliers verify b.zarr
```

```python
1 + 1
```

```toml
outliers = "no"
```
"""
    found = [(piece.where, piece.text, piece.python) for piece in pieces("p", text)]
    assert found == [
        ("p:4", "outliers info a.zarr", False),
        ("p:4", "outliers find a.zarr --magnitude 6", False),
        ("p:9", "outliers verify b.zarr", False),
        ("p:13", "1 + 1", True),
    ]
    with pytest.raises(pytest.fail.Exception, match="in its middle"):
        list(pieces("p", "\n    cd data && outliers info a.zarr\n"))


def test_the_tutorial_is_committed_as_it_ran() -> None:
    path = ROOT / "docs" / "tutorial.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    told = [output for cell in cells for output in cell["outputs"]]
    assert len(told) > len(cells)
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in told)
    assert path.stat().st_size < 600_000
    assert str(ROOT) not in path.read_text()


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_module_hides_a_public_name() -> None:
    modules = {path.stem for path in (ROOT / "analyze").iterdir()}
    assert not modules & set(analyze.__all__)  # a module, once imported, is an attribute of its package


def test_every_public_name_is_on_the_api_page() -> None:
    named = re.findall(r"^::: ([\w.]+)$", hooks().api(), re.MULTILINE)
    assert len(named) == len(set(named))
    for name in analyze.__all__:
        assert f"{getattr(analyze, name).__module__}.{name}" in named
    if has("torch"):
        for path in named:
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name), path


def sections(docstring: str) -> dict[str, str]:
    """Text of each section of a numpydoc docstring by its title."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", docstring, flags=re.MULTILINE)
    return dict(zip(["summary", *parts[1::2]], parts[0::2], strict=True))


@pytest.mark.parametrize("name", analyze.__all__)
def test_every_public_name_says_what_it_takes_returns_and_raises(name: str) -> None:
    thing = getattr(analyze, name)
    told = sections(inspect.cleandoc(thing.__doc__))
    assert told["summary"].strip()
    if inspect.isclass(thing):
        taken = set() if issubclass(thing, Exception) else set(vars(thing).get("__annotations__", ()))
    else:
        taken = set(inspect.signature(thing).parameters)
    listed = re.findall(r"^((?:\w+(?:, )?)+) :", told.get("Parameters", ""), re.MULTILINE)
    assert {word for group in listed for word in group.split(", ")} >= taken
    if not inspect.isclass(thing):
        # A class that has a page of its own, or of matplotlib's, says what it is.
        returned = str(inspect.signature(thing).return_annotation)
        assert "Returns" in told or returned in {*analyze.__all__, "Figure"}, returned
        assert "Raises" in told or returned == "Figure"
