"""Without the hub, what needs no weights takes the configurations that come along, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest

torch = pytest.importorskip("torch")

from analyze.cli import main  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.models.load import describe_model, load_config, load_model  # noqa: E402
from capture.models.shipped import shipped_configuration  # noqa: E402

DATA = Path(__file__).parents[3] / "data" / "models"
NAMES = sorted(path.stem.replace("--", "/") for path in DATA.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_configuration_is_found_by_its_name(name: str, offline: None) -> None:
    found = load_config(name)
    settings = json.loads((DATA / f"{name.replace('/', '--')}.json").read_text())
    assert found.model_type == settings["model_type"]


@pytest.mark.parametrize(
    "words",
    [
        ("sites", "openai-community/gpt2"),
        ("sites", "facebook/opt-125m", "--json"),
        ("estimate", "Qwen/Qwen3-0.6B"),
    ],
)
def test_commands_without_weights_answer_and_say_so(
    words: tuple[str, ...], offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(words)) == 0
    told = capsys.readouterr()
    assert f"the hub cannot be reached; {words[1]} is described by the configuration that comes along" in told.err
    assert "comes along" not in told.out


def test_random_weights_are_drawn_of_it(offline: None) -> None:
    described = describe_model("random:openai-community/gpt2")
    assert described.config.n_embd == 768
    assert described.source.model == str(shipped_configuration("openai-community/gpt2"))


@pytest.mark.parametrize("name", ["openai-community/gpt2", "random:org/other", "org/other"])
def test_nothing_else_stands_in_for_a_model(name: str, offline: None) -> None:
    with pytest.raises(OutliersError, match="no route to host"):
        load_model(name)


def test_the_hub_goes_before_what_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    from capture.models.source import find_source

    class Info:
        sha = "c0ffee"

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
    assert find_source("Qwen/Qwen3-8B", configuration_alone=True).model == "Qwen/Qwen3-8B"


def test_they_travel_inside_the_package() -> None:
    import tomllib

    project = tomllib.loads((DATA.parents[1] / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["data/models"] == "capture/models/configurations"
