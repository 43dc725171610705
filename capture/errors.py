"""The error that tells a user, in one line, what was wrong, what was expected and what to do."""

from __future__ import annotations


class OutliersError(Exception):
    """Something that the user can mend, told in one line: what was wrong, what was expected, what to do.

    The command line prints it without a traceback and exits with 2.
    """
