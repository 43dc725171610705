"""Where results may be written: on this machine, where the user said, and over nothing that was captured."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from capture.errors import OutliersError

# `Path` makes one slash of two; a drive of Windows has one letter.
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/]|$)")


def output_path(path: Path | str) -> Path:
    """A file or folder to write, with `~` for the user's home.

    Raises
    ------
    OutliersError
        It is a URL.
    """
    text = os.fspath(path)
    if match := _URL.match(text):
        url = f"{match[1]}://{text[match.end() :]}"
        raise OutliersError(
            f"{url} is a URL, and results are written to a disk of this machine; write to a path, and share a store "
            "with: outliers push STORE URL"
        )
    return Path(text).expanduser()


def output_file(path: Path | str) -> Path:
    """A file to write in a folder that exists, which is no store and no archive of one.

    Raises
    ------
    OutliersError
        It is a URL, a folder or an archive, or its folder is missing or cannot be written.
    """
    path = output_path(path)
    if path.is_dir():
        raise OutliersError(f"cannot write {path}, a folder; expected a file in a folder that exists")
    if path.name.endswith((".zarr", ".zarr.zip")):
        raise OutliersError(f"cannot write {path}, the name of a store; expected the name of another file")
    if not path.parent.is_dir():
        raise OutliersError(f"cannot write {path}; expected a file in a folder that exists")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutliersError(f"cannot write {path}: Permission denied; choose another file")
    return path
