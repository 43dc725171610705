"""What the command line says of itself: help with an example for each command, and completion."""

from __future__ import annotations

import pytest
import typer

from analyze.cli import app, main

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example_and_helps_with_every_option(name: str) -> None:
    command = COMMANDS[name]
    assert f"Example: outliers {name}" in command.help
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize(
    ("begun", "place", "expected"),
    [
        ("outliers fin", 1, ["find"]),
        ("outliers find s.zarr --preset ", 4, ["study", "dettmers"]),
        ("outliers sweep s.zarr --scale r", 4, ["rms"]),
    ],
)
def test_completion(
    begun: str, place: int, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("_OUTLIERS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", begun)
    monkeypatch.setenv("COMP_CWORD", str(place))
    status = 0
    try:
        status = main([])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 0
    assert capsys.readouterr().out.split() == expected
