"""The files of a store on their way: those of a folder, metadata first, and those that an archive may have."""

from __future__ import annotations

import os
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from capture.schema import RAW_VARIABLES, OutliersError
from capture.store import CHECKSUMS, flaw

_ENCRYPTED: Final = 0x1

Progress = Callable[[int, int], None]


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
            reason = _name_flaw(entry.name)
            if reason is None and _folded(entry.name) in found:
                reason = "differs from another by case or accents only"
            if reason is not None:
                raise OutliersError(f"{store}: file {entry.name!r} {reason}; move it out of the store")
            found[_folded(entry.name)] = entry
    return sorted(found.values(), key=lambda entry: (_rank(entry.name), entry.name))


def _rank(name: str) -> int:
    if name in ("zarr.json", CHECKSUMS):
        return ("zarr.json", CHECKSUMS).index(name)
    if name.endswith("/zarr.json"):
        return 2
    return 4 if name.partition("/")[0] in RAW_VARIABLES["both"] else 3


def checked_entries(opened: zipfile.ZipFile, archive: Path | str, size: int) -> list[zipfile.ZipInfo]:
    """Entries of an archive that are plain files inside it, none twice, none larger than the archive is.

    Parameters
    ----------
    opened : the archive
    archive : its path or URL, for error messages
    size : bytes of the archive

    Raises
    ------
    OutliersError
        An entry that no store has, or no zarr.json at the root.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for info in opened.infolist():
        name = info.orig_filename
        reason = _name_flaw(name) or _entry_flaw(info)
        key = _folded(name.rstrip("/"))
        if reason is None and not info.is_dir() and key in found:
            reason = "stands there twice"
        if reason is not None:
            raise OutliersError(f"{archive}: entry {name!r} {reason}; expected a file made by outliers pack")
        folders.update(parent.as_posix() for parent in PurePosixPath(key).parents)
        if not info.is_dir():
            found[key] = info
    if both := folders & set(found):
        raise OutliersError(f"{archive}: {min(both)!r} is a file and a folder; expected a file made by outliers pack")
    for needed in ("zarr.json", CHECKSUMS):
        if needed.casefold() not in found or found[needed.casefold()].filename != needed:
            raise OutliersError(f"{archive} has no {needed} at its root; expected a file made by outliers pack")
    # Stored entries cannot grow, unless several of them name the same bytes.
    if sum(info.file_size for info in found.values()) > size:
        raise OutliersError(
            f"{archive}: entries claim more bytes than the file has; expected one made by outliers pack"
        )
    return list(found.values())


def _name_flaw(name: str) -> str | None:
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ".." in parts:
        return "leads out of the folder"
    if not all(parts) or "." in parts or "\\" in name or ":" in name or not name.isprintable():
        return "has a name that no store has"
    return None


def _folded(name: str) -> str:
    """What is the same for names that a file system may not tell apart by case or accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _entry_flaw(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return "is a link or no plain file"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed"
    if info.is_dir() and info.file_size:
        return "is a folder with content"
    if info.header_offset < 0:
        return "begins before the file does, whose first part is lost"
    return None


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
        Something is there; with `overwrite`, something of another kind.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise OutliersError(f"{target} exists already; choose another --out, or pass --overwrite to replace it")
    if target.is_symlink() or not ((target / "zarr.json").is_file() if store else target.is_file()):
        kind = "store" if store else "file"
        raise OutliersError(f"{target} exists and is no {kind}, so --overwrite leaves it; choose another --out")


def check_free_space(target: Path, needed: int) -> None:
    """Refuse where the disk of `target` has fewer free bytes than needed.

    Raises
    ------
    OutliersError
        Too little room.
    """
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutliersError(
            f"{target} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; "
            "make room, or choose another --out"
        )


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
