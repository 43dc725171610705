"""Progress of a capture: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from capture.stderr import tell

_PLAIN_SECONDS: Final = 15.0  # between two plain lines


class Reporter(Protocol):
    """What a capture tells of its progress."""

    def start(self, total: int, done: int) -> None:
        """Say how many sequences there are, and how many are captured already."""

    def advance(self, sequences: int, tokens: int, size: int) -> None:
        """Say that so many more sequences and tokens are on disk, in so many bytes."""

    def wait(self, reason: str, seconds: float) -> None:
        """Say that nothing happens for so many seconds, and why."""

    def warn(self, words: str) -> None:
        """Say what whoever reads the store should know."""

    def say(self, words: str) -> None:
        """Say what was done with what was asked for."""


class Silence:
    """Tells nothing."""

    def start(self, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, sequences: int, tokens: int, size: int) -> None:
        """Nothing."""

    def wait(self, reason: str, seconds: float) -> None:
        """Nothing."""

    def warn(self, words: str) -> None:
        """Nothing."""

    def say(self, words: str) -> None:
        """Nothing."""


class Display:
    """Tells on standard error: sequences, tokens per second, bytes. Use as a context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("capture"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("sequences"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
            )
        self._total = self._done = self._tokens = self._bytes = 0
        self._began = self._told = time.monotonic()

    def start(self, total: int, done: int) -> None:
        """Say how many sequences there are, and how many are captured already."""
        self._total, self._done = total, done
        self._began = self._told = time.monotonic()
        if self._bar is not None:
            self._bar.add_task("capture", total=total, completed=done, rate="")
        elif done:
            tell(f"capture: {done} of {total} sequences are there already")

    def advance(self, sequences: int, tokens: int, size: int) -> None:
        """Say that so many more sequences and tokens are on disk, in so many bytes."""
        self._done += sequences
        self._tokens += tokens
        self._bytes += size
        now = time.monotonic()
        rate = f"{self._tokens / (now - self._began):,.0f} tokens/s, {self._bytes / 1e6:,.0f} MB"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=rate)
        elif now - self._told > _PLAIN_SECONDS or self._done == self._total:
            self._told = now
            tell(f"capture: {self._done} of {self._total} sequences, {rate}")

    def wait(self, reason: str, seconds: float) -> None:
        """Say that nothing happens for so many seconds, and why."""
        tell(f"outliers: waiting {seconds:.0f} s for the Hugging Face Hub; {reason}")

    def warn(self, words: str) -> None:
        """Say what whoever reads the store should know."""
        tell(f"outliers: warning: {words}")

    def say(self, words: str) -> None:
        """Say what was done with what was asked for."""
        tell(f"outliers: {words}")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
