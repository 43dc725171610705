"""The error that tells a user, in one line, what was wrong, what was expected and what to do."""

from __future__ import annotations


class OutliersError(Exception):
    """Something that the user can mend, told in one line: what was wrong, what was expected, what to do.

    The command line prints it without a traceback and exits with 2.
    """


def one_line(error: BaseException, most: int = 200) -> str:
    """What another library's error says, to stand within a line of ours: its first line, or else its class."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return " ".join(first.split())[:most]
