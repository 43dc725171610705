"""Progress of long work on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from analyze.types import Progress
from capture.stderr import tell

_LINE_SECONDS = 5.0


@contextmanager
def shown(title: str) -> Iterator[Progress]:
    """Progress callback that shows what it is told; silent until there is something to tell."""
    if sys.stderr is not None and sys.stderr.isatty():
        with _bar(title) as progress:
            yield progress
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, visible=False)

    def progress(finished: int, total: int) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=finished, total=total, visible=True)

    try:
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()


def _lines(title: str) -> Progress:
    last = time.monotonic()

    def progress(finished: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_SECONDS or finished == total:
            last = now
            tell(f"{title}: {finished} of {total}")

    return progress
