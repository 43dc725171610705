"""A few threads for arithmetic on peaks; results come in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


Result = TypeVar("Result")


def threads(most: int) -> int:
    """Threads for arithmetic on peaks, at most so many."""
    return min(most, os.cpu_count() or 1)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], most: int = 4) -> Iterator[Result]:
    """Results of a function of every item, in order, computed by a few threads.

    Where the caller stops early, for an error or Ctrl-C, what has not begun does not begin.
    """
    pool = ThreadPoolExecutor(threads(most))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
