"""Find where a store is from what the user calls it."""

from __future__ import annotations

from pathlib import Path

from capture.store import Folder, Location


def open_location(store: Path | str | Location) -> Location:
    """Where a store is.

    Parameters
    ----------
    store : path of a folder
    """
    if isinstance(store, Path | str):
        return Folder(Path(store))
    return store
