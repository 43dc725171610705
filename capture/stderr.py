"""Lines on standard error; where nobody reads them any more, or its disk is full, the work goes on all the same."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def tell(line: str) -> None:
    """Print a line on standard error, as far as that is possible."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        abandon(sys.stderr)


def abandon(stream: TextIO) -> None:
    """Let what is left for a stream that takes no more go nowhere, so that it does not fail again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
