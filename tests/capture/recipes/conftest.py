"""Commands of a recipe that run in the process of the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from analyze.cli import main
from capture.recipes import run
from capture.recipes.process import StepError


class Commands:
    """Runs each command in this process, which has its libraries already, and keeps what was run."""

    def __init__(self) -> None:
        self.run: list[list[str]] = []
        self.failing: dict[str, BaseException] = {}

    def __call__(self, words: Sequence[str], folder: Path, log: IO[str], tell: Any, output: Any = None) -> None:
        self.run.append(list(words))
        if words[0] in self.failing:
            raise self.failing[words[0]]
        if words[0] == "compare":
            Path(words[-1]).mkdir(exist_ok=True)
            return
        with contextlib.chdir(folder), contextlib.redirect_stdout(log if output is None else output):
            error = StepErrorCatcher()
            with contextlib.redirect_stderr(error):
                code = main(words)
        if code:
            raise StepError(error.last.removeprefix("outliers: "))

    def names(self) -> list[str]:
        """The commands since the last look."""
        run, self.run = [words[0] for words in self.run], []
        return run


class StepErrorCatcher:
    last = ""

    def write(self, text: str) -> int:
        self.last = text.strip() or self.last
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(run, "run_outliers", commands)
    return commands
