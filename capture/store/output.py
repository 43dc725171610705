"""Where results may be written: on this machine, where the user said, and over nothing that was captured."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from capture.errors import OutliersError
from capture.store.files import open_plain
from capture.store.paths import user_path

_ZIP: Final = b"PK\x03\x04"
# `Path` makes one slash of two; a drive of Windows has one letter.
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/]|$)")


def output_path(path: Path | str) -> Path:
    """A file or folder to write, with `~` for the user's home.

    Raises
    ------
    OutliersError
        It is a URL, `~` leads to no home, or it lies inside a store.
    """
    text = os.fspath(path)
    if match := _URL.match(text):
        url = f"{match[1]}://{text[match.end() :]}"
        raise OutliersError(
            f"{url} is a URL, and results are written to a disk of this machine; write to a path, and share a store "
            "with: outliers push STORE URL"
        )
    found = user_path(path)
    first = found.parts[0] if found.parts else ""
    if first.startswith("~") and not Path(first).exists():  # else a folder of that name would appear
        raise OutliersError(f"{first} of {found} is no user's home on this machine; write out the path")
    _refuse_inside_store(found)
    return found


def output_folder(path: Path | str) -> Path:
    """A folder to make or to fill, whose parents may be missing too.

    Raises
    ------
    OutliersError
        It is a URL, or what there is of its way is no folder or cannot be written.
    """
    path = output_path(path)
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise OutliersError(f"cannot make {path}, for {there} is no folder; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutliersError(f"cannot write {path}: {there} cannot be written; choose another --out")
    return path


def results_folder(path: Path | str) -> Path:
    """A folder for the files of a result, which may hold others already, and is no store.

    Raises
    ------
    OutliersError
        As `output_folder`, or it is a store.
    """
    path = output_folder(path)
    if (path / "zarr.json").exists():
        raise OutliersError(f"{path} is a store; choose another folder for --out")
    return path


def output_file(path: Path | str) -> Path:
    """A file to write in a folder that exists, which is no store and no archive of one.

    Raises
    ------
    OutliersError
        It is a URL, a folder or an archive, or its folder is missing or cannot be written.
    """
    path = output_path(path)
    if path.name == "-":
        raise OutliersError("cannot write -, which names no file; expected a name, or /dev/stdout")
    if path.is_dir():
        raise OutliersError(f"cannot write {path}, a folder; expected a file in a folder that exists")
    if path.name.lower().endswith((".zarr", ".zip")) or _is_archive(path):
        raise OutliersError(f"cannot write {path}, a store or the name of one; expected the name of another file")
    if not Path(os.path.realpath(path)).parent.is_dir():
        raise OutliersError(f"cannot write {path}; expected a file in a folder that exists")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutliersError(f"cannot write {path}: Permission denied; choose another file")
    return path


def _refuse_inside_store(path: Path) -> None:
    """What lies in a store's folder and is no file of it keeps the store from being replaced, and is never shared."""
    store = next((folder for folder in path.absolute().parents if (folder / "zarr.json").is_file()), None)
    if store is not None:
        raise OutliersError(f"{path} lies inside the store {store}; choose another place for it")


def _is_archive(path: Path) -> bool:
    """Whether a file is there that begins as archives do, whatever its name."""
    if not path.is_file():
        return False
    with open_plain(path) as file:
        return file.read(len(_ZIP)) == _ZIP
