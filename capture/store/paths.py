"""Paths as users write them: on the command line, in Python and in recipes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from capture.errors import OutliersError

_LONGEST: Final = 255


def user_path(path: Path | str) -> Path:
    """A path with `~` for the user's home; of a user who is not known here it stays as it is, as in a shell.

    Raises
    ------
    OutliersError
        It has a NUL character, or a part that is longer than file systems take.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise OutliersError(f"the path {text!r} has a NUL character, which no path can have; check the spelling")
    longest = max(text.split(os.sep), key=len)
    if len(os.fsencode(longest)) > _LONGEST:
        raise OutliersError(
            f"the name {longest[:20]}... is {len(os.fsencode(longest))} bytes long; expected {_LONGEST} or fewer, "
            "which is what file systems take; check the spelling"
        )
    return Path(os.path.expanduser(text))
