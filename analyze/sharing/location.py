"""Find where a store is from what the user calls it."""

from __future__ import annotations

from pathlib import Path

from capture.store import Folder, Location


def open_location(store: Path | str | Location) -> Location:
    """Where a store is.

    Parameters
    ----------
    store : path of a folder, or a URL

    Raises
    ------
    OutliersError
        A URL of another kind, or of a server that cannot be asked.
    """
    if isinstance(store, str) and "://" in store:
        from analyze.sharing.remote import Remote

        return Remote(store)
    return Folder(Path(store)) if isinstance(store, Path | str) else store
