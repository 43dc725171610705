"""The error that tells a user, in one line, what was wrong, what was expected and what to do."""

from __future__ import annotations

import re
import shlex
from typing import Final

# Behind :// or the :/ that a path makes of it, up to an @ before the next slash.
_USER: Final = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^/\s@]*(?:@[^/\s@]*)*@")

# What follows the question mark of a URL, which signs those that are lent for a while; not the punctuation behind it.
_QUERY: Final = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*:/{1,2}[^\s?]*\?)(?!\.\.\.)\S+?(?=[:;,.)'\"]*(?:\s|$))")

_LONGEST: Final = 300  # characters of a library's own words


class OutliersError(Exception):
    """Something that the user can mend, told in one line: what was wrong, what was expected, what to do.

    The command line prints it without a traceback and exits with 2. A password or a signature in a URL is not repeated.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_passwords(message))


def without_passwords(text: str) -> str:
    """A text with `...` for the user and password of every URL in it, and for what signs it."""
    return _QUERY.sub(r"\1...", _USER.sub(r"\1...@", text))


def one_line(error: BaseException, most: int = 200) -> str:
    """What another library's error says, to stand within a line of ours: its first line, or else its class."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return " ".join(first.split())[:most]


def in_one_line(error: Exception) -> str:
    """All that another library's error says, on one line, to stand within a line of ours."""
    words = " ".join(str(error).split())
    if not words:
        return type(error).__name__
    if isinstance(error, LookupError | TypeError | AttributeError):  # whose words alone say nothing
        words = f"{type(error).__name__}: {words}"
    return words if len(words) <= _LONGEST else words[:_LONGEST].rpartition(" ")[0] + " ..."


def brief(value: object, most: int = 80) -> str:
    """A value as Python writes it, to stand within a line, its end left out where it is long."""
    told = repr(value)
    return told if len(told) < most else told[: most - 3] + "..."


def advice(*words: object) -> str:
    """An `outliers` command that a reader can copy into a shell."""
    return shlex.join(["outliers", *map(str, words)])
