"""The files of a store on their way: those of a folder, metadata first, and those that an archive may have."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from analyze.types import Progress
from capture.errors import OutliersError
from capture.store.files import folded_name, name_flaw
from capture.store.replace import check_replaceable
from capture.store.schema import CHECKSUMS, RAW_VARIABLES
from capture.store.verify import flaw


@dataclass(frozen=True)
class Entry:
    """One file of a store.

    Parameters
    ----------
    name : path inside the store, with `/`
    source : the file on disk, or its content
    size : bytes
    """

    name: str
    source: Path | bytes
    size: int


def entries(store: Path) -> list[Entry]:
    """Every file of a store, but for names that begin with a dot: caches, and what killed writers left.

    Parameters
    ----------
    store : folder

    Returns
    -------
    root metadata, checksums, the metadata of arrays, small arrays, raw activations; each by name

    Raises
    ------
    OutliersError
        A link, or something else that is no plain file: following it might hand on what is not of the store. A name
        that an archive may not have, or two that some file systems take for one.
    """
    found: dict[str, Entry] = {}
    for folder, folders, files in os.walk(store):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *files):
            path = Path(folder) / name
            kind = path.lstat().st_mode
            if name.startswith(".") or stat.S_ISDIR(kind):
                continue
            if not stat.S_ISREG(kind):
                raise OutliersError(
                    f"{path} is a link or no plain file; expected a store of plain files, copy it there"
                )
            entry = Entry(path.relative_to(store).as_posix(), path, path.stat().st_size)
            reason = name_flaw(entry.name)
            if reason is None and folded_name(entry.name) in found:
                reason = "differs from another by case or accents only"
            if reason is not None:
                raise OutliersError(f"{store}: file {entry.name!r} {reason}; move it out of the store")
            found[folded_name(entry.name)] = entry
    return sorted(found.values(), key=lambda entry: (_rank(entry.name), entry.name))


def _rank(name: str) -> int:
    if name in ("zarr.json", CHECKSUMS):
        return ("zarr.json", CHECKSUMS).index(name)
    if name.endswith("/zarr.json"):
        return 2
    return 4 if name.partition("/")[0] in RAW_VARIABLES["both"] else 3


def check_target(target: Path, *, store: bool, overwrite: bool) -> None:
    """Refuse a place where something stands that may not be replaced.

    Parameters
    ----------
    target : file or folder to write
    store : whether it is the folder of a store; else a file
    overwrite : whether something of the same kind may be replaced

    Raises
    ------
    OutliersError
        Something is there; with `overwrite`, something of another kind, or in a store's folder what is not the store's.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise OutliersError(f"{target} exists already; choose another --out, or pass --overwrite to replace it")
    if target.is_symlink() or not ((target / "zarr.json").is_file() if store else target.is_file()):
        kind = "store" if store else "file"
        raise OutliersError(f"{target} exists and is no {kind}, so --overwrite leaves it; choose another --out")
    if store:
        check_replaceable(target)


def check_sound(store: Path, progress: Progress | None) -> None:
    """Refuse to hand on a store that is unfinished or damaged, after reading every chunk of it back.

    Raises
    ------
    OutliersError
        It is one of these.
    """
    wrong = flaw(store, progress=progress)
    if wrong is not None:
        raise OutliersError(
            f"{store} {wrong}; mend it first: the same outliers capture goes on where it stopped, "
            "and outliers verify says what to do about damage"
        )
