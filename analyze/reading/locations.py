"""Find where a store is from what the user calls it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from analyze.reading.archive import Archive
from capture.errors import OutliersError
from capture.store.location import Folder, Location
from capture.store.paths import user_path

if TYPE_CHECKING:
    from analyze.reading.server import Server

SCHEMES: Final = ("https://", "http://", "s3://", "hf://")
_ARCHIVE: Final = ".zip"


def open_location(store: Path | str | Location) -> Location:
    """Where a store is.

    Parameters
    ----------
    store : path of a folder or of a `.zarr.zip` file, or a URL of either

    Raises
    ------
    OutliersError
        A URL of another kind, of a server that cannot be asked, or an archive that is missing or no store's.
    """
    if not isinstance(store, os.PathLike | str):
        if not hasattr(store, "root_mark"):
            raise OutliersError(f"{type(store).__name__} is no store; expected a path, a URL, or a Dataset of one")
        return store
    if isinstance(store, str) and "://" in store:
        if not store.startswith(SCHEMES):
            raise OutliersError(f"{store} cannot be opened; expected a path, or a URL with {', '.join(SCHEMES)}")
        from analyze.reading.server import Server as Server

        store = store.rstrip("/")
        around, _, name = store.rpartition("/")
        return _archive(Server(f"{around}/"), name) if name.endswith(_ARCHIVE) else Server(store)
    path = user_path(os.fspath(store))
    if path.name.lower().endswith(_ARCHIVE) and not path.is_dir():
        return _archive(Folder(path.parent), path.name)
    return Folder(path)


def _archive(around: Folder | Server, name: str) -> Location:
    return Archive(around, name)
